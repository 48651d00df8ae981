# SPDX-License-Identifier: Apache-2.0
"""nuScenes (Caesar et al., CVPR 2020), the folder layout of the downloads::

    v1.0-*/scene.json log.json sample.json sample_data.json sensor.json calibrated_sensor.json ego_pose.json
    samples/CAM_FRONT/*.jpg samples/LIDAR_TOP/*.pcd.bin sweeps/...

Each scene becomes a drive; scenes of one log stay in one split. LIDAR_TOP (HDL-32E, x right, y forward) is
stamped at the end of its turn and motion-compensated to that moment, which is undone here.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.bags.cloud_files import read_cloud
from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import DataError
from lidargen_ros.motion import invert_pose

from ..bag_config import LidarConfig
from ..clouds import CloudReader, forwards
from ..drive import Picture, Track
from ..listed_drive import ListedDrive, picture_rate, read_picture

CAMERAS = ("CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
# Cameras are triggered when the LiDAR sweeps across them, so they differ by up to most of its turn.
OPTIONS = {"camera_tolerance_s": 0.045}
_LIDAR = "LIDAR_TOP"
_TABLES = ("scene", "log", "sample", "sample_data", "sensor", "calibrated_sensor", "ego_pose")
_FIRST_CLOUDS = 5

Row = dict[str, Any]


def drives(path: Path, cameras: Sequence[str] = CAMERAS, sensor: str = "") -> Iterator[ListedDrive]:
    """Scenes of the release in ``path`` (the folder that holds ``v1.0-...`` and ``samples``).

    Raises:
        DataError: no tables there, a damaged table, or a file missing.
    """
    versions = sorted(p.parent for p in path.glob("v1.0-*/sample_data.json"))
    if len(versions) != 1:
        raise DataError(f"{path}: {len(versions)} folders v1.0-*/ with tables; expected one")
    tables = {name: _table(versions[0] / f"{name}.json") for name in _TABLES}
    config = LidarConfig(sensor=sensor, yaw_deg=90.0, deskewed="stamp", stamp_at="end", spin_time_s=0.05)
    try:
        by_scene: dict[str, list[Row]] = defaultdict(list)
        for row in tables["sample_data"].values():
            by_scene[tables["sample"][row["sample_token"]]["scene_token"]].append(row)
        for token, scene in tables["scene"].items():
            rows = sorted(by_scene[token], key=lambda row: row["timestamp"])
            yield _drive(path, scene, rows, tables, cameras, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{versions[0]}: tables do not fit together ({error!r}); download them again"
        ) from error


def _table(path: Path) -> dict[str, Row]:
    """Rows by token."""
    try:
        return {row["token"]: row for row in json.loads(path.read_text())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a table of nuScenes ({error!r})") from error


def _pose(row: Row) -> NDArray:
    """[4, 4] of a row with translation and rotation (w, x, y, z)."""
    w, x, y, z = row["rotation"]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat([x, y, z, w]).as_matrix(), row["translation"]
    return pose


def _drive(
    root: Path,
    scene: Row,
    rows: list[Row],
    tables: dict[str, dict[str, Row]],
    cameras: Sequence[str],
    config: LidarConfig,
) -> ListedDrive:
    name = scene["name"]
    calibrated = {row["token"]: tables["calibrated_sensor"][row["calibrated_sensor_token"]] for row in rows}
    channel = {t: tables["sensor"][c["sensor_token"]]["channel"] for t, c in calibrated.items()}
    sweeps = [row for row in rows if channel[row["token"]] == _LIDAR]
    if not sweeps:
        raise DataError(f"{root}: scene {name} has no {_LIDAR}")
    lidar_in_ego = _pose(calibrated[sweeps[0]["token"]])
    turned = forwards(config.yaw_deg)

    views, pictures = {}, []
    for camera in cameras:
        images = [row for row in rows if channel[row["token"]] == camera]
        if not images:
            raise DataError(f"{root}: scene {name} has no {camera}")
        first = calibrated[images[0]["token"]]
        k = np.array(first["camera_intrinsic"], np.float64).reshape(3, 3)
        model = PinholeCamera(
            images[0]["width"], images[0]["height"], k[0, 0], k[1, 1], k[0, 2], k[1, 2], name=camera
        )
        views[camera] = View(camera, model, turned @ invert_pose(lidar_in_ego) @ _pose(first))
        pictures += [
            Picture(camera, row["timestamp"], partial(read_picture, root / row["filename"])) for row in images
        ]
    pictures.sort(key=lambda picture: picture.time_us)

    # Every picture and sweep has the ego pose of its own time: together they are a dense track.
    known = {row["timestamp"]: _pose(tables["ego_pose"][row["ego_pose_token"]]) for row in rows}
    times = sorted(known)
    track = Track(times, np.stack([known[t] for t in times]) @ lidar_in_ego @ invert_pose(turned))

    clouds = [(row["timestamp"], partial(_cloud, root / row["filename"], row["timestamp"])) for row in sweeps]
    notes: list[str] = []
    reader = CloudReader([load() for _, load in clouds[:_FIRST_CLOUDS]], config, turned, notes)
    log = tables["log"][scene["log_token"]]["logfile"] or scene["log_token"]
    fps = picture_rate(pictures, cameras[0])
    return ListedDrive(name, log, views, fps, track, clouds, reader, pictures, notes=notes)


def _cloud(path: Path, stamp_us: int) -> Cloud:
    return replace(read_cloud(path), stamp_ns=stamp_us * 1000)
