# SPDX-License-Identifier: Apache-2.0
"""Records the toy world into bags: ROS 2 (mcap, sqlite3) and ROS 1, clouds in the layouts of several drivers."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation
from toy_world import ToyWorld

START_NS = 1_712_345_678_000_000_000
CAMERAS = ("front", "rear_left", "rear_right")
CODES = {"u1": 2, "u2": 4, "u4": 6, "f4": 7, "f8": 8}
CLOUDS = {
    "velodyne": (22, [("intensity", "f4", 12), ("ring", "u2", 16), ("time", "f4", 18)]),
    "ouster": (
        48,
        [("intensity", "f4", 16), ("t", "u4", 20), ("reflectivity", "u2", 24), ("ring", "u2", 26)],
    ),
    "hesai": (48, [("intensity", "f4", 16), ("timestamp", "f8", 24), ("ring", "u2", 32)]),
    "xyzirc": (16, [("intensity", "u1", 12), ("return_type", "u1", 13), ("channel", "u2", 14)]),
    "xyz": (12, []),
}


@dataclass
class ToyBag:
    """Options of a recording; ``write`` makes it."""

    world: ToyWorld = field(default_factory=ToyWorld)
    seconds: float = 1.5
    picture_hz: float = 20.0
    odometry_hz: float = 50.0
    cloud: str = "velodyne"
    deskewed: bool = False
    compressed: bool = True
    motion: str = "odometry"  # odometry | tf | pose | none
    rings_from_below: bool = True  # ring 0 is the lowest beam, as Velodyne counts
    skip_pictures: tuple = ()  # (camera index, picture number)
    skip_clouds: tuple = ()
    corrupt_pictures: tuple = ()  # (camera index, picture number)
    log_offset_ns: int = 0  # recording time minus header time
    camera_delay_s: float = 0.0  # of the rear cameras' stamps
    static_tf: bool = True
    camera_info: bool = True

    def write(self, path, kind="mcap"):
        """Write to ``path`` (a folder for ROS 2, a file for ROS 1) as ``mcap``, ``sqlite3`` or ``ros1``."""
        ros1 = kind == "ros1"
        self.store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
        self.ros1 = ros1
        if ros1:  # not among the messages that the store knows
            text = "geometry_msgs/TransformStamped[] transforms"
            self.store.register(get_types_from_msg(text, "tf2_msgs/msg/TFMessage"))
        events = sorted(self._events(), key=lambda event: event[0])
        plugin = StoragePlugin.SQLITE3 if kind == "sqlite3" else StoragePlugin.MCAP
        path = Path(path)
        writer = Writer1(path) if ros1 else Writer2(path, version=8, storage_plugin=plugin)
        with writer:
            connections = {}
            for time_ns, topic, message in events:
                name = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, name, typestore=self.store)
                dump = self.store.serialize_ros1 if ros1 else self.store.serialize_cdr
                writer.write(connections[topic], time_ns + self.log_offset_ns, dump(message, name))
        return path

    def _make(self, kind, /, **values):
        return self.store.types[kind](**values)

    def _header(self, t, frame):
        stamp_ns = START_NS + round(t * 1e9)
        stamp = self._make("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        extra = {"seq": 0} if self.ros1 else {}
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=frame, **extra)

    def _events(self):
        yield from self._motion()
        if self.static_tf:
            yield START_NS, "/tf_static", self._static()
        for k in range(round(self.seconds / self.world.sensor.spin_time_s)):
            if k not in self.skip_clouds:
                start = k * self.world.sensor.spin_time_s
                arrives = START_NS + round((start + self.world.sensor.spin_time_s) * 1e9)
                yield arrives, "/lidar/points", self._cloud(start)
        for i, camera in enumerate(CAMERAS):
            for k in range(round(self.seconds * self.picture_hz)):
                if (i, k) in self.skip_pictures:
                    continue
                t = k / self.picture_hz + (self.camera_delay_s if i else 0.0)
                now = START_NS + round((t + 0.02) * 1e9)
                topic = f"/camera/{camera}/image_raw"
                if self.camera_info:
                    yield now, f"/camera/{camera}/camera_info", self._info(t, camera)
                yield now + 1000, topic + ("/compressed" if self.compressed else ""), self._picture(i, k, t)

    def _motion(self):
        if self.motion == "none":
            return
        for k in range(round((self.seconds + 0.1) * self.odometry_hz)):
            t = k / self.odometry_hz
            now = START_NS + round(t * 1e9)
            pose = self.world.body(t)
            if self.motion == "tf":
                message = self._make(
                    "tf2_msgs/msg/TFMessage", transforms=[self._tf(t, "odom", "base_link", pose)]
                )
                yield now, "/tf", message
            elif self.motion == "pose":
                header = self._header(t, "map")
                yield (
                    now,
                    "/pose",
                    self._make("geometry_msgs/msg/PoseStamped", header=header, pose=self._pose(pose)),
                )
            else:
                yield now, "/odom", self._odometry(t, pose)

    def _xyz(self, name, values):
        return self._make(name, x=float(values[0]), y=float(values[1]), z=float(values[2]))

    def _quaternion(self, pose):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        return self._make("geometry_msgs/msg/Quaternion", x=float(x), y=float(y), z=float(z), w=float(w))

    def _pose(self, pose):
        return self._make(
            "geometry_msgs/msg/Pose",
            position=self._xyz("geometry_msgs/msg/Point", pose[:3, 3]),
            orientation=self._quaternion(pose),
        )

    def _odometry(self, t, pose):
        zero = self._xyz("geometry_msgs/msg/Vector3", (0, 0, 0))
        return self._make(
            "nav_msgs/msg/Odometry",
            header=self._header(t, "odom"),
            child_frame_id="base_link",
            pose=self._make(
                "geometry_msgs/msg/PoseWithCovariance", pose=self._pose(pose), covariance=np.zeros(36)
            ),
            twist=self._make(
                "geometry_msgs/msg/TwistWithCovariance",
                twist=self._make("geometry_msgs/msg/Twist", linear=zero, angular=zero),
                covariance=np.zeros(36),
            ),
        )

    def _tf(self, t, parent, child, pose):
        return self._make(
            "geometry_msgs/msg/TransformStamped",
            header=self._header(t, parent),
            child_frame_id=child,
            transform=self._make(
                "geometry_msgs/msg/Transform",
                translation=self._xyz("geometry_msgs/msg/Vector3", pose[:3, 3]),
                rotation=self._quaternion(pose),
            ),
        )

    def _static(self):
        transforms = [self._tf(0, "base_link", "lidar", self.world.lidar_in_body)]
        for i, camera in enumerate(CAMERAS):
            transforms.append(self._tf(0, "base_link", f"{camera}_optical", self.world.camera_in_body(i)))
        return self._make("tf2_msgs/msg/TFMessage", transforms=transforms)

    def _cloud(self, start):
        points, rows, times = self.world.cloud(start, self.deskewed, seed=round(start * 1000))
        step, extra = CLOUDS[self.cloud]
        table = [("x", "f4", 0), ("y", "f4", 4), ("z", "f4", 8), *extra]
        dtype = np.dtype(
            {
                "names": [n for n, _, _ in table],
                "formats": ["<" + k for _, k, _ in table],
                "offsets": [o for _, _, o in table],
                "itemsize": step,
            }
        )
        data = np.zeros(len(points), dtype)
        data["x"], data["y"], data["z"] = points.T
        ring = self.world.sensor.rows - 1 - rows if self.rings_from_below else rows
        stamp_s = START_NS / 1e9 + start
        for name, values in {
            "intensity": 100 + rows,
            "ring": ring,
            "channel": ring,
            "time": times,
            "t": times * 1e9,
            "timestamp": stamp_s + times,
        }.items():
            if name in dtype.names:
                data[name] = values
        field_type = "sensor_msgs/msg/PointField"
        return self._make(
            "sensor_msgs/msg/PointCloud2",
            header=self._header(start, "lidar"),
            height=1,
            width=len(points),
            fields=[
                self._make(field_type, name=n, offset=o, datatype=CODES[k], count=1) for n, k, o in table
            ],
            is_bigendian=False,
            point_step=step,
            row_step=step * len(points),
            data=data.view(np.uint8).reshape(-1).copy() if len(points) else np.zeros(0, np.uint8),
            is_dense=True,
        )

    def _picture(self, index, number, t):
        rgb = self.world.picture(index, t)
        header = self._header(t, f"{CAMERAS[index]}_optical")
        if self.compressed:
            data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].reshape(-1)
            if (index, number) in self.corrupt_pictures:
                data = data[: len(data) // 2]
            return self._make("sensor_msgs/msg/CompressedImage", header=header, format="jpeg", data=data)
        return self._make(
            "sensor_msgs/msg/Image",
            header=header,
            height=rgb.shape[0],
            width=rgb.shape[1],
            encoding="rgb8",
            is_bigendian=0,
            step=rgb.shape[1] * 3,
            data=rgb.reshape(-1),
        )

    def _info(self, t, camera):
        c = self.world.camera()
        k = np.array([c.fx, 0, c.cx, 0, c.fy, c.cy, 0, 0, 1.0])
        p = np.array([c.fx, 0, c.cx, 0, 0, c.fy, c.cy, 0, 0, 0, 1.0, 0])
        names = ("D", "K", "R", "P") if self.ros1 else ("d", "k", "r", "p")
        arrays = dict(zip(names, (np.zeros(5), k, np.eye(3).ravel(), p), strict=True))
        roi = self._make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._make(
            "sensor_msgs/msg/CameraInfo",
            header=self._header(t, f"{camera}_optical"),
            height=c.height,
            width=c.width,
            distortion_model="plumb_bob",
            binning_x=0,
            binning_y=0,
            roi=roi,
            **arrays,
        )


CONFIG = """
cameras:
  camera_front_wide_120fov: {topic: /camera/front/image_raw/compressed}
  camera_rear_left_70fov: {topic: /camera/rear_left/image_raw/compressed}
  camera_rear_right_70fov: {topic: /camera/rear_right/image_raw/compressed}
motion: {topic: /odom}
"""
