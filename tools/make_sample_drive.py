# SPDX-License-Identifier: Apache-2.0
"""Renders ``samples/sample_drive``: five seconds of a synthetic street as a rosbag2 folder, with its calibration beside.

    python tools/make_sample_drive.py [--out samples/sample_drive]

Three f-theta cameras (the published rig) and the LiDAR that they are to replace, thinned. Everything is synthetic.
"""

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rosbags.typesys import get_typestore
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.bags.reader import STORE
from lidargen_ros.bags.salvage import zstd
from lidargen_ros.bags.writer import BagWriter
from lidargen_ros.cameras import Camera, FisheyeCamera, Rig, load_rig
from lidargen_ros.sensors import Sensor, load_sensor
from training.scenes.render import (
    advance,
    fit_rig,
    make_worlds,
    render_cameras,
    render_lidar,
    rig_rays,
    sample_ego,
)  # fmt: skip
from training.scenes.seeds import SAMPLE_DRIVE_SEED
from training.scenes.world import height

WIDTH, HEIGHT = 640, 352
FRAMES, RATE_HZ = 50, 10
START_S = -2.5  # the ego vehicle passes the middle of its world halfway through
FIRST_STAMP_NS = 1_700_000_000_000_000_000
TOPICS = ("front", "rear_left", "rear_right")
ROWS, COLUMNS = slice(3, None, 4), slice(3, None, 8)  # kept of 128 x 1800
STEPS_PER_M = 64  # coordinates are rounded to 1.6 cm, so that zstd packs them; the noise is 2 cm

types = get_typestore(STORE).types


def thinned(sensor: Sensor) -> Sensor:
    """The sensor whose ray centres are those of the kept rows and columns of ``sensor``."""
    step = COLUMNS.step * 360.0 / sensor.columns
    first_centre = sensor.azimuth_start_deg - (COLUMNS.start + 0.5) * 360.0 / sensor.columns
    return Sensor(
        name=f"{sensor.name}_thinned",
        elevations_deg=sensor.elevations_deg[ROWS],
        columns=len(range(*COLUMNS.indices(sensor.columns))),
        azimuth_start_deg=first_centre + 0.5 * step,
        max_range_m=sensor.max_range_m,
        source=f"every 4th row and 8th column of {sensor.name} (128 x 1800); synthetic, all rays at the stamp of the message",
    )


def equidistant(camera: Camera) -> tuple[FisheyeCamera, float]:
    """The equidistant fisheye nearest to a lens that is round about its axis, and the largest error in pixels."""
    centre = camera.project(np.array([0.0, 0.0, 1.0]))[0]
    corners = np.array([[x, y] for x in (0, camera.width - 1) for y in (0, camera.height - 1)])
    far = corners[np.linalg.norm(corners - centre, axis=1).argmax()]
    pixels = centre + np.linspace(0.0, 1.0, 400)[1:, None] * (far - centre)
    rays = camera.rays(pixels)
    angle, radius = (
        np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2]),
        np.linalg.norm(pixels - centre, axis=1),
    )
    powers = angle[:, None] ** np.array([1, 3, 5, 7, 9])
    k = np.linalg.lstsq(powers, radius, rcond=None)[0]
    d = tuple(float(x) for x in k[1:] / k[0])
    f, (cx, cy) = float(k[0]), map(float, centre)
    fitted = FisheyeCamera(camera.width, camera.height, f, f, cx, cy, d)
    grid = np.stack(np.meshgrid(np.arange(0, camera.width, 8), np.arange(0, camera.height, 8)), -1)
    error = np.linalg.norm(fitted.project(camera.rays(grid))[0] - grid, axis=-1)
    return fitted, float(error.max())


def _time(ns: int) -> Any:
    return types["builtin_interfaces/msg/Time"](sec=ns // 10**9, nanosec=ns % 10**9)


def _header(ns: int, frame: str) -> Any:
    return types["std_msgs/msg/Header"](stamp=_time(ns), frame_id=frame)


def image_message(ns: int, frame: str, rgb: NDArray, quality: int) -> Any:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)[1]
    return types["sensor_msgs/msg/CompressedImage"](
        header=_header(ns, frame), format="rgb8; jpeg compressed bgr8", data=jpeg.ravel()
    )


def info_message(ns: int, frame: str, camera: FisheyeCamera) -> Any:
    k = np.array([[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]])
    region = types["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return types["sensor_msgs/msg/CameraInfo"](
        header=_header(ns, frame), height=camera.height, width=camera.width, distortion_model="equidistant",
        d=np.array(camera.distortion), k=k.ravel(), r=np.eye(3).ravel(), p=np.hstack([k, np.zeros((3, 1))]).ravel(),
        binning_x=0, binning_y=0, roi=region,
    )  # fmt: skip


