# SPDX-License-Identifier: Apache-2.0
"""Small drives for tests, with every message type that the sample drive has. Simple shapes, no scene generator."""

from pathlib import Path

import cv2
import numpy as np
from rosbags.typesys import get_typestore
from stub_node import rig

from lidargen_ros.bags.reader import STORE
from lidargen_ros.bags.writer import BagWriter
from lidargen_ros.sensors import Sensor

CAMERAS = ("front", "rear_left", "rear_right")
START_NS = 1_700_000_000_000_000_000
LIDAR = Sensor("true", np.linspace(12, -24, 16), columns=180)


def jpeg(level: int, size: tuple[int, int] = (640, 352), seed: int = 0) -> bytes:
    """A picture with a mean red of about ``level``."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 256, (11, 20, 3), np.uint8), size)
    picture[..., 2] = level
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def write_drive(folder: Path, frames: int = 12, period_ns: int = 100_000_000) -> Path:
    """A drive in ``folder``: three JPEG cameras, CameraInfo, /tf_static and a true LiDAR, all in MCAP."""
    store = get_typestore(STORE)

    def make(kind: str, **values):
        return store.types[kind](**values)

    def header(ns: int, frame: str):
        stamp = make("builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)
        return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame)

    fields = [
        make("sensor_msgs/msg/PointField", name=n, offset=o, datatype=7, count=1)
        for n, o in (("x", 0), ("y", 4), ("z", 8), ("intensity", 12))
    ]
    identity = make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    with BagWriter(folder) as bag:

        def write(topic: str, ns: int, message) -> None:
            bag.write(topic, message.__msgtype__, ns, bag.serialize(message))

        for i in range(frames):
            ns = START_NS + i * period_ns
            for seed, name in enumerate(CAMERAS):
                data = np.frombuffer(jpeg(2 * i, seed=seed), np.uint8)
                write(
                    f"/{name}/image/compressed",
                    ns,
                    make(
                        "sensor_msgs/msg/CompressedImage", header=header(ns, name), format="jpeg", data=data
                    ),
                )
            ranges = np.full(LIDAR.shape, 12.0, np.float32)
            ranges[:, ::7] = np.nan
            xyz = LIDAR.directions() * ranges[..., None]
            cloud = np.concatenate([xyz, np.ones_like(xyz[..., :1])], axis=-1).astype(np.float32)
            write(
                "/lidar/points",
                ns,
                make(
                    "sensor_msgs/msg/PointCloud2",
                    header=header(ns, "lidar"),
                    height=LIDAR.rows,
                    width=LIDAR.columns,
                    fields=fields,
                    is_bigendian=False,
                    point_step=16,
                    row_step=16 * LIDAR.columns,
                    data=np.frombuffer(cloud.tobytes(), np.uint8),
                    is_dense=False,
                ),
            )
        transform = make(
            "geometry_msgs/msg/Transform",
            translation=make("geometry_msgs/msg/Vector3", x=1.0, y=0.0, z=0.0),
            rotation=identity,
        )
        static = make(
            "geometry_msgs/msg/TransformStamped",
            header=header(START_NS, "lidar"),
            child_frame_id="front",
            transform=transform,
        )
        bag.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", latched=True)
        write("/tf_static", START_NS, make("tf2_msgs/msg/TFMessage", transforms=[static]))
    rig().save(folder / "rig.yaml")
    import yaml

    (folder / "lidar.yaml").write_text(yaml.safe_dump(LIDAR.to_dict()))
    return folder
