# SPDX-License-Identifier: Apache-2.0
"""One moment of one or several bags: pictures, calibration, the true sweep and the generated one, as far as they are there."""

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..bags.pointclouds import Cloud, cloud_from_message
from ..bags.reader import BagMessage, BagReader
from ..cameras import Rig, View, load_rig
from ..errors import CalibrationError, ConfigError, DataError
from ..evaluate_sources import organised_map
from ..motion import transform
from ..ros.messages import picture_to_rgb, stamp_ns
from ..sensor_fit import fit_sensor
from ..sensors import Sensor, load_sensor
from ..sweep import Sweep
from .contents import CameraTopic, LidarTopic, look_into

_FIT_CLOUDS = 4
_WINDOW_NS = 1_000_000_000  # messages within this of the moment are looked at
_ABSOLUTE_S = 1e8  # larger times are seconds since 1970, smaller ones since the start


@dataclass
class Wanted:
    """What the user asked for; empty is: what is there."""

    cameras: tuple[str, ...] = ()
    rig: str = ""
    frame: str = ""
    generated: str = ""
    truth: str = ""
    truth_sensor: str = ""
    yaw_deg: float = 0.0  # where forward is in the frame of the LiDAR, counter-clockwise from its x axis


@dataclass
class Moment:
    """What is known of one time.

    Attributes:
        images: one per view of ``rig``, RGB uint8; none without a rig.
        notes: what was assumed or left out, a line each.
    """

    stamp_ns: int
    images: list[NDArray] = field(default_factory=list)
    rig: Rig | None = None
    generated: Sweep | None = None
    truth: Sweep | None = None
    notes: list[str] = field(default_factory=list)


