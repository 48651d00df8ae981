# SPDX-License-Identifier: Apache-2.0
"""What is to be done with one bag, decided before anything is: cameras, calibration, topics, slices."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...cameras.rig import Rig
from ...errors import ConfigError, DataError
from ..reader import BagReader, Topic
from ..writer import LATCHED, RELIABLE, known_topic
from .cameras import bag_rig, camera_topics
from .models import ModelInfo
from .options import METADATA, OUTPUTS, Options

# Parameters of the node that change what is written.
_MATTER = (
    *("steps", "seed", "return_threshold", "cameras", "rectified", "max_image_pixels", "image_transport"),
    *("sync_tolerance", "sync_wait", "min_cameras", "frame_id", "point_type", "organised", "point_time"),
    *("return_probability", "min_range", "max_range", "range_encoding"),
)


@dataclass(frozen=True)
class Plan:
    """One bag.

    Attributes:
        name: of the bag that is made.
        cameras: topic -> camera, the reference first.
        start_ns, end_ns: recording time of the first message, and just after the last.
        frames: pictures of the reference camera.
        indexed: see :attr:`.BagReader.indexed`.
        topics: of the bag that is made; the channels of its parts count them from 1.
        made: how many of them are new.
        notes: what was assumed or left out.
    """

    bag: Path
    name: str
    options: Options
    info: ModelInfo
    rig: Rig
    cameras: dict[str, str]
    start_ns: int
    end_ns: int
    frames: int
    indexed: bool
    topics: tuple[Topic, ...]
    made: int
    notes: tuple[str, ...]

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.slice_of(self.end_ns - 1) + 1

    def slice_of(self, time_ns: int) -> int:
        """Number of the slice that holds a recording time."""
        return max(0, time_ns - self.start_ns) // round(self.options.slice_s * 1e9)

    def begin(self, index: int) -> int:
        """Recording time at which a slice begins."""
        return self.start_ns + index * round(self.options.slice_s * 1e9)

    @property
    def channels(self) -> dict[str, int]:
        """Channel of each topic."""
        return {topic.name: i for i, topic in enumerate(self.topics, 1)}

    def recipe(self) -> dict[str, Any]:
        """Everything that the written bytes depend on, as plain values."""
        s, options = self.options.settings, self.options
        return {
            **{name: getattr(s, name) for name in _MATTER},
            "cameras": list(s.cameras),
            "model": self.info.about,
            "rig": hashlib.sha256(json.dumps(self.rig.to_dict()).encode()).hexdigest(),
            "outputs": [options.topic(o) for o in options.outputs],
            "merge": options.merge,
            "slice_s": options.slice_s,
            "input": [
                [p.name, p.stat().st_size, p.stat().st_mtime_ns]
                for p in (sorted(self.bag.iterdir()) if self.bag.is_dir() else [self.bag])
                if p.is_file()
            ],
        }


@dataclass(frozen=True)
class Job:
    """Slices of one bag for one worker, in order; of a bag without index all of them, for it is read only once."""

    plan: Plan
    slices: tuple[int, ...]


def jobs(plan: Plan, done: Collection[int]) -> list[Job]:
    """The work that is left."""
    left = tuple(i for i in range(plan.slices) if i not in done)
    if not plan.indexed:
        return [Job(plan, left)] if left else []
    return [Job(plan, (i,)) for i in left]


def bag_name(path: Path) -> str:
    """Name of the bag that is made from ``path``: a folder's name, a file's without suffix."""
    path = path.resolve()
    return path.stem if path.is_file() else path.name


def make_plan(path: Path, options: Options, info: ModelInfo) -> Plan:
    """Look into a bag and decide.

    Raises:
        LidargenError: it is no bag, is empty, has no such cameras, or its calibration cannot be used.
    """
    with BagReader(path) as bag:
        if not any(topic.count for topic in bag.topics.values()):
            raise DataError(f"bag {path} holds no messages; nothing to do")
        cameras = camera_topics(bag, options.settings)
        rig = bag_rig(bag, info.rig, cameras, options.settings)
        new = [_output(output, options) for output in options.outputs]
        kept, notes = _originals(bag) if options.merge else ([], [])
        if taken := {t.name for t in new} & {t.name for t in kept}:
            raise ConfigError(
                f"bag {path} has a topic {min(taken)} already; give the new ones a place of their own, such as "
                "--namespace lidargen"
            )
        return Plan(
            bag=path,
            name=bag_name(path),
            options=options,
            info=info,
            rig=rig,
            cameras=cameras,
            start_ns=bag.start_ns,
            end_ns=bag.end_ns,
            frames=bag.topics[next(iter(cameras))].count,
            indexed=bag.indexed,
            topics=(*new, *kept),
            made=len(new),
            notes=tuple(notes),
        )


def _output(output: str, options: Options) -> Topic:
    return known_topic(options.topic(output), OUTPUTS[output], [LATCHED if output == METADATA else RELIABLE])


def _originals(bag: BagReader) -> tuple[list[Topic], list[str]]:
    """Topics that are taken over, and a note on each that cannot be."""
    kept, notes = [], []
    for topic in bag.topics.values():
        there = bag.for_ros2(topic)
        if there is None:
            notes.append(f"{topic.name} is left out: its type {topic.msgtype} cannot be converted to ROS 2")
            continue
        qos = topic.qos or ((LATCHED,) if topic.latched else ())
        kept.append(replace(there, qos=qos, count=0))
    return kept, notes
