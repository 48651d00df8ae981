# SPDX-License-Identifier: Apache-2.0
"""KITTI raw data (Geiger et al., IJRR 2013), the folder layout of the "synced+rectified" downloads::

    2011_09_26/calib_cam_to_cam.txt calib_velo_to_cam.txt calib_imu_to_velo.txt
    2011_09_26/2011_09_26_drive_0001_sync/image_02/{timestamps.txt,data/*.png}
                                          velodyne_points/{timestamps*.txt,data/*.bin}
                                          oxts/{timestamps.txt,data/*.txt}

Clouds are as measured (not motion-compensated); the scanner turns counter-clockwise and passes the front half
way through a scan. Pictures are rectified. Rows come from the nominal HDL-64E table by elevation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.bags.cloud_files import read_cloud
from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import DataError
from lidargen_ros.motion import invert_pose
from lidargen_ros.sensors import load_sensor

from ..bag_config import LidarConfig
from ..clouds import CloudReader
from ..drive import Picture, Track
from ..listed_drive import ListedDrive, picture_rate, read_picture

CAMERAS = ("image_02",)
_EARTH_M = 6378137.0


def drives(path: Path, cameras: Sequence[str] = CAMERAS, sensor: str = "") -> Iterator[ListedDrive]:
    """Drives below ``path``: one drive folder, a day, or a folder of days.

    Raises:
        DataError: no drive there, or a file missing or damaged.
    """
    found = sorted(p.parent for p in path.glob("**/velodyne_points") if p.parent.name.endswith("_sync"))
    if not found:
        raise DataError(f"{path}: no folder *_drive_*_sync with velodyne_points; is this KITTI raw, synced?")
    for folder in found:
        yield _drive(folder, cameras, LidarConfig(sensor=sensor))


def _drive(folder: Path, cameras: Sequence[str], config: LidarConfig) -> ListedDrive:
    calibration = _calibration(folder.parent)
    velodyne = folder / "velodyne_points"
    begins, ends = (_times_ns(velodyne / f"timestamps_{name}.txt") for name in ("start", "end"))
    files = _files(velodyne / "data", "bin", len(begins))
    clouds = [(int(t // 1000), partial(_cloud, f, int(t))) for f, t in zip(files, begins, strict=True)]
    turn_s = float(np.median(ends - begins)) * 1e-9
    if config.sensor:
        sensor = replace(load_sensor(config.sensor), spin_time_s=turn_s)
    else:  # counter-clockwise from straight back, so that the front comes half way through
        nominal = load_sensor("hdl64e")
        sensor = replace(nominal, clockwise=False, azimuth_start_deg=180.0, spin_time_s=turn_s)
    notes = [f"rows are told by elevation from the nominal table of {sensor.name!r}"]
    reader = CloudReader([clouds[0][1]()], config, np.eye(4), notes, sensor, cut=0.0)
    pictures: list[Picture] = []
    views = {}
    for name in cameras:
        times = _times_ns(folder / name / "timestamps.txt")
        images = _files(folder / name / "data", "png", len(times))
        pictures += [
            Picture(name, int(t // 1000), partial(read_picture, f))
            for f, t in zip(images, times, strict=True)
        ]
        height, width = read_picture(images[0]).shape[:2]
        views[name] = _view(name, calibration, width, height)
    pictures.sort(key=lambda p: p.time_us)
    return ListedDrive(
        name=folder.name,
        group=folder.name,
        views=views,
        fps=picture_rate(pictures, cameras[0]),
        track=_track(folder / "oxts", calibration),
        clouds=clouds,
        reader=reader,
        pictures=pictures,
        notes=notes,
    )


def _cloud(path: Path, stamp_ns: int) -> Cloud:
    return replace(read_cloud(path), stamp_ns=stamp_ns)


def _files(folder: Path, suffix: str, count: int) -> list[Path]:
    """Files numbered 0000000000 and so on. Frames may be missing from KITTI drives: their times then are too."""
    files = sorted(folder.glob(f"*.{suffix}"))
    if len(files) != count or not files:
        raise DataError(
            f"{folder}: {len(files)} {suffix} files for {count} times; the download is incomplete"
        )
    return files


def _times_ns(path: Path) -> NDArray:
    """[N] int64 nanoseconds; KITTI writes local time with nine decimals, taken as UTC."""
    try:
        lines = path.read_text().split("\n")
        times = []
        for line in filter(None, (line.strip() for line in lines)):
            day, _, fraction = line.partition(".")
            moment = datetime.strptime(day, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
            times.append(int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0")[:9]))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no list of times ({error})") from error
    return np.array(times, np.int64)


def _calibration(day: Path) -> dict[str, NDArray]:
    """Numbers of the three calibration files, by their names (``velo_R``, ``imu_T``, ``P_rect_02``)."""
    values: dict[str, NDArray] = {}
    for file, prefix in (("velo_to_cam", "velo_"), ("imu_to_velo", "imu_"), ("cam_to_cam", "")):
        path = day / f"calib_{file}.txt"
        try:
            for line in path.read_text().splitlines():
                key, _, numbers = line.partition(":")
                if key not in ("calib_time", "corner_dist") and numbers.strip():
                    values[prefix + key] = np.array(numbers.split(), np.float64)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no calibration ({error})") from error
    return values


def _pose(rotation: NDArray, translation: NDArray) -> NDArray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.reshape(3, 3), translation
    return pose


def _view(name: str, calibration: dict[str, NDArray], width: int, height: int) -> View:
    number = name.removeprefix("image_")
    try:
        p = calibration[f"P_rect_{number}"].reshape(3, 4)
        rectify = _pose(calibration["R_rect_00"], np.zeros(3))
        velo_to_cam = _pose(calibration["velo_R"], calibration["velo_T"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{name}: calibration lacks {error}") from error
    # P = K [I | t]: the camera sits at -t in the rectified frame of camera 0.
    shift = _pose(np.eye(3), np.linalg.solve(p[:, :3], p[:, 3]))
    camera = PinholeCamera(width, height, p[0, 0], p[1, 1], p[0, 2], p[1, 2], name=name)
    return View(name, camera, invert_pose(shift @ rectify @ velo_to_cam))


def _track(folder: Path, calibration: dict[str, NDArray]) -> Track:
    """LiDAR poses from the GPS/IMU unit, on a Mercator plane scaled at the first latitude (KITTI devkit)."""
    times = _times_ns(folder / "timestamps.txt")
    files = _files(folder / "data", "txt", len(times))
    lidar_in_imu = invert_pose(_pose(calibration["imu_R"], calibration["imu_T"]))
    poses, scale = [], None
    for file in files:
        try:
            lat, lon, alt, roll, pitch, yaw = np.array(file.read_text().split()[:6], np.float64)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: no position ({error})") from error
        scale = np.cos(np.deg2rad(lat)) if scale is None else scale
        east = scale * _EARTH_M * np.deg2rad(lon)
        north = scale * _EARTH_M * np.log(np.tan(np.pi * (90 + lat) / 360))
        rotation = Rotation.from_euler("ZYX", (yaw, pitch, roll)).as_matrix()
        poses.append(_pose(rotation, np.array([east, north, alt])) @ lidar_in_imu)
    return Track(times // 1000, np.stack(poses))
