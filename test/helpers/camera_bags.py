# SPDX-License-Identifier: Apache-2.0
"""Bags with three cameras whose pictures tell their number: ROS 2 (mcap, sqlite3; compressed) and ROS 1."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lidargen_ros.bags.pointclouds import cloud_from_message
from lidargen_ros.bags.reader import BagReader

CAMERAS = ("front", "rear_left", "rear_right")
START = 1_700_000_000_000_000_000
PERIOD = 100_000_000
MS = 1_000_000
OWN = "lidargen_test/msg/Own"
KINDS = ("mcap", "mcap-zstd", "mcap-message", "mcap-file", "sqlite", "ros1")


class Event(NamedTuple):
    """A message to be recorded: ``stamp_ns`` for pictures, text for others."""

    time_ns: int
    topic: str
    stamp_ns: int = 0
    level: int = 0
    broken: bool = False


@functools.cache
def jpeg(level: int) -> bytes:
    """A grey picture."""
    return cv2.imencode(".jpg", np.full((44, 80, 3), level, np.uint8))[1].tobytes()


def pictures(frames: int, period: int = PERIOD) -> list[Event]:
    """Frame ``i`` of every camera has level ``i``; a custom message after each."""
    events = []
    for i in range(frames):
        t = START + i * period
        events += [
            Event(t + k * MS, f"/{camera}/image/compressed", t + k * MS, i % 250)
            for k, camera in enumerate(CAMERAS)
        ]
        events.append(Event(t + 5 * MS, "/own", level=i))
    return events


def write_bag(
    path: Path,
    events: list[Event],
    kind: str = "mcap",
    image_type: str = "sensor_msgs/msg/CompressedImage",
    size: tuple[int, int] = (80, 44),
    encoding: str = "rgb8",
) -> Path:
    """Record ``events`` as they come; returns the path to open. ``encoding``: of raw images, three bytes per pixel."""
    ros1 = kind == "ros1"
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("uint32 number\nstring text", OWN))
    if ros1:
        writer = Writer1(path.with_suffix(".bag"))
    else:
        plugin = StoragePlugin.SQLITE3 if kind == "sqlite" else StoragePlugin.MCAP
        writer = Writer2(path, version=8, storage_plugin=plugin)
        modes = {
            "zstd": CompressionMode.STORAGE,
            "message": CompressionMode.MESSAGE,
            "file": CompressionMode.FILE,
        }
        if mode := modes.get(kind.partition("-")[2]):
            writer.set_compression(mode, CompressionFormat.ZSTD)
    serialize = store.serialize_ros1 if ros1 else store.serialize_cdr
    connections = {}
    with writer:
        for event in events:
            own = "/image" not in event.topic
            kind_of = OWN if own else image_type
            if event.topic not in connections:
                connections[event.topic] = writer.add_connection(event.topic, kind_of, typestore=store)
            message = (
                store.types[OWN](number=event.level, text="ä")
                if own
                else _picture(store, event, image_type, size, encoding)
            )
            writer.write(connections[event.topic], event.time_ns, serialize(message, kind_of))
    return path.with_suffix(".bag") if ros1 else path


def _picture(store, event: Event, image_type: str, size: tuple[int, int], encoding: str):
    stamp = store.types["builtin_interfaces/msg/Time"](
        sec=event.stamp_ns // 10**9, nanosec=event.stamp_ns % 10**9
    )
    kind = store.types["std_msgs/msg/Header"]
    extra = {"seq": event.level} if "seq" in kind.__annotations__ else {}
    header = kind(stamp=stamp, frame_id="camera", **extra)
    if image_type.endswith("/Image"):
        width, height = size
        about = {"height": height, "width": width, "encoding": encoding, "is_bigendian": 0, "step": 3 * width}
        data = np.full(height * width * 3, event.level, np.uint8)
        return store.types[image_type](header=header, data=data, **about)
    data = jpeg(event.level)
    if event.broken:
        data = data[: len(data) // 2]
    return store.types[image_type](header=header, format="jpeg", data=np.frombuffer(data, np.uint8))


def sweeps(bag: Path, topic: str = "/points") -> list[tuple[int, int, float]]:
    """(recording time, stamp, mean level of the pictures) of every cloud of a bag made with the toy bundle."""
    found = []
    with BagReader(bag) as reader:
        for m in reader.messages([topic]):
            cloud = cloud_from_message(m.decode(), topic)
            metres = float(np.median(np.linalg.norm(cloud.points, axis=1)))
            found.append((m.time_ns, cloud.stamp_ns, round(10 * (metres - 5), 1)))
        assert reader.damage is None
    return found


def expected(frames: int, period: int = PERIOD) -> list[tuple[int, int, float]]:
    """What :func:`sweeps` gives of :func:`pictures` when nothing is lost."""
    return [(START + i * period, START + i * period, float(i % 250)) for i in range(frames)]


def changed(events: list[Event], change: Callable[[Event], Event | None]) -> list[Event]:
    """The events that ``change`` keeps, as it leaves them, in order of recording."""
    kept: Iterator[Event | None] = map(change, events)
    return sorted(e for e in kept if e is not None)
