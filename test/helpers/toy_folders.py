# SPDX-License-Identifier: Apache-2.0
"""The toy world in the folder layouts of nuScenes, PandaSet and KITTI raw."""

import gzip
import json
from dataclasses import dataclass, field
from datetime import datetime, timezone

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from toy_world import ToyWorld

from lidargen_ros.motion import invert_pose, transform

T0_US = 1_600_000_000_000_000
SIDEWAYS = np.eye(4)  # LiDAR frame with x right and y forward, in the frame with x forward
SIDEWAYS[:3, :3] = Rotation.from_euler("z", -90, degrees=True).as_matrix()
EARTH_M = 6378137.0


def quaternion(pose):
    """w, x, y, z."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return [float(v) for v in (w, x, y, z)]


def save(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])


@dataclass
class NuScenes:
    """One log with two scenes of ``seconds``; LIDAR_TOP de-skewed to the end of its turn, cameras staggered."""

    world: ToyWorld
    seconds: float = 1.0
    camera_hz: float = 12.0
    scenes: int = 2
    tables: dict = field(default_factory=dict)

    def write(self, root):
        names = ("scene", "log", "sample", "sample_data", "sensor", "calibrated_sensor", "ego_pose")
        self.tables = {name: [] for name in names}
        self.root = root
        self._add("log", token="log0", logfile="n015-toy", vehicle="x", date_captured="", location="")
        channels = ("LIDAR_TOP", "CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
        sensor_poses = [
            self.world.lidar_in_body @ SIDEWAYS,
            *(self.world.camera_in_body(i) for i in range(3)),
        ]
        c = self.world.camera()
        k = [[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]]
        for channel, pose in zip(channels, sensor_poses, strict=True):
            kind = "lidar" if channel.startswith("LIDAR") else "camera"
            self._add("sensor", token=f"s{channel}", channel=channel, modality=kind)
            self._add(
                "calibrated_sensor", token=f"c{channel}", sensor_token=f"s{channel}", rotation=quaternion(pose),
                translation=pose[:3, 3].tolist(), camera_intrinsic=k if kind == "camera" else [],
            )  # fmt: skip
        for number in range(self.scenes):
            begin = number * (self.seconds + 1.0)
            scene, sample = f"scene{number}", f"sample{number}"
            self._add("scene", token=scene, name=f"scene-{number:04d}", log_token="log0", nbr_samples=1)
            self._add("sample", token=sample, scene_token=scene, timestamp=T0_US + round(begin * 1e6))
            turn = self.world.sensor.spin_time_s
            for n in range(round(self.seconds / turn)):
                self._sweep(sample, begin + n * turn, n)
            for i, channel in enumerate(channels[1:]):
                for n in range(round(self.seconds * self.camera_hz)):
                    t = begin + n / self.camera_hz + 0.01 * i
                    self._image(sample, channel, i, t, n)
        for name, rows in self.tables.items():
            path = root / "v1.0-mini" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))
        return root

    def _add(self, table, **row):
        self.tables[table].append(row)

    def _data(self, sample, channel, t, file, **more):
        token = f"{channel}{t:.6f}"
        pose = self.world.body(t)
        self._add("ego_pose", token=f"e{token}", timestamp=T0_US + round(t * 1e6), rotation=quaternion(pose),
                  translation=pose[:3, 3].tolist())  # fmt: skip
        self._add(
            "sample_data", token=token, sample_token=sample, ego_pose_token=f"e{token}", filename=file, **more,
            calibrated_sensor_token=f"c{channel}", timestamp=T0_US + round(t * 1e6), is_key_frame=False, prev="", next="",
        )  # fmt: skip

    def _sweep(self, sample, start, n):
        end = start + self.world.sensor.spin_time_s
        points, rows, _ = self.world.cloud(start, deskewed=True)
        at_end = invert_pose(self.world.body(end) @ self.world.lidar_in_body) @ self.world.body(start)
        points = transform(points, SIDEWAYS.T @ at_end @ self.world.lidar_in_body)
        table = np.zeros((len(points), 5), np.float32)
        table[:, :3], table[:, 3] = points, 100
        table[:, 4] = self.world.sensor.rows - 1 - rows
        folder = "samples" if n % 10 == 0 else "sweeps"
        file = f"{folder}/LIDAR_TOP/toy__{T0_US + round(end * 1e6)}.pcd.bin"
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        table.tofile(self.root / file)
        self._data(sample, "LIDAR_TOP", end, file, fileformat="pcd")

    def _image(self, sample, channel, i, t, n):
        folder = "samples" if n % 6 == 0 else "sweeps"
        file = f"{folder}/{channel}/toy__{T0_US + round(t * 1e6)}.jpg"
        save(self.root / file, self.world.picture(i, t))
        more = {"width": self.world.width, "height": self.world.height}
        self._data(sample, channel, t, file, fileformat="jpg", **more)


def write_pandaset(root, world, frames=8):
    """One sequence ``root/001``; needs pandas."""
    import pandas as pd

    folder = root / "001"
    names = ("front_camera", "left_camera", "right_camera")
    turn = world.sensor.spin_time_s

    def heading(pose):
        w, x, y, z = quaternion(pose)
        px, py, pz = (float(v) for v in pose[:3, 3])
        return {"position": {"x": px, "y": py, "z": pz}, "heading": {"w": w, "x": x, "y": y, "z": z}}

    def put(place, name, data):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(data))

    starts = [n * turn for n in range(frames)]
    lidar = folder / "lidar"
    put(lidar, "timestamps.json", [T0_US * 1e-6 + t for t in starts])
    put(lidar, "poses.json", [heading(world.body(t) @ world.lidar_in_body @ SIDEWAYS) for t in starts])
    for n, start in enumerate(starts):
        points, _, times = world.cloud(start, deskewed=True)
        xyz = transform(points, world.body(start) @ world.lidar_in_body)
        table = pd.DataFrame(xyz, columns=["x", "y", "z"])
        table["i"], table["t"], table["d"] = 100.0, T0_US * 1e-6 + start + times, 0
        other = table.iloc[:50].assign(d=1, x=0.0)  # the second, forward-looking LiDAR
        with gzip.open(lidar / f"{n:02d}.pkl.gz", "wb") as file:
            pd.concat([table, other]).to_pickle(file, compression=None)
    c = world.camera()
    for i, name in enumerate(names):
        place = folder / "camera" / name
        put(place, "intrinsics.json", {"fx": c.fx, "fy": c.fy, "cx": c.cx, "cy": c.cy})
        put(place, "timestamps.json", [T0_US * 1e-6 + t for t in starts])
        put(place, "poses.json", [heading(world.body(t) @ world.camera_in_body(i)) for t in starts])
        for n, t in enumerate(starts):
            save(place / f"{n:02d}.jpg", world.picture(i, t))
    return root


def write_kitti(root, world, frames=8):
    """``root/2011_09_26/2011_09_26_drive_0001_sync`` with one camera."""
    day = root / "2011_09_26"
    drive = day / "2011_09_26_drive_0001_sync"
    turn = world.sensor.spin_time_s
    starts = [n * turn for n in range(frames)]

    def stamp(t):
        us = T0_US + round(t * 1e6)
        whole = datetime.fromtimestamp(us // 10**6, timezone.utc)
        return f"{whole:%Y-%m-%d %H:%M:%S}.{us % 10**6:06d}000"

    def lines(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows))

    c = world.camera()
    camera_in_lidar = invert_pose(world.lidar_in_body) @ world.camera_in_body(0)
    shift = np.eye(4)
    shift[:3, 3] = 0.06, 0.001, 0.003  # image_02 beside camera 0
    rectify = np.eye(4)
    rectify[:3, :3] = Rotation.from_rotvec([0.01, -0.02, 0.005]).as_matrix()
    velo_to_cam = invert_pose(rectify) @ invert_pose(shift) @ invert_pose(camera_in_lidar)
    k = np.array([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]])
    imu_in_body = np.eye(4)
    imu_in_body[:3, 3] = -0.3, 0.1, 0.9
    imu_to_velo = invert_pose(world.lidar_in_body) @ imu_in_body

    def numbers(array):
        return " ".join(f"{v:.12e}" for v in np.ravel(array))

    def rigid(pose):
        return [f"R: {numbers(pose[:3, :3])}", f"T: {numbers(pose[:3, 3])}"]

    lines(day / "calib_velo_to_cam.txt", ["calib_time: 15-Mar-2012 11:37:16", *rigid(velo_to_cam)])
    lines(day / "calib_imu_to_velo.txt", ["calib_time: 25-May-2012 16:47:16", *rigid(imu_to_velo)])
    projection = np.concatenate([k, (k @ shift[:3, 3])[:, None]], axis=1)
    lines(day / "calib_cam_to_cam.txt", [
        "calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02",
        f"R_rect_00: {numbers(rectify[:3, :3])}", f"P_rect_02: {numbers(projection)}",
    ])  # fmt: skip
    velodyne = drive / "velodyne_points"
    lines(velodyne / "timestamps_start.txt", map(stamp, starts))
    lines(velodyne / "timestamps.txt", [stamp(t + turn / 2) for t in starts])
    lines(velodyne / "timestamps_end.txt", [stamp(t + turn) for t in starts])
    lines(drive / "image_02" / "timestamps.txt", map(stamp, starts))
    lines(drive / "oxts" / "timestamps.txt", map(stamp, starts))
    scale = np.cos(np.deg2rad(49.0))
    north = scale * EARTH_M * np.log(np.tan(np.pi * (90 + 49.0) / 360))
    for n, t in enumerate(starts):
        points, rows, _ = world.cloud(t)
        table = np.concatenate([points, np.full((len(points), 1), 0.5, np.float32)], axis=1)
        (velodyne / "data").mkdir(parents=True, exist_ok=True)
        table[np.argsort(rows, kind="stable")].astype("<f4").tofile(velodyne / "data" / f"{n:010d}.bin")
        save(drive / "image_02" / "data" / f"{n:010d}.png", world.picture(0, t))
        pose = world.body(t) @ imu_in_body
        east, y, up = pose[:3, 3] - (world.body(0) @ imu_in_body)[:3, 3]
        lat = 360 / np.pi * np.arctan(np.exp((north + y) / (scale * EARTH_M))) - 90
        lon = np.rad2deg(east / (scale * EARTH_M))
        yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")
        row = [lat, lon, up, roll, pitch, yaw, *np.zeros(19), 4, 10, 4, 4, 0]
        lines(drive / "oxts" / "data" / f"{n:010d}.txt", [" ".join(f"{v:.14g}" for v in row)])
    return root
