# SPDX-License-Identifier: Apache-2.0
"""Reads the published clip format: 20-second pieces of a drive with LiDAR, cameras, poses (see docs/data.md).

A clip is a set of files of the same name in sibling folders: ``metadata/CLIP.npz``, ``lidar/CLIP.tar``,
``pose/CLIP.tar``, ``ftheta_intrinsic/CLIP.tar``, ``ftheta_<camera>/CLIP.mp4``. Unlike the published
reader this one pairs LiDAR and pictures by frame name only, reads every clip name and every spin, and never
puts one item in the place of another: what cannot be read is an error that names clip and member.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cameras.ftheta import FThetaCamera
from ..cameras.rig import Rig, View
from ..errors import DataError, LidargenError
from ..sensors import Sensor, load_sensor
from .archives import MIB
from .clip_metadata import (
    CAMERAS,
    PUBLISHED_VIEWS,
    check_clip_name,
    check_poses,
    list_clips,
    read_metadata,
)
from .clip_tars import SPIN_FIELDS, ClipTar, frame_key, read_spin
from .video import OpenFiles, VideoReader

__all__ = [
    "CAMERAS",
    "PUBLISHED_VIEWS",
    "ClipFiles",
    "ClipReader",
    "check_clip_name",
    "list_clips",
    "read_sensor",
]

_MAX_RAYS = 1 << 24


@dataclass
class ClipFiles:
    """Archives and videos kept open between reads; share one between the readers of a process."""

    tars: OpenFiles = field(default_factory=lambda: OpenFiles(ClipTar, 16))
    videos: OpenFiles = field(default_factory=lambda: OpenFiles(VideoReader, 12))

    def close(self) -> None:
        self.tars.close()
        self.videos.close()


def read_sensor(root: Path, clip: str) -> Sensor:
    """LiDAR of a clip: its own, else the published one (Pandar128, 3600 columns).

    ``lidar_sensor_config/CLIP.json`` has ``row_elevations_rad`` and ``row_azimuth_offsets_rad``, and where this
    project wrote it the whole ``sensor``.

    Raises:
        DataError: the file is damaged or describes no sensor.
    """
    path = root / "lidar_sensor_config" / f"{clip}.json"
    published = load_sensor("pandar128_3600")
    if not path.is_file():
        return published
    if path.stat().st_size > MIB:
        raise DataError(f"{path}: larger than 1 MiB; not a sensor configuration")
    try:
        data = json.loads(path.read_text())
        if "sensor" in data:
            sensor = Sensor.from_dict(data["sensor"])
            if sensor.rows * sensor.columns > _MAX_RAYS:
                raise DataError(f"{sensor.rows} x {sensor.columns} rays are not believable")
            return sensor
        return replace(
            published,
            name=f"pandar128 of {clip}",
            elevations_deg=np.rad2deg(data["row_elevations_rad"]),
            azimuth_offsets_deg=np.rad2deg(data.get("row_azimuth_offsets_rad", np.zeros(published.rows))),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError, LidargenError) as error:
        raise DataError(f"{path}: no sensor configuration ({error!r}); correct or remove it") from error


class ClipReader:
    """One clip.

    Args:
        root: root folder of the data set.
        clip: name of the clip.
        cameras: cameras to read, in this order; empty for LiDAR alone (all that tokenizers need).
        files: open files shared with other readers.

    Attributes:
        frames: names of the frames that metadata, LiDAR, poses and videos all have, by rising number.
        missing: where frames are absent -> their names (``{"video camera_rear_left_70fov": ["000597"]}``).

    Raises:
        DataError: if a file is missing or damaged, or no frame is complete; names file and member.
    """

    def __init__(
        self,
        root: str | Path,
        clip: str,
        cameras: Sequence[str] = PUBLISHED_VIEWS,
        files: ClipFiles | None = None,
    ) -> None:
        self.root, self.clip, self.cameras = Path(root), check_clip_name(clip), tuple(cameras)
        for camera in self.cameras:
            check_clip_name(camera)
        self._files = files or ClipFiles()
        self._owns_files = files is None
        self.metadata = read_metadata(self.root / "metadata" / f"{clip}.npz")
        self._row = {int(name): i for i, name in enumerate(self.metadata.frames)}
        self.missing = self._find_missing()
        absent = {name for names in self.missing.values() for name in names}
        self.frames = tuple(name for name in self.metadata.frames if name not in absent)
        if not self.frames:
            raise DataError(f"clip {clip}: no frame is complete; absent from: {', '.join(self.missing)}")

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_files:
            self._files.close()

    def _tar(self, folder: str) -> ClipTar:
        tar = self._files.tars(self.root / folder / f"{self.clip}.tar")
        if tar.clip != self.clip:
            raise DataError(
                f"{tar.path}: holds clip {tar.clip or 'nothing'}; its name and its content must agree"
            )
        return tar

    def _find_missing(self) -> dict[str, list[str]]:
        have = {"lidar": set(self._tar("lidar").frames(SPIN_FIELDS))}
        for camera in self.cameras:
            have[f"pose {camera}"] = set(self._tar("pose").frames([f"pose.{camera}.npy"]))
            have[f"video {camera}"] = set(range(len(self._video(camera))))
        missing = {
            place: [n for n in self.metadata.frames if int(n) not in numbers]
            for place, numbers in have.items()
        }
        # Spins without metadata have neither time nor pose.
        missing["metadata"] = [f"{number:06d}" for number in sorted(have["lidar"] - self._row.keys())]
        return {place: names for place, names in missing.items() if names}

    def _index(self, frame: str | int) -> int:
        row = self._row.get(int(frame)) if str(frame).isdecimal() else None
        if row is None:
            names = self.metadata.frames
            raise DataError(f"clip {self.clip}: no frame {frame}; it has {names[0]} to {names[-1]}")
        return row

    @cached_property
    def sensor(self) -> Sensor:
        """The clip's own LiDAR, see :func:`read_sensor`."""
        return read_sensor(self.root, self.clip)

    @property
    def fps(self) -> float:
        """Rate of the first camera's video in Hz; 0 without cameras."""
        return self._video(self.cameras[0]).fps if self.cameras else 0.0

    def range_map(self, frame: str | int, folder: str = "lidar") -> NDArray:
        """[rows, columns] float32 metres, 0 = no return; ``folder="hdmap"`` reads the map panorama."""
        return read_spin(self._tar(folder), frame, self.sensor)

    def intensity(self, frame: str | int) -> NDArray | None:
        """[rows, columns] float32, nominally 0..1; None where the clip has none."""
        tar = self._tar("lidar")
        if frame_key(frame, "lidar_intensity.npz") not in tar:
            return None
        return read_spin(tar, frame, self.sensor, "intensity")

    def lidar_to_world(self, frame: str | int) -> NDArray:
        """[2, 4, 4] at the start and the end of the spin."""
        return self.metadata.poses[self._index(frame)]

    def times_us(self, frame: str | int) -> tuple[int, int]:
        """Start and end of the spin, microseconds."""
        start, end = self.metadata.times_us[self._index(frame)]
        return int(start), int(end)

    def motion(self, frame: str | int) -> NDArray:
        """[4, 4] float32: coordinates at the start of the spin -> at its end (``pose_sensor_start_end``)."""
        start, end = self.lidar_to_world(frame).astype(np.float64)
        return (np.linalg.inv(end) @ start).astype(np.float32)

    def intrinsics(self, camera: str) -> NDArray:
        """[10, 11 or 14] float64 f-theta vector as stored."""
        tar, key = self._tar("ftheta_intrinsic"), f"ftheta_intrinsic.{camera}.npy"
        vector = tar.array(key)
        if vector.ndim != 1 or vector.dtype.kind not in "fiu":
            raise DataError(
                f"{tar.where(key)}: {vector.shape} of {vector.dtype}; expected 10, 11 or 14 numbers"
            )
        return vector.astype(np.float64)

    def camera(self, camera: str) -> FThetaCamera:
        """Camera for the pictures of this clip, which may be smaller than the calibration's.

        Raises:
            CalibrationError: naming clip and camera, if the vector is no camera.
        """
        calibrated = FThetaCamera.from_vector(self.intrinsics(camera), f"clip {self.clip}, {camera}")
        video = self._video(camera)
        if (video.width, video.height) == (calibrated.width, calibrated.height):
            return calibrated
        return calibrated.scaled(video.width, video.height)

    def camera_to_world(self, frame: str | int, camera: str) -> NDArray:
        """[4, 4], OpenCV camera axes, when picture ``frame`` was taken."""
        tar, key = self._tar("pose"), frame_key(frame, f"pose.{camera}.npy")
        pose = tar.array(key)
        if pose.shape != (4, 4):
            raise DataError(f"{tar.where(key)}: shape {pose.shape}; expected one 4 x 4 matrix")
        return check_poses(pose, tar.where(key))

    def camera_to_lidar(self, frame: str | int, camera: str) -> NDArray:
        """[4, 4] float32: camera when the picture was taken -> LiDAR at the start of the spin."""
        start = self.lidar_to_world(frame)[0].astype(np.float64)
        return (np.linalg.inv(start) @ self.camera_to_world(frame, camera)).astype(np.float32)

    def rig(self, frame: str | int) -> Rig:
        """The cameras as they stood to the LiDAR at the start of the spin."""
        views = (View(name, self.camera(name), self.camera_to_lidar(frame, name)) for name in self.cameras)
        return Rig(tuple(views), name=self.clip)

    def _video(self, camera: str) -> VideoReader:
        return self._files.videos(self.root / f"ftheta_{camera}" / f"{self.clip}.mp4")

    def image(self, frame: str | int, camera: str) -> NDArray:
        """RGB picture of ``camera`` that goes with the spin, uint8 [height, width, 3]."""
        return self._video(camera).frame(int(frame))