def cloud_message(ns: int, ranges: NDArray, intensity: NDArray, directions: NDArray) -> Any:
    """Organised cloud, NaN = no return; ``directions`` ``[rows, columns, 3]``."""
    rows, columns = ranges.shape
    data = np.empty((rows, columns, 4), np.float32)
    points = np.where(ranges > 0, ranges, np.nan)[..., None] * directions
    data[..., :3] = np.round(points * STEPS_PER_M) / STEPS_PER_M + 0.0  # no negative zeros
    data[..., 3] = np.round(intensity * 32) / 32
    field = types["sensor_msgs/msg/PointField"]
    return types["sensor_msgs/msg/PointCloud2"](
        header=_header(ns, "lidar"), height=rows, width=columns,
        fields=[field(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate(("x", "y", "z", "intensity"))],
        is_bigendian=False, point_step=16, row_step=16 * columns, data=np.frombuffer(data.tobytes(), np.uint8), is_dense=False,
    )  # fmt: skip


def transform(ns: int, parent: str, child: str, pose: NDArray) -> Any:
    """Pose of ``child`` in ``parent``, 4x4."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return types["geometry_msgs/msg/TransformStamped"](
        header=_header(ns, parent), child_frame_id=child,
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](*map(float, pose[:3, 3])),
            rotation=types["geometry_msgs/msg/Quaternion"](*map(float, (x, y, z, w))),
        ),
    )  # fmt: skip


def render(sensor: Sensor, rig: Rig, compiled: bool):
    """Yields (lidar pose 4x4 in the world, images ``[3, H, W, 3]``, ranges, intensity) for every frame."""
    worlds = make_worlds(torch.tensor([SAMPLE_DRIVE_SEED]))
    ego = sample_ego(worlds, worlds.seeds)
    rays = rig_rays(rig, HEIGHT, WIDTH)
    directions = torch.tensor(sensor.directions())
    for k in range(FRAMES):
        t = START_S + k / RATE_HZ
        world, there = worlds.at(t), advance(worlds, ego, t)
        images = render_cameras(world, *rays, there, seed=k, compiled=compiled)[0].numpy()
        sweep = render_lidar(
            world, directions, there, seed=k, compiled=compiled, max_range=sensor.max_range_m
        )
        yield there.matrix()[0].numpy(), images, sweep["range"][0].numpy(), sweep["intensity"][0].numpy()


def mount_height() -> float:
    """Height of the LiDAR above the ground, metres."""
    worlds = make_worlds(torch.tensor([SAMPLE_DRIVE_SEED]))
    position = sample_ego(worlds, worlds.seeds).position
    return float(position[0, 2] - height(worlds.ground, position[:, 0], position[:, 1])[0])


def write(folder: Path, quality: int, compiled: bool) -> list[str]:
    """Writes bag and calibration; returns lines that describe the fit of the camera models."""
    full = load_sensor("pandar128")
    sensor = thinned(full)
    np.testing.assert_allclose(sensor.directions(), full.directions()[ROWS, COLUMNS], atol=1e-6)
    rig = fit_rig(load_rig("published"), HEIGHT, WIDTH)
    fits = [equidistant(view.camera) for view in rig]
    down = np.eye(4)
    down[2, 3] = mount_height()
    with BagWriter(folder) as bag:
        bag._writer.storage.compressor = partial(zstd.compress, level=19)  # written once, cloned often

        def put(topic: str, ns: int, message: Any) -> None:
            bag.write(topic, message.__msgtype__, ns, bag.serialize(message))

        bag.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", latched=True)
        frames = [f"{name}_optical" for name in TOPICS]
        static = [transform(FIRST_STAMP_NS, "base_link", "lidar", down)]
        static += [
            transform(FIRST_STAMP_NS, "lidar", f, v.camera_to_lidar) for f, v in zip(frames, rig, strict=True)
        ]
        put("/tf_static", FIRST_STAMP_NS, types["tf2_msgs/msg/TFMessage"](transforms=static))
        start = None
        for k, (pose, images, ranges, intensity) in enumerate(render(sensor, rig, compiled)):
            ns = FIRST_STAMP_NS + k * 10**9 // RATE_HZ
            for name, frame, (camera, _), image in zip(TOPICS, frames, fits, images, strict=True):
                put(f"/{name}/camera_info", ns, info_message(ns, frame, camera))
                put(f"/{name}/image/compressed", ns, image_message(ns, frame, image, quality))
            put("/lidar/points", ns, cloud_message(ns, ranges, intensity, sensor.directions()))
            base = pose.astype(np.float64) @ np.linalg.inv(down)
            start = base if start is None else start
            moving = transform(ns, "odom", "base_link", np.linalg.inv(start) @ base)
            put("/tf", ns, types["tf2_msgs/msg/TFMessage"](transforms=[moving]))
            print(f"\r{k + 1}/{FRAMES}", end="", flush=True)
    print()
    rig.save(folder / "rig.yaml")
    (folder / "lidar.yaml").write_text(
        yaml.safe_dump(sensor.to_dict(), sort_keys=False, default_flow_style=None, width=120)
    )
    return [
        f"{n}: equidistant model within {e:.2f} px of the f-theta lens"
        for n, (_, e) in zip(TOPICS, fits, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("samples/sample_drive"))
    parser.add_argument("--quality", type=int, default=68, help="of the JPEG images")
    parser.add_argument("--eager", action="store_true", help="do not compile (slower, needs no C++ compiler)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / args.out.name
        print("\n".join(write(folder, args.quality, not args.eager)))
        args.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            shutil.copyfile(path, args.out / path.name)
    total = sum(p.stat().st_size for p in args.out.iterdir())
    print(f"{args.out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
