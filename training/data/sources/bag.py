# SPDX-License-Identifier: Apache-2.0
"""A rosbag (ROS 2 mcap or sqlite3, ROS 1) as a drive.

The bag is read piece by piece in its own recording time, so memory does not grow with its length. Everything is
put together by header stamps; recording times only choose what is read.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidargen_ros.bags.message_types import CLOUD, COMPRESSED, ODOMETRY, RAW, TF
from lidargen_ros.bags.pointclouds import Cloud, cloud_from_message
from lidargen_ros.bags.reader import BagMessage, BagReader, header_stamp_ns
from lidargen_ros.bags.transforms import FrameTree, add_tf, pose_matrix
from lidargen_ros.cameras.convert import camera_from_info
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import CalibrationError, DataError, InputError, LidargenError
from lidargen_ros.motion import invert_pose
from lidargen_ros.ros.messages import picture_to_rgb, stamp_ns

from ..bag_config import BagConfig, CameraConfig
from ..clouds import CloudReader, forwards
from ..drive import Picture, Spin, Track
from ..recut import Recut

_POSES = (
    ODOMETRY,
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
)
_MARGIN_NS = 2_000_000_000  # read around each piece: transport delays, partners of the outermost spins
_FIRST_CLOUDS = 8
# Columns: forward, left and up of a camera in its optical axes (REP-103).
_OPTICAL_FROM_FLU = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def drives(path: Path, config: BagConfig) -> Iterator["BagDrive"]:
    """The drive of one bag: a rosbag2 folder, one of its files, or a ROS 1 ``.bag``."""
    with BagReader(path) as reader:
        yield BagDrive(reader, config)


class BagDrive:
    """See :class:`training.data.drive.Drive`.

    Attributes:
        notes: what was assumed, for the summary.

    Raises:
        DataError, CalibrationError: a topic that is not there, no CameraInfo, no transform between the sensors.
    """

    def __init__(self, reader: BagReader, config: BagConfig) -> None:
        self._reader, self._config = reader, config
        self.name = self.group = reader.path.resolve().stem
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []
        self._cloud_topic = self._topic(config.lidar.topic, (CLOUD,), "lidar.topic")
        self._cameras = {
            self._topic(camera.topic, (RAW, COMPRESSED), f"cameras.{name}.topic"): name
            for name, camera in config.cameras.items()
        }
        if len(self._cameras) != len(config.cameras):
            raise DataError(f"bag {reader.path}: two cameras have the same topic; give each its own")
        self._tf = [t.name for t in reader.topics.values() if t.msgtype in TF and not _is_static(t.name)]
        self._tree = self._static_tree()
        first = self._first_clouds()
        self._lidar_frame = first[0].frame_id
        self._first_ns = next(self._messages([self._cloud_topic])).time_ns
        if self._tf:  # robot models of ROS 1 repeat fixed transforms on /tf
            self._add_motion(self._tree, self._first_ns, self._first_ns + _MARGIN_NS, self._tf)
        self._motion = self._motion_topics()
        self._turned = forwards(config.lidar.yaw_deg)
        self._clouds = CloudReader(first, config.lidar, self._turned, self.notes)
        self.sensor = self._clouds.sensor
        self.views = {name: self._view(topic, name) for topic, name in self._cameras.items()}
        self.fps = self._rate(next(iter(self._cameras)))

    # --- the bag ---------------------------------------------------------------------------------------------

    def _topic(self, given: str, types: Sequence[str], key: str) -> str:
        """A topic of one of these types: the given one, else the only one."""
        fitting = [t.name for t in self._reader.topics.values() if t.msgtype in types]
        if given in fitting:
            return given
        if not given and len(fitting) == 1:
            return fitting[0]
        kinds = " or ".join(kind.rpartition("/")[2] for kind in types)
        asked = (
            f"{given!r} is no topic of type {kinds}"
            if given
            else f"has {len(fitting)} topics of type {kinds}"
        )
        raise DataError(
            f"bag {self._reader.path}: {asked}; set {key} to one of {', '.join(fitting) or 'none'}"
        )

    def _messages(
        self, topics: Sequence[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[BagMessage]:
        return self._reader.messages(topics, start, stop)

    def _static_tree(self) -> FrameTree:
        tree = FrameTree()
        static = [t.name for t in self._reader.topics.values() if t.msgtype in TF and _is_static(t.name)]
        for message in self._messages(static) if static else ():
            add_tf(tree, message.decode().transforms, fixed=True)
        return tree

    def _first_clouds(self) -> list[Cloud]:
        clouds: list[Cloud] = []
        for message in self._messages([self._cloud_topic]):
            try:
                cloud = cloud_from_message(
                    message.decode(), self._cloud_topic, self._config.lidar.time_unit_s
                )
            except (DataError, InputError):
                continue  # counted when the pieces are read
            if len(cloud):
                clouds.append(cloud)
            if len(clouds) == _FIRST_CLOUDS:
                break
        if not clouds:
            raise DataError(f"bag {self._reader.path}: no cloud with points on {self._cloud_topic}")
        return clouds

    def _rate(self, topic: str) -> float:
        """Pictures per second, from the first stamps."""
        stamps = []
        for message in self._messages([topic]):
            stamps.append(_stamp(message))
            if len(stamps) == 40:
                break
        gaps = np.diff(sorted(stamps))
        gaps = gaps[gaps > 0]
        if not len(gaps):
            raise DataError(
                f"bag {self._reader.path}: {topic} has fewer than two pictures with different stamps"
            )
        rate = 1e9 / float(np.median(gaps))
        return float(round(rate)) if abs(rate - round(rate)) < 0.05 * rate and rate > 2 else round(rate, 2)

    # --- calibration -----------------------------------------------------------------------------------------

    def _view(self, topic: str, name: str) -> View:
        given = self._config.cameras[name]
        info = next(self._messages([given.info]), None) if given.info in self._reader.topics else None
        if info is None:
            raise CalibrationError(f"{name}: no CameraInfo on {given.info}; set cameras.{name}.info_topic")
        message = info.decode()
        camera = camera_from_info(message, name, given.rectified)
        frame = given.frame_id or message.header.frame_id
        return View(name, camera, self._turned @ self._camera_to_lidar(given, frame))

    def _camera_to_lidar(self, given: CameraConfig, frame: str) -> NDArray:
        if given.camera_to_lidar:
            pose = np.array(given.camera_to_lidar).reshape(4, 4)
        else:
            pose = self._tree.fixed(frame, self._lidar_frame)
        return pose @ invert_pose(_OPTICAL_FROM_FLU) if given.axes == "flu" else pose

    # --- motion ----------------------------------------------------------------------------------------------

    def _motion_topics(self) -> list[str]:
        given = self._config.motion
        if given.stationary:
            return []
        poses = [self._topic(given.topic, _POSES, "motion.topic")] if given.topic else []
        if not poses and not self._tf:
            raise DataError(
                f"bag {self._reader.path}: no /tf and no motion.topic; give a topic of poses, or "
                "motion.stationary=true"
            )
        return [*poses, *self._tf]

    def _add_motion(self, tree: FrameTree, start: int, stop: int, topics: Sequence[str]) -> str:
        """Add the moving transforms recorded in start..stop; returns the fixed frame named by pose messages."""
        fixed_frame = ""
        for message in self._messages(topics, start, stop):
            decoded = message.decode()
            if message.msgtype in TF:
                add_tf(tree, decoded.transforms, fixed=False)
                continue
            fixed_frame = decoded.header.frame_id
            child = getattr(decoded, "child_frame_id", "") or self._config.motion.child_frame
            if not child:
                raise CalibrationError(
                    f"{message.topic}: the message does not say what moves; set motion.child_frame (base_link)"
                )
            pose = decoded.pose if message.msgtype == _POSES[1] else decoded.pose.pose
            matrix = pose_matrix(pose.position, pose.orientation, message.topic)
            tree.add_moving(fixed_frame, child, stamp_ns(decoded.header), matrix)
        return fixed_frame

    def _track(self, start: int, stop: int) -> Track:
        motion = self._config.motion
        if motion.stationary:
            first = next(self._messages([self._cloud_topic], start, stop), None)
            offset = 0 if first is None else _stamp(first) - first.time_ns
            times = np.arange(start - _MARGIN_NS, stop + _MARGIN_NS, 10**8) + offset
            return Track(times // 1000, np.tile(np.eye(4), (len(times), 1, 1)))
        tree = self._tree.copy()
        named = self._add_motion(tree, start - _MARGIN_NS, stop + _MARGIN_NS, self._motion)
        fixed = motion.fixed_frame or named or next((f for f in ("odom", "map") if f in tree.frames), "")
        if not fixed:
            raise DataError(f"bag {self._reader.path}: no frame odom or map in tf; set motion.fixed_frame")
        times, poses = tree.track(self._lidar_frame, fixed)
        times_us, unique = np.unique(times // 1000, return_index=True)
        return Track(times_us, poses[unique] @ invert_pose(self._turned))

    # --- events ----------------------------------------------------------------------------------------------

    def windows(self, length_s: float) -> list[tuple[int, int]]:
        """Pieces in microseconds of recording time, from the first cloud on."""
        length, end = round(length_s * 1e6), self._reader.end_ns // 1000 + 1
        begin = self._first_ns // 1000
        return [(start, min(start + length, end)) for start in range(begin, end, length)]

    def read(self, window: tuple[int, int]) -> tuple[Track, Iterator[Spin | Picture]]:
        """See :class:`training.data.drive.Drive`."""
        start, stop = window[0] * 1000, window[1] * 1000
        track = self._track(start, stop)
        return track, self._events(start, stop, track)

    def _events(self, start: int, stop: int, track: Track) -> Iterator[Spin | Picture]:
        recut, held = Recut(self.sensor), None
        for message in self._messages(
            [self._cloud_topic, *self._cameras], start - _MARGIN_NS, stop + _MARGIN_NS
        ):
            if message.topic in self._cameras:
                yield self._picture(message)
                continue
            # A turn begins in the cloud before and ends where the next one starts: two more are read.
            if message.time_ns < start - round(2.5e9 * self.sensor.spin_time_s) or (
                held is not None and held[1] >= stop
            ):
                continue
            cloud = self._cloud(message)
            if cloud is None:
                continue
            if held is not None:
                yield from self._turn(recut, *held, self._clouds.start_us(cloud), (start, stop), track)
            held = cloud, message.time_ns
        if held is not None and held[1] < stop:
            yield from self._turn(recut, *held, None, (start, stop), track)
        self._count(recut.dropped)
        if self._reader.damage and self._reader.damage not in self.notes:
            self.notes.append(self._reader.damage)

    def _cloud(self, message: BagMessage) -> Cloud | None:
        try:
            cloud = cloud_from_message(message.decode(), message.topic, self._config.lidar.time_unit_s)
        except (DataError, InputError) as error:
            self._refuse(f"cloud cannot be read: {error}", error)
            return None
        if not len(cloud):
            self._refuse("empty cloud", DataError(f"{message.topic} at {message.time_ns} ns: empty cloud"))
            return None
        return cloud

    def _turn(
        self,
        recut: Recut,
        cloud: Cloud,
        time_ns: int,
        next_start_us: int | None,
        window: tuple[int, int],
        track: Track,
    ) -> Iterator[Spin]:
        """The turn completed by a cloud, if it was recorded within the window."""
        try:
            turn = recut.add(*self._clouds.turn(cloud, next_start_us, track))
        except DataError as error:
            if window[0] <= time_ns < window[1]:
                self._refuse(str(error), error)
            return
        if turn is not None and window[0] <= time_ns < window[1]:
            yield turn

    def _picture(self, message: BagMessage) -> Picture:
        def load() -> NDArray:
            return picture_to_rgb(message.decode())

        return Picture(self._cameras[message.topic], _stamp(message) // 1000, load)

    def _refuse(self, reason: str, error: LidargenError) -> None:
        if self._config.clips.strict:
            raise error
        self._count({reason: 1})

    def _count(self, reasons: dict[str, int]) -> None:
        for reason, count in reasons.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count


def _is_static(topic: str) -> bool:
    return topic.endswith("tf_static")


def _stamp(message: BagMessage) -> int:
    """Nanoseconds of the header, without decoding the message."""
    if message.ros1:  # sequence number, seconds, nanoseconds
        if len(message.raw) < 12:
            raise DataError(f"{message.topic} at {message.time_ns} ns: too short for a header")
        seconds, nanoseconds = struct.unpack_from("<II", message.raw, 4)
        return int(seconds * 1_000_000_000 + nanoseconds)
    return header_stamp_ns(message.raw)
