# SPDX-License-Identifier: Apache-2.0
"""PandaSet (Xiao et al., ITSC 2021), the folder layout of the download::

    001/lidar/{00.pkl.gz ...,poses.json,timestamps.json}
    001/camera/front_camera/{00.jpg ...,intrinsics.json,poses.json,timestamps.json}

Points are in world coordinates with a time each (columns x y z i t d; d = 0 is the spinning Pandar64), from which
the measurement of each ray is recovered. Frames are ten per second, x right, y forward, z up for the LiDAR.
The clouds are pickled tables: only the classes that such a table needs are ever loaded.
"""

import gzip
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.bags.archives import MIB
from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import DataError
from lidargen_ros.motion import invert_pose

from ..bag_config import LidarConfig
from ..clouds import CloudReader, forwards
from ..drive import Picture, Track
from ..listed_drive import ListedDrive, picture_rate, read_picture

CAMERAS = ("front_camera", "left_camera", "right_camera")
OPTIONS = {"camera_tolerance_s": 0.05}
_MAX_TABLE_BYTES = 256 * MIB
_FIRST_CLOUDS = 5
# What pandas 0.25 to 3 put into a pickled table of numbers. Nothing here runs code of the file's choosing.
_ALLOWED = {
    "builtins": {"slice"},
    "copyreg": {"_reconstructor"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas": {"DataFrame", "Index", "RangeIndex", "StringDtype"},
    "pandas.arrays": {"StringArray"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    "pandas.core.indexes.numeric": {"Int64Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.internals.managers": {"BlockManager"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas.core.arrays.string_": {"StringArray", "StringDtype"},
    "pandas.core.arrays.string_arrow": {"ArrowStringArray"},
}


def drives(path: Path, cameras: Sequence[str] = CAMERAS, sensor: str = "") -> Iterator[ListedDrive]:
    """Sequences below ``path``, or the one that ``path`` is.

    Raises:
        DataError: no sequence there, a file missing or damaged, pandas not installed.
    """
    folders = (
        [path] if (path / "lidar").is_dir() else sorted(p.parent for p in path.glob("*/lidar") if p.is_dir())
    )
    if not folders:
        raise DataError(f"{path}: no folder with lidar/ and camera/; is this PandaSet?")
    for folder in folders:
        try:
            yield _drive(folder, cameras, LidarConfig(sensor=sensor, yaw_deg=90.0, spin_time_s=0.1))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{folder}: files do not fit together ({error!r}); download them again"
            ) from error


def _drive(folder: Path, cameras: Sequence[str], config: LidarConfig) -> ListedDrive:
    turned = forwards(config.yaw_deg)
    times = _times_us(folder / "lidar" / "timestamps.json")
    poses = _poses(folder / "lidar" / "poses.json", len(times))
    sensor_track = Track(times, poses)
    files = [folder / "lidar" / f"{i:02d}.pkl.gz" for i in range(len(times))]
    clouds = [(int(t), partial(_cloud, f, int(t), sensor_track)) for f, t in zip(files, times, strict=True)]
    views, pictures = {}, []
    for name in cameras:
        place = folder / "camera" / name
        k = _json(place / "intrinsics.json")
        stamps = _times_us(place / "timestamps.json")
        images = [place / f"{i:02d}.jpg" for i in range(len(stamps))]
        height, width = read_picture(images[0]).shape[:2]
        camera = PinholeCamera(width, height, *(float(k[key]) for key in ("fx", "fy", "cx", "cy")), name=name)
        # The calibration is given as poses over time; both sensors sit on the same vehicle.
        lidar_then = sensor_track.at([min(max(int(stamps[0]), sensor_track.first_us), sensor_track.last_us)])[
            0
        ]
        camera_then = _poses(place / "poses.json", len(stamps))[0]
        views[name] = View(name, camera, turned @ invert_pose(lidar_then) @ camera_then)
        pictures += [
            Picture(name, int(t), partial(read_picture, f)) for f, t in zip(images, stamps, strict=True)
        ]
    pictures.sort(key=lambda picture: picture.time_us)
    notes: list[str] = []
    reader = CloudReader([load() for _, load in clouds[:_FIRST_CLOUDS]], config, turned, notes)
    track = Track(times, poses @ invert_pose(turned))
    fps = picture_rate(pictures, cameras[0])
    return ListedDrive(folder.name, folder.name, views, fps, track, clouds, reader, pictures, notes=notes)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _times_us(path: Path) -> NDArray:
    times = np.array(_json(path), np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
        raise DataError(f"{path}: no list of times in seconds")
    return np.rint(times * 1e6).astype(np.int64)


def _poses(path: Path, count: int) -> NDArray:
    """[N, 4, 4] sensor-to-world."""
    rows = _json(path)
    if len(rows) != count:
        raise DataError(f"{path}: {len(rows)} poses for {count} times")
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, row in zip(poses, rows, strict=True):
        q = row["heading"]
        pose[:3, :3] = Rotation.from_quat([q["x"], q["y"], q["z"], q["w"]]).as_matrix()
        pose[:3, 3] = [row["position"][axis] for axis in "xyz"]
    return poses


class _TableUnpickler(pickle.Unpickler):
    """Refuses everything that a pickled table of numbers does not need: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into a table of points")
        if module == "pandas.core.indexes.numeric":  # gone since pandas 2
            module, name = "pandas", "Index"
        return super().find_class(module, name)


def _table(path: Path) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError(
            "PandaSet stores pandas tables, and pandas is not installed; pip install pandas"
        ) from error
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_TABLE_BYTES + 1)
        if len(data) > _MAX_TABLE_BYTES:
            raise DataError(f"{path}: more than {_MAX_TABLE_BYTES // MIB} MiB when decompressed; not loaded")
        table = _TableUnpickler(io.BytesIO(data)).load()
    except (OSError, EOFError, zlib.error, pickle.UnpicklingError, ImportError, AttributeError) as error:
        raise DataError(f"{path}: not a cloud of PandaSet ({error})") from error
    if not isinstance(table, pd.DataFrame) or not {"x", "y", "z", "i", "t"} <= set(table.columns):
        raise DataError(f"{path}: not a table with x, y, z, i and t")
    return table


def _cloud(path: Path, time_us: int, track: Track) -> Cloud:
    """Points of the spinning LiDAR, each in the LiDAR frame of its own time."""
    table = _table(path)
    if "d" in table.columns:
        table = table[table["d"] == 0]
    xyz = table[["x", "y", "z"]].to_numpy(np.float64)
    seconds = table["t"].to_numpy(np.float64)
    if not len(xyz) or not np.isfinite(xyz).all() or not np.isfinite(seconds).all():
        raise DataError(f"{path}: no points, or NaN among them")
    at = np.rint(seconds * 1e6).astype(np.int64)
    ticks, tick = np.unique(at // 200, return_inverse=True)  # poses every 0.2 ms are fine enough
    if not (track.covers(int(ticks[0]) * 200) and track.covers(int(ticks[-1]) * 200)):
        raise DataError(f"{path}: points are taken outside the times of the sequence")
    back = invert_pose(track.at(ticks * 200))[tick]
    points = np.einsum("nij,nj->ni", back[:, :3, :3], xyz) + back[:, :3, 3]
    return Cloud(
        points=points.astype(np.float32),
        stamp_ns=time_us * 1000,
        intensity=table["i"].to_numpy(np.float32),
        time_s=seconds - time_us * 1e-6,
        shape=(1, len(points)),
    )
