# SPDX-License-Identifier: Apache-2.0
"""Pairs of generated and true sweeps, from a folder of npz files or from a bag that holds both topics."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .bags.message_types import CLOUD, RAW
from .bags.pointclouds import Cloud, cloud_from_message
from .errors import DataError, InputError
from .projection import points_to_range_map
from .sensors import Sensor, load_sensor

_WAITING = 100  # sweeps of one topic that may wait for the other, 10 s at 10 Hz


@dataclass
class SweepPairs:
    """Sweeps to compare; lists run in parallel, maps are ``[rows, columns]`` metres, 0 = no return.

    Attributes:
        returns: mask or probability of each generated sweep; None where its map says it.
        previous: the true sweep before each true one, None where there is none.
        poses: ``[4, 4]`` sensor-to-world of each pair, or empty.
        samples: per pair ``[K, rows, columns]`` generated ranges of the same moment, or empty.
        intensities: per pair (generated, true), or empty.
        tokenizer: per pair what a tokenizer alone makes of the truth, or empty.
        counts: what was found and what was left out.
    """

    sensor: Sensor
    truth_sensor: Sensor
    generated: list[NDArray] = field(default_factory=list)
    returns: list[NDArray | None] = field(default_factory=list)
    true: list[NDArray] = field(default_factory=list)
    previous: list[NDArray | None] = field(default_factory=list)
    poses: list[NDArray] = field(default_factory=list)
    samples: list[NDArray] = field(default_factory=list)
    intensities: list[tuple[NDArray, NDArray]] = field(default_factory=list)
    tokenizer: list[NDArray] = field(default_factory=list)
    seen: NDArray | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[NDArray, NDArray | None, NDArray]]:
        return zip(self.generated, self.returns, self.true, strict=True)


def place_of_pairs(source: Path) -> Path:
    """Where the pairs of ``source`` lie: in ``evaluation/`` of a training run, else in the bag or folder itself.

    Raises:
        DataError: it does not exist, or is a run without them.
    """
    if (source / "evaluation").is_dir():
        return source / "evaluation"
    if (source / "config.yaml").is_file():
        raise DataError(
            f"{source}: a training run whose sweeps are not written yet; first run python -m training.evaluate {source}"
        )
    if not source.exists():
        raise DataError(f"{source} does not exist; give a bag, a folder of npz pairs, or a training run")
    return source


def pairs_from_folder(folder: Path, sensor: Sensor, truth_sensor: Sensor, limit: int = 300) -> SweepPairs:
    """Pairs from ``*.npz`` in order of their names.

    Each file holds ``generated`` and ``true`` range maps; optionally ``returns`` (bool, or probability),
    ``pose`` (4 x 4, sensor to world), ``samples`` (K generated maps), ``intensity`` and ``true_intensity``,
    ``tokenizer`` (what a tokenizer alone makes of the truth), ``previous`` (the true sweep before, empty where there
    is none; without it that is the one of the file before).
    ``seen.npy`` (bool, ``[rows, columns]``) marks rays that some camera sees. ``sensor.yaml`` and
    ``truth_sensor.yaml``, where present, come before the arguments.

    Raises:
        DataError: no npz file, or one that cannot be read or lacks a map.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"{folder}: no .npz file; each pair is a file with `generated` and `true` range maps")
    own = folder / "sensor.yaml"
    sensor = load_sensor(own) if own.is_file() else sensor
    theirs = folder / "truth_sensor.yaml"
    truth_sensor = load_sensor(theirs) if theirs.is_file() else sensor if own.is_file() else truth_sensor
    found = SweepPairs(sensor, truth_sensor)
    before: NDArray | None = None
    step = -(-len(files) // limit)
    for number, path in enumerate(files):
        if number % step and number % step != step - 1:
            continue  # neither compared nor the sweep before one that is
        arrays = _read_npz(path)
        if number % step == 0:
            found.generated.append(arrays["generated"])
            found.returns.append(arrays.get("returns"))
            found.true.append(arrays["true"])
            given = arrays.get("previous", before)
            found.previous.append(given if given is not None and given.size else None)
            if "pose" in arrays:
                found.poses.append(arrays["pose"])
            if "samples" in arrays:
                found.samples.append(arrays["samples"])
            if "intensity" in arrays and "true_intensity" in arrays:
                found.intensities.append((arrays["intensity"], arrays["true_intensity"]))
            if "tokenizer" in arrays:
                found.tokenizer.append(arrays["tokenizer"])
        before = arrays["true"]
    found.seen = np.load(folder / "seen.npy").astype(bool) if (folder / "seen.npy").is_file() else None
    found.counts = {"pairs_found": len(files), "pairs_compared": len(found.true)}
    return found


def true_maps_from_folder(folder: Path, limit: int = 300) -> list[NDArray]:
    """The ``true`` maps of at most ``limit`` npz files, evenly spread. Raises DataError where there is none."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"{folder}: no .npz file with a `true` range map")
    return [_read_npz(path, ("true",))["true"] for path in files[:: -(-len(files) // limit)]]


def pairs_from_bag(
    bag: Path,
    generated_topic: str,
    truth_topic: str,
    sensor: Sensor,
    truth_sensor: Sensor,
    *,
    tolerance_s: float = 0.055,
    limit: int = 300,
    progress: Callable[[float], None] = lambda share: None,
) -> SweepPairs:
    """Pairs of the generated and the true topic of a ROS 1 or ROS 2 bag, matched by header stamp.

    Generated: PointCloud2 (organised as the sensor, or any) or a range image 32FC1. Truth: PointCloud2.
    Clouds in different frames are brought together through /tf_static. At most ``limit`` pairs are kept,
    evenly spread.

    Raises:
        DataError: the bag cannot be read, or lacks a topic. InputError: a message cannot be used.
    """
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag2 import ReaderError
    from rosbags.typesys import Stores, get_typestore

    found = SweepPairs(sensor, truth_sensor)
    try:
        with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
            topics = {c.topic: c for c in reader.connections}
            for name, option, kinds in (
                (generated_topic, "--generated", (CLOUD, RAW)),
                (truth_topic, "--truth", (CLOUD,)),
            ):
                if name not in topics or topics[name].msgtype not in kinds:
                    usable = [t for t, c in topics.items() if c.msgtype in kinds]
                    raise DataError(
                        f"{bag}: no topic {name} of {' or '.join(kinds)}; give one of {usable} with {option}"
                    )
            matcher = _Matcher(found, tolerance_s, -(-topics[truth_topic].msgcount // limit))
            wanted = [
                c for c in reader.connections if c.topic in (generated_topic, truth_topic, "/tf_static")
            ]
            span = max(1, reader.end_time - reader.start_time)
            for connection, received, raw in reader.messages(connections=wanted):
                message: Any = reader.deserialize(raw, connection.msgtype)
                progress((received - reader.start_time) / span)
                if connection.topic == "/tf_static":
                    matcher.add_transforms(message)
                elif connection.topic == generated_topic:
                    matcher.add_generated(message, connection.msgtype)
                else:
                    matcher.add_true(message)
            matcher.finish()
    except (AnyReaderError, ReaderError, OSError, UnicodeDecodeError, OverflowError) as e:
        raise DataError(f"{bag}: {e}; give a rosbag2 folder, an .mcap or .db3 file, or a ROS 1 .bag") from e
    if not found.true:
        raise DataError(
            f"{bag}: {generated_topic} and {truth_topic} have no stamps within {tolerance_s * 1e3:.0f} ms of "
            "one another; check that both use the cameras' clock, or raise --tolerance"
        )
    return found


class _Matcher:
    """Joins the two topics: each true sweep with the generated one nearest in time."""

    def __init__(self, found: SweepPairs, tolerance_s: float, step: int) -> None:
        self.found, self.tolerance_ns, self.step = found, round(tolerance_s * 1e9), max(1, step)
        self.generated: deque[tuple[int, str, NDArray]] = deque(maxlen=_WAITING)  # stamp, frame, map
        self.true: deque[tuple[Cloud, Cloud | None]] = deque()  # with the one before
        self.last: Cloud | None = None
        self.parents: dict[str, tuple[str, NDArray]] = {}  # child -> (parent, child to parent)
        names = ("generated_found", "true_found", "true_without_generated", "pairs_compared")
        found.counts = dict.fromkeys(names, 0)

    def add_transforms(self, message: Any) -> None:
        for item in message.transforms:
            t, q = item.transform.translation, item.transform.rotation
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
            pose[:3, 3] = t.x, t.y, t.z
            self.parents[item.child_frame_id] = (item.header.frame_id, pose)

    def add_generated(self, message: Any, kind: str) -> None:
        if kind == RAW:
            range_map = _range_image(message, self.found.sensor)
        else:
            cloud = cloud_from_message(message, "generated cloud")
            range_map = organised_map(cloud, self.found.sensor)
        self.generated.append((_stamp_ns(message), message.header.frame_id, range_map))
        self.found.counts["generated_found"] += 1
        while self.true and self.true[0][0].stamp_ns + self.tolerance_ns < self.generated[-1][0]:
            self._match(*self.true.popleft())

    def add_true(self, message: Any) -> None:
        cloud = cloud_from_message(message, "true cloud")
        if self.found.counts["true_found"] % self.step == 0:
            self.true.append((cloud, self.last))
        self.last = cloud
        self.found.counts["true_found"] += 1
        if len(self.true) > _WAITING:
            self._match(*self.true.popleft())

    def finish(self) -> None:
        while self.true:
            self._match(*self.true.popleft())

    def _match(self, cloud: Cloud, before: Cloud | None) -> None:
        near = min(self.generated, key=lambda g: abs(g[0] - cloud.stamp_ns), default=None)
        if near is None or abs(near[0] - cloud.stamp_ns) > self.tolerance_ns:
            self.found.counts["true_without_generated"] += 1
            return
        _, frame, range_map = near
        self.found.generated.append(range_map)
        self.found.returns.append(None)
        self.found.true.append(self._true_map(cloud, frame))
        self.found.previous.append(None if before is None else self._true_map(before, frame))
        self.found.counts["pairs_compared"] += 1

    def _true_map(self, cloud: Cloud, frame: str) -> NDArray:
        points = cloud.points
        if frame != cloud.frame_id:
            motion = np.linalg.solve(
                self._to_root(frame, cloud.frame_id), self._to_root(cloud.frame_id, frame)
            )
            points = points @ motion[:3, :3].T + motion[:3, 3]
        return points_to_range_map(points, self.found.truth_sensor)[0]

    def _to_root(self, frame: str, other: str) -> NDArray:
        """``[4, 4]`` from the frame to the root of its tree, if the other frame hangs on the same root."""
        poses, roots = [], []
        for name in (frame, other):
            pose, seen = np.eye(4), {name}
            while name in self.parents:
                name, step = self.parents[name]
                pose = step @ pose
                if name in seen:
                    raise DataError(f"/tf_static goes in a circle at frame {name!r}; correct the recording")
                seen.add(name)
            poses.append(pose)
            roots.append(name)
        if roots[0] != roots[1]:
            raise DataError(
                f"/tf_static does not connect the frames {frame!r} and {other!r} of the two clouds; record it, "
                "or publish both clouds in one frame"
            )
        return poses[0]


def organised_map(cloud: Cloud, sensor: Sensor) -> NDArray:
    """Range map of a generated cloud: cell by cell where it is organised as the sensor, else by direction."""
    if cloud.cell is None or cloud.shape != sensor.shape:
        return points_to_range_map(cloud.points, sensor)[0]
    range_map = np.zeros(sensor.shape, np.float32)
    range_map[cloud.cell[:, 0], cloud.cell[:, 1]] = np.linalg.norm(cloud.points, axis=1)
    return range_map


def _range_image(message: Any, sensor: Sensor) -> NDArray:
    if message.encoding != "32FC1" or (message.height, message.width) != sensor.shape:
        raise InputError(
            f"range image is {message.height} x {message.width} {message.encoding}; expected 32FC1 of the sensor's "
            f"{sensor.rows} x {sensor.columns}: give the sensor that made it with --sensor"
        )
    order = ">f4" if message.is_bigendian else "<f4"
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    ranges = np.ascontiguousarray(rows[:, : 4 * message.width]).view(order).astype(np.float32)
    return np.where(np.isfinite(ranges), ranges, np.float32(0))


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _read_npz(path: Path, needed: tuple[str, ...] = ("generated", "true")) -> dict[str, NDArray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile) as e:
        raise DataError(
            f"{path}: not a readable npz file ({' '.join(str(e).split())}); write it again"
        ) from e
    if missing := set(needed) - arrays.keys():
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; it holds {sorted(arrays)}")
    return arrays
