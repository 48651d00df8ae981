# SPDX-License-Identifier: Apache-2.0
"""Names, times and poses of clips: what a data set lists, and ``metadata/CLIP.npz`` (see docs/data.md)."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .archives import MIB, parse_npz

CAMERAS = (
    "camera_front_wide_120fov",
    "camera_cross_left_120fov",
    "camera_cross_right_120fov",
    "camera_rear_left_70fov",
    "camera_rear_right_70fov",
    "camera_rear_tele_30fov",
)
"""Camera names of the published data set; a view index is a position in this list."""
PUBLISHED_VIEWS = (CAMERAS[0], CAMERAS[3], CAMERAS[4])
"""The views that the published model reads, in its order: front wide, rear left, rear right."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
FRAME = re.compile(r"\d{1,9}")
_MAX_METADATA_BYTES = 64 * MIB


def check_clip_name(clip: str) -> str:
    """``clip`` itself, if it can be a clip name and no path.

    Raises:
        DataError: for anything but letters, digits, ``-`` and ``_``.
    """
    if not _NAME.fullmatch(clip):
        raise DataError(f"clip name {clip!r} may have letters, digits, - and _ only; rename it")
    return clip


def list_clips(root: Path, split: Path | None = None) -> list[str]:
    """Clip names of the data set at ``root``: those with metadata, or those listed in ``split``, one a line.

    Raises:
        DataError: no such folder or file, no clip in it, or a line that cannot be a clip name.
    """
    if split is None:
        names = sorted(path.stem for path in (root / "metadata").glob("*.npz"))
        source = root / "metadata"
    else:
        try:
            lines = split.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"split file {split} cannot be read ({error}); one clip name a line") from error
        # From the first dot on it is an extension, as in the published lists; blank lines are skipped.
        names = list(dict.fromkeys(name for line in lines if (name := line.strip().split(".")[0])))
        source = split
    if not names:
        raise DataError(f"{source}: no clips; is this the root of a data set?")
    return [check_clip_name(name) for name in names]


def check_poses(poses: NDArray, where: str) -> NDArray:
    """``poses`` [..., 4, 4] in its floating type, if all are rotation and translation.

    Raises:
        DataError: NaN, no rotation (tolerance 1e-3: published poses are float32), a wrong last row.
    """
    if poses.shape[-2:] != (4, 4) or poses.dtype.kind != "f":
        raise DataError(f"{where}: expected 4 x 4 matrices of floats, found {poses.shape} of {poses.dtype}")
    if not np.isfinite(poses).all():
        raise DataError(f"{where}: a pose holds NaN or infinity; write the poses again")
    rotation = poses[..., :3, :3].astype(np.float64)
    unit = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(initial=0.0) < 1e-3
    if (
        not unit
        or not (np.linalg.det(rotation) > 0).all()
        or np.abs(poses[..., 3, :] - (0, 0, 0, 1)).max() > 1e-5
    ):
        raise DataError(f"{where}: a pose is not a rotation and translation; write the poses again")
    return poses


@dataclass(frozen=True)
class Metadata:
    """``metadata/CLIP.npz``, rows in the order of the frame numbers.

    Attributes:
        frames: names of the frames, decimal digits.
        poses: [T, 2, 4, 4] LiDAR-to-world at the start and the end of each spin.
        times_us: [T, 2] int64 microseconds, start and end.
    """

    frames: tuple[str, ...]
    poses: NDArray
    times_us: NDArray


def read_metadata(path: Path) -> Metadata:
    """Reads and checks ``metadata/CLIP.npz``.

    Raises:
        DataError: missing keys, wrong types or shapes, poses that are none, spins that end before they start.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; the clip is incomplete")
    arrays = parse_npz(path, str(path), _MAX_METADATA_BYTES)
    if missing := {"pose_list", "timestamps_list", "frame_indices"} - arrays.keys():
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; write the metadata again")
    poses, times, frames = arrays["pose_list"], arrays["timestamps_list"], arrays["frame_indices"]
    count = len(frames) if frames.ndim == 1 else -1
    if frames.dtype.kind != "U" or poses.shape != (count, 2, 4, 4) or times.shape != (count, 2):
        raise DataError(
            f"{path}: frame_indices {frames.shape} {frames.dtype}, pose_list {poses.shape} and "
            f"timestamps_list {times.shape} do not fit together; expected text (T), (T, 2, 4, 4) and (T, 2)"
        )
    names = [str(name) for name in frames]
    if not names or not all(FRAME.fullmatch(name) for name in names):
        raise DataError(f"{path}: frame_indices must be decimal frame numbers, at least one")
    if len({int(name) for name in names}) != count:
        raise DataError(f"{path}: a frame number occurs twice in frame_indices; write the metadata again")
    if times.dtype.kind not in "iu" or (times[:, 1] <= times[:, 0]).any():
        raise DataError(f"{path}: timestamps_list must be integer microseconds with end after start")
    order = np.argsort([int(name) for name in names], kind="stable")
    poses = check_poses(poses, f"{path}: pose_list")
    return Metadata(tuple(names[i] for i in order), poses[order], times[order].astype(np.int64))