class Bags:
    """Bags that belong together, such as a drive and what was generated from it.

    Raises:
        DataError: a bag that cannot be read, or a topic that is not there.
    """

    def __init__(self, paths: Sequence[Path], wanted: Wanted | None = None) -> None:
        self.wanted = wanted or Wanted()
        self.contents = [look_into(path) for path in paths]
        clouds = [(c.path, lidar) for c in self.contents for lidar in c.lidars if not lidar.lacks]
        self.generated = _chosen(self.wanted.generated, clouds, lambda lidar: lidar.generated)
        rest = [pair for pair in clouds if pair != self.generated]
        self.truth = _chosen(self.wanted.truth, rest, lambda lidar: not lidar.generated)
        lidar = self.generated or self.truth
        self.frame = self.wanted.frame or (lidar[1].frame if lidar else "lidar")
        for contents in self.contents:
            contents.place_cameras(self.frame)
        self.cameras = self._cameras()
        self.forward = np.eye(4)  # coordinates of ``frame`` -> the same, x forward
        self.forward[:3, :3] = Rotation.from_euler("z", -self.wanted.yaw_deg, degrees=True).as_matrix()
        self.order: list[str] = []  # names of the cameras, as the rig of the last moment has them

    def _cameras(self) -> list[tuple[Path, CameraTopic]]:
        found = [(c.path, camera) for c in self.contents for camera in c.cameras if camera.size]
        if not self.wanted.cameras:
            first = next((path for path, _ in found), None)
            return [(path, camera) for path, camera in found if path == first]
        by_name = {key: pair for pair in reversed(found) for key in (pair[1].topic, pair[1].name)}
        missing = [
            name for name in self.wanted.cameras if name.lstrip("/") not in by_name and name not in by_name
        ]
        if missing:
            known = ", ".join(camera.topic for _, camera in found) or "none"
            raise DataError(f"no readable camera {', '.join(missing)}; there are {known}")
        return [by_name.get(name) or by_name[name.lstrip("/")] for name in self.wanted.cameras]

    # --- times -----------------------------------------------------------------------------------------------

    def time_ns(self, at_s: float | None) -> int:
        """Header time: ``at_s`` seconds after the start, or since 1970 if large; None is the middle.

        Raises:
            DataError: the bags do not reach that far.
        """
        pairs = [pair for pair in (self.generated, self.truth, *self.cameras) if pair is not None]
        if not pairs:
            raise DataError(
                f"{', '.join(str(c.path) for c in self.contents)}: no cloud and no picture in it; see lidargen info"
            )
        path, topic = pairs[0][0], pairs[0][1].topic
        with BagReader(path) as bag:
            first = next(bag.messages([topic]))
            start = stamp_ns(first.decode().header)
            end = start + bag.end_ns - first.time_ns
        if at_s is None:
            return (start + end) // 2
        at = round(at_s * 1e9) + (0 if at_s > _ABSOLUTE_S else start)
        if not start - _WINDOW_NS <= at <= end + _WINDOW_NS:
            raise DataError(f"--at {at_s:g} lies outside {path}, which lasts {(end - start) / 1e9:.1f} s")
        return at

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Messages of all bags in order of time; of a topic that several bags have, those of the first."""
        with ExitStack() as stack:
            streams, taken = [], set[str]()
            for contents in self.contents:
                bag = stack.enter_context(BagReader(contents.path))
                own = {t for t in bag.topics if t not in taken and (topics is None or t in topics)}
                taken |= own
                streams.append(bag.messages(own))
            yield from heapq.merge(*streams, key=lambda m: m.time_ns)

    def nearest(self, path: Path, topic: str, at_ns: int) -> Any:
        """The message whose header is nearest in time. Raises DataError where none is within a second."""
        with BagReader(path) as bag:
            first = next(bag.messages([topic]))
            offset = first.time_ns - stamp_ns(first.decode().header)
            window = at_ns + offset - _WINDOW_NS, at_ns + offset + _WINDOW_NS
            near = [m.decode() for m in bag.messages([topic], *window)]
        if not near:
            raise DataError(f"{path}: nothing on {topic} within a second of {at_ns} ns")
        return min(near, key=lambda m: abs(stamp_ns(m.header) - at_ns))

    # --- what is there ---------------------------------------------------------------------------------------

    def moment(self, at_s: float | None = None, *, own_rig: Rig | None = None) -> Moment:
        """Everything nearest to a time; ``own_rig`` is a model's, taken where the bags have no calibration."""
        found = Moment(self.time_ns(at_s))
        if self.generated:
            found.generated = self._generated(*self.generated, found)
            found.stamp_ns = found.generated.stamp_ns
        if self.truth:
            found.truth = self._truth(*self.truth, found)
        cameras = self._with_calibration(found, own_rig)
        self.order = [camera.name for _, camera in cameras]
        for path, camera in cameras:
            found.images.append(picture_to_rgb(self.nearest(path, camera.topic, found.stamp_ns)))
        return found

    def _generated(self, path: Path, lidar: LidarTopic, found: Moment) -> Sweep:
        cloud = cloud_from_message(self.nearest(path, lidar.topic, found.stamp_ns), lidar.topic)
        known = lidar.metadata
        sensor = Sensor.from_dict(known["sensor"]) if known else self._fitted(path, lidar, found.notes)
        return Sweep(organised_map(cloud, sensor), sensor, cloud.stamp_ns)

    def _truth(self, path: Path, lidar: LidarTopic, found: Moment) -> Sweep:
        cloud = cloud_from_message(self.nearest(path, lidar.topic, found.stamp_ns), lidar.topic)
        sensor = self._truth_sensor(path, lidar, found.notes)
        return Sweep(organised_map(self._moved(cloud, path, found.notes), sensor), sensor, cloud.stamp_ns)

    def _moved(self, cloud: Cloud, path: Path, notes: list[str]) -> Cloud:
        """The cloud in the frame of the picture; as it is where that is its own."""
        pose = self.forward
        if cloud.frame_id.lstrip("/") != self.frame:
            try:
                pose = pose @ next(c for c in self.contents if c.path == path).tree.fixed(
                    cloud.frame_id, self.frame
                )
            except CalibrationError as e:
                notes.append(f"the true cloud is drawn in its own frame: {e}")
        if np.array_equal(pose, np.eye(4)):
            return cloud
        return replace(cloud, points=transform(cloud.points, pose).astype(np.float32), cell=None)

    def _truth_sensor(self, path: Path, lidar: LidarTopic, notes: list[str]) -> Sensor:
        """The given sensor, that of a ``lidar.yaml`` beside the bag, or one fitted to the first clouds."""
        if self.wanted.truth_sensor:
            return load_sensor(self.wanted.truth_sensor)
        for file in (path / "lidar.yaml", path.parent / "lidar.yaml"):
            if file.is_file() and (sensor := load_sensor(file)).shape == lidar.shape:
                return sensor
        return self._fitted(path, lidar, notes)

    def _fitted(self, path: Path, lidar: LidarTopic, notes: list[str]) -> Sensor:
        """Rows and columns of the first clouds. Raises CalibrationError where none fit; names --truth-sensor."""
        clouds = []
        with BagReader(path) as bag:
            for message in bag.messages([lidar.topic]):
                clouds.append(self._moved(cloud_from_message(message.decode(), lidar.topic), path, []))
                if len(clouds) == _FIT_CLOUDS:
                    break
        try:
            fitted = fit_sensor(clouds, name="fitted").sensor
        except CalibrationError as e:
            raise CalibrationError(f"{lidar.topic}: {e}; name the sensor with --truth-sensor") from e
        if fitted.full_turn:  # as the range maps of the generator run
            fitted = replace(fitted, azimuth_start_deg=180.0, clockwise=True)
        notes.append(f"rows and columns of {lidar.topic} were fitted: {fitted.rows} x {fitted.columns}")
        return fitted

    def _with_calibration(self, found: Moment, own_rig: Rig | None) -> list[tuple[Path, CameraTopic]]:
        """Cameras that have a place in ``found.rig``, in its order."""
        cameras = self.cameras
        if not cameras:
            return []
        if self.wanted.rig:
            return self._by_name_or_place(load_rig(self.wanted.rig), self.wanted.rig, found)
        if self.generated and not self.wanted.cameras:
            metadata = self.generated[1].metadata or {}
            names = [str(name).strip("/") for name in metadata.get("cameras", ())]
            by_name = {camera.name: (path, camera) for path, camera in cameras}
            if names and set(names) <= by_name.keys():
                found.rig = Rig.from_dict(metadata["rig"])
                return [by_name[name] for name in names]
        views, ready = [], []
        for path, camera in cameras:
            if camera.camera is None or camera.camera_to_lidar is None:
                found.notes.append(f"{camera.topic} is left out: {'; '.join(camera.lacks)}")
            else:
                views.append(View(camera.name, camera.camera, self.forward @ camera.camera_to_lidar))
                ready.append((path, camera))
        if views:
            found.rig = Rig(tuple(views), "bag", "CameraInfo and TF")
            return ready
        beside = next(
            (f for p, _ in cameras for f in (p / "rig.yaml", p.parent / "rig.yaml") if f.is_file()), None
        )
        if beside is not None:
            return self._by_name_or_place(load_rig(beside), str(beside), found)
        if own_rig is not None and len(own_rig) == len(cameras):
            found.notes.append(
                "no calibration in the bag: the model's own rig is assumed, in the order of the topics"
            )
            found.rig = own_rig
            return cameras
        return []

    def _by_name_or_place(self, rig: Rig, where: str, found: Moment) -> list[tuple[Path, CameraTopic]]:
        found.rig = rig
        by_name = {camera.name: (path, camera) for path, camera in self.cameras}
        names = [view.name for view in rig]
        if set(names) <= by_name.keys():
            return [by_name[name] for name in names]
        if len(rig) != len(self.cameras):
            raise ConfigError(
                f"rig {where} has {len(rig)} views ({', '.join(names)}), the bag {len(self.cameras)} cameras "
                f"({', '.join(by_name)}); name them with --camera, once for each view, in that order"
            )
        return self.cameras


def _chosen(
    topic: str, clouds: Sequence[tuple[Path, LidarTopic]], fits: Callable[[LidarTopic], bool]
) -> tuple[Path, LidarTopic] | None:
    """The cloud on ``topic``; without a name the first that fits."""
    found = [pair for pair in clouds if (pair[1].topic == topic if topic else fits(pair[1]))]
    if topic and not found:
        known = ", ".join(lidar.topic for _, lidar in clouds) or "none"
        raise DataError(f"no usable cloud on {topic}; there are {known}")
    return found[0] if found else None
