# SPDX-License-Identifier: Apache-2.0
"""Writes the published clip format (docs/data.md), spin by spin and picture by picture.

A clip is built under ``.partial/`` and moved into place when complete, its metadata last: a clip that has
metadata is whole, however the writing ended. Memory does not grow with the pictures or spins written.
"""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from lidargen_ros.bags.clip_metadata import check_clip_name, check_poses
from lidargen_ros.errors import DataError
from lidargen_ros.sensors import Sensor, load_sensor

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def npy_bytes(array: NDArray) -> bytes:
    """``array`` as the content of an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(array: NDArray) -> bytes:
    """``array`` as the content of a compressed npz file, under the key ``arr_0``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array)
    return buffer.getvalue()


class _Tar:
    """A tar whose bytes depend on its content alone."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by close()

    def add(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


class VideoWriter:
    """H.264 in mp4 (yuv420p), a key frame every half second so that readers seek cheaply.

    Raises:
        DataError: odd picture sizes, which yuv420p cannot hold; an FFmpeg without H.264 encoder.
    """

    def __init__(self, path: Path, width: int, height: int, fps: float, crf: int = 18) -> None:
        import av

        if width % 2 or height % 2:
            raise DataError(f"{path}: pictures of {width} x {height} must have even sides; crop them by one")
        if "libx264" not in av.codecs_available:
            raise DataError(f"{path}: this PyAV cannot encode H.264; pip install --force-reinstall av")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._size, self.count, self._open = path, (width, height), 0, True
        self._container = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        keys = max(1, round(fps / 2))
        options = {"crf": str(crf), "preset": "veryfast", "g": str(keys), "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def add(self, rgb: NDArray) -> None:
        """One picture, uint8 [height, width, 3]."""
        import av

        width, height = self._size
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise DataError(
                f"{self._path}: picture {self.count} is {rgb.shape} {rgb.dtype}, the first was "
                f"{(height, width, 3)} uint8; one camera has one size"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        self._container.mux(self._stream.encode(picture))
        self.count += 1

    def close(self) -> None:
        """Complete the file; safe to call again."""
        if self._open and self.count:
            self._container.mux(self._stream.encode(None))
        self._open = False
        self._container.close()


class ClipWriter:
    """One clip, as a context manager: leaves nothing behind unless :meth:`finish` was called.

    Args:
        root: root of the data set; made if absent.
        clip: name of the clip, ``<uuid>_<start us>_<end us>``.
        sensor: LiDAR of the range maps; written beside the clip unless it is the published one.
        intrinsics: camera name -> f-theta vector of 10, 11 or 14 numbers, for pictures as given to ``add_image``.
        fps: rate of the videos in Hz; frame numbers count pictures at this rate.
        crf: quality of the videos, 0 (best) to 51.
    """

    def __init__(
        self,
        root: str | Path,
        clip: str,
        sensor: Sensor,
        intrinsics: Mapping[str, NDArray],
        fps: float = 30.0,
        crf: int = 18,
    ) -> None:
        self.root, self.clip, self.sensor = Path(root), check_clip_name(clip), sensor
        self.fps, self._crf = fps, crf
        self.intrinsics = {check_clip_name(name): np.asarray(v, np.float64) for name, v in intrinsics.items()}
        self._folder = self.root / ".partial" / clip
        shutil.rmtree(self._folder, ignore_errors=True)  # what an interrupted run left
        self._lidar = _Tar(self._folder / "lidar" / f"{clip}.tar")
        self._videos: dict[str, VideoWriter] = {}
        self._poses: dict[tuple[int, str], NDArray] = {}
        self._image_times: dict[str, dict[int, int]] = {name: {} for name in self.intrinsics}
        self._spins: list[tuple[int, NDArray, tuple[int, int]]] = []

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self._close()
        self._tidy()

    @property
    def spins(self) -> int:
        return len(self._spins)

    def add_spin(
        self,
        frame: int,
        range_map: NDArray,
        lidar_to_world: NDArray,
        times_us: tuple[int, int],
        intensity: NDArray | None = None,
    ) -> None:
        """One turn of the LiDAR; frames must rise.

        Args:
            frame: number of the picture that goes with it.
            range_map: [rows, columns] metres, 0 = no return; stored as float16.
            lidar_to_world: [2, 4, 4] at the start and the end of the turn.
            times_us: start and end in microseconds.
            intensity: [rows, columns], nominally 0..1; stored as float16.

        Raises:
            DataError: a wrong shape, no return at all, values that float16 cannot hold, times or frames that fall.
        """
        where = f"clip {self.clip}, frame {frame}"
        if range_map.shape != self.sensor.shape:
            raise DataError(
                f"{where}: range map {range_map.shape}, sensor {self.sensor.shape}; use its sensor"
            )
        if self._spins and frame <= self._spins[-1][0]:
            raise DataError(f"{where}: comes after frame {self._spins[-1][0]}; add spins in order")
        if times_us[1] <= times_us[0]:
            raise DataError(f"{where}: ends at {times_us[1]} us, not after its start {times_us[0]} us")
        poses = np.asarray(lidar_to_world, np.float32)
        if poses.shape != (2, 4, 4):
            raise DataError(f"{where}: poses {poses.shape}; expected the start and the end pose, (2, 4, 4)")
        check_poses(poses, where)
        with np.errstate(invalid="ignore"):
            seen = range_map > 0
        values = range_map[seen]
        if not len(values) or not np.isfinite(range_map).all() or values.max() > _FLOAT16_MAX:
            raise DataError(f"{where}: no return, or a range that is not a number below {_FLOAT16_MAX:.0f} m")
        rows, columns = np.nonzero(seen)
        parts = {"col": columns.astype(np.uint16), "range": values.astype(np.float16)}
        parts["row"] = rows.astype(np.uint8 if self.sensor.rows <= 256 else np.uint16)
        if intensity is not None:
            parts["intensity"] = np.clip(intensity[seen], 0, _FLOAT16_MAX).astype(np.float16)
        for name in sorted(parts):
            self._lidar.add(f"{self.clip}.{frame:06d}.lidar_{name}.npz", npz_bytes(parts[name]))
        self._spins.append((frame, poses, (int(times_us[0]), int(times_us[1]))))

    def add_image(self, camera: str, rgb: NDArray) -> int:
        """Next picture of a camera, uint8 [height, width, 3]; returns its frame number.

        A picture without :meth:`add_camera_pose` only holds a place: readers leave that frame out.
        """
        if camera not in self.intrinsics:
            raise DataError(f"clip {self.clip}: no intrinsics for {camera}; it has {sorted(self.intrinsics)}")
        if camera not in self._videos:
            path = self._folder / f"ftheta_{camera}" / f"{self.clip}.mp4"
            self._videos[camera] = VideoWriter(path, rgb.shape[1], rgb.shape[0], self.fps, self._crf)
        self._videos[camera].add(rgb)
        return self._videos[camera].count - 1

    def add_camera_pose(self, camera: str, frame: int, camera_to_world: NDArray, time_us: int = -1) -> None:
        """Pose [4, 4] of a camera (OpenCV axes) when picture ``frame`` was taken, and that time."""
        pose = np.asarray(camera_to_world, np.float32)
        self._poses[frame, camera] = check_poses(pose, f"clip {self.clip}, frame {frame}, {camera}")
        self._image_times[camera][frame] = int(time_us)

    def finish(self) -> None:
        """Complete the clip and move it into place.

        Raises:
            DataError: if it has no spin, or a camera without picture.
        """
        if not self._spins:
            raise DataError(f"clip {self.clip}: no spin was added; nothing written")
        if empty := self.intrinsics.keys() - self._videos.keys():
            raise DataError(f"clip {self.clip}: no picture of {', '.join(sorted(empty))}; nothing written")
        self._write_calibration()
        self._write_metadata()
        self._close()
        # Metadata goes last: its presence says that all the rest is there.
        parts = sorted(self._folder.rglob("*.*"), key=lambda path: path.parent.name == "metadata")
        for part in parts:
            target = self.root / part.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        self._tidy()

    def _tidy(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another clip may still be under way
            self._folder.parent.rmdir()

    def _write_calibration(self) -> None:
        if self.intrinsics:
            tar = _Tar(self._folder / "ftheta_intrinsic" / f"{self.clip}.tar")
            for camera, vector in sorted(self.intrinsics.items()):
                tar.add(f"{self.clip}.ftheta_intrinsic.{camera}.npy", npy_bytes(vector))
            tar.close()
            tar = _Tar(self._folder / "pose" / f"{self.clip}.tar")
            for (frame, camera), pose in sorted(self._poses.items()):
                tar.add(f"{self.clip}.{frame:06d}.pose.{camera}.npy", npy_bytes(pose))
            tar.close()
        if self.sensor != load_sensor("pandar128_3600"):
            path = self._folder / "lidar_sensor_config" / f"{self.clip}.json"
            path.parent.mkdir()
            config = {
                "row_elevations_rad": np.deg2rad(self.sensor.elevations_deg).tolist(),
                "row_azimuth_offsets_rad": np.deg2rad(self.sensor.azimuth_offsets_deg).tolist(),
                "sensor": self.sensor.to_dict(),
            }
            path.write_text(json.dumps(config, indent=1))

    def _write_metadata(self) -> None:
        frames, poses, times = zip(*self._spins, strict=True)
        for folder, arrays in (
            (
                "metadata",
                {
                    "pose_list": np.stack(poses),
                    "timestamps_list": np.array(times, np.int64),
                    "frame_indices": np.array([f"{frame:06d}" for frame in frames]),
                },
            ),
            (
                "image_times",
                {
                    camera: np.array([times.get(i, -1) for i in range(self._videos[camera].count)], np.int64)
                    for camera, times in self._image_times.items()
                },
            ),
        ):
            if arrays:
                path = self._folder / folder / f"{self.clip}.npz"
                path.parent.mkdir()
                np.savez_compressed(path, **arrays)

    def _close(self) -> None:
        self._lidar.close()
        for video in self._videos.values():
            video.close()
