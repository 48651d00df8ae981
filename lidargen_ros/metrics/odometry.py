# SPDX-License-Identifier: Apache-2.0
"""A task as a metric: how far LiDAR odometry drifts on generated sweeps, beside the true ones.

The odometry is KISS-ICP (Vizzo et al., IEEE RA-L 2023, PyPI ``kiss-icp``) with its defaults. Sweeps that look right one
by one but shift from frame to frame, or slide along with the vehicle, make it drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..errors import ConfigError
from ..motion import invert_pose


def estimate_poses(
    clouds: Sequence[NDArray],
    times_s: Sequence[NDArray | None] | None = None,
    *,
    min_range_m: float = 0.5,
    max_range_m: float = 100.0,
) -> NDArray:
    """Poses ``[K, 4, 4]``, sensor to the frame of the first cloud, by KISS-ICP.

    Args:
        clouds: ``[n, 3]`` metres, each in its own sensor frame.
        times_s: ``[n]`` time of each point within its spin; None where all points belong to one instant.

    Raises:
        ConfigError: kiss-icp is not installed.
    """
    try:
        from kiss_icp.config import KISSConfig
        from kiss_icp.kiss_icp import KissICP
    except ImportError as e:
        raise ConfigError(f"odometry needs KISS-ICP ({e}); pip install 'lidargen_ros[odometry]'") from e
    times = [None] * len(clouds) if times_s is None else list(times_s)
    config = KISSConfig()
    config.data.min_range, config.data.max_range = min_range_m, max_range_m
    config.data.deskew = any(t is not None for t in times)
    config.mapping.voxel_size = max_range_m / 100  # its own default
    config.registration.max_num_threads = 1  # sums in one order: the same poses every time
    odometry = KissICP(config)
    poses = []
    for cloud, time in zip(clouds, times, strict=True):
        share = np.zeros(len(cloud)) if time is None else (time - time.min()) / max(np.ptp(time), 1e-9)
        odometry.register_frame(np.asarray(cloud, np.float64), np.asarray(share, np.float64))
        poses.append(odometry.last_pose.copy())
    return np.array(poses)


def drift(estimated: NDArray, true: NDArray) -> dict[str, float | int | None]:
    """Errors of a trajectory ``[K, 4, 4]`` against the true one; both begin at their first pose, nothing is fitted.

    The benchmarks of KITTI average over stretches of 100 m and more; this is for drives that may be shorter, so it says
    how long the drive is.

    Returns:
        ``frames``, ``length_m`` (of the true path); ``end_m`` and ``end_deg``: error of the last pose;
        ``drift_percent``: ``end_m`` in percent of the length, None below 1 m; ``ate_rmse_m``: of all positions
        (Sturm et al., IROS 2012, without its alignment); ``step_rmse_m``, ``step_rmse_deg``: of the motion from one frame
        to the next.

    Raises:
        ValueError: fewer than two poses, or not as many in both.
    """
    if len(estimated) != len(true) or len(true) < 2:
        raise ValueError(
            f"{len(estimated)} estimated and {len(true)} true poses: give two or more, as many in both"
        )
    guess = invert_pose(estimated[0]) @ np.asarray(estimated, np.float64)
    truth = invert_pose(true[0]) @ np.asarray(true, np.float64)
    error = np.linalg.solve(truth, guess)
    steps = np.linalg.solve(np.linalg.solve(truth[:-1], truth[1:]), np.linalg.solve(guess[:-1], guess[1:]))
    length = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    end = float(np.linalg.norm(error[-1, :3, 3]))
    return {
        "frames": len(true),
        "length_m": length,
        "end_m": end,
        "end_deg": float(_degrees(error[-1:])[0]),
        "drift_percent": 100 * end / length if length >= 1 else None,
        "ate_rmse_m": _rms(np.linalg.norm(error[:, :3, 3], axis=1)),
        "step_rmse_m": _rms(np.linalg.norm(steps[:, :3, 3], axis=1)),
        "step_rmse_deg": _rms(_degrees(steps)),
    }


@dataclass(frozen=True)
class SweepSequence:
    """Sweeps of a drive in order of time.

    Attributes:
        clouds: ``[n, 3]`` metres, each in its own sensor frame.
        times_s: ``[n]`` within the spin; None where all points belong to one instant.
        poses: ``[K, 4, 4]`` true poses, sensor to world.
    """

    clouds: Sequence[NDArray]
    times_s: Sequence[NDArray | None]
    poses: NDArray

    def above(self, height_m: float) -> SweepSequence:
        """Without the points at or below a height in the sensor frame."""
        kept = [cloud[:, 2] > height_m for cloud in self.clouds]
        return SweepSequence(
            [cloud[k] for cloud, k in zip(self.clouds, kept, strict=True)],
            [None if t is None else t[k] for t, k in zip(self.times_s, kept, strict=True)],
            self.poses,
        )


def odometry_report(sequences: Mapping[str, SweepSequence], ground_m: float) -> dict[str, dict[str, Any]]:
    """``drift`` of KISS-ICP on each sequence, with all points and without the ground, and of ``standing still``.

    Standing still is the ladder's rung, what an odometry gets that sees no motion. The rings that a LiDAR draws on smooth
    ground travel with it: in thin clouds they hold ICP back, measured sweeps as well, hence the second figure.

    Args:
        ground_m: points at or below this height in the sensor frame count as ground.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, all_points in sequences.items():
        for title, sequence in ((name, all_points), (f"{name}, without ground", all_points.above(ground_m))):
            estimated = estimate_poses(sequence.clouds, sequence.times_s)
            report[title] = drift(estimated, sequence.poses)
    for sequence in list(sequences.values())[:1]:
        report["standing still"] = drift(np.tile(np.eye(4), (len(sequence.poses), 1, 1)), sequence.poses)
    return report


def _degrees(poses: NDArray) -> NDArray:
    return np.degrees(Rotation.from_matrix(poses[:, :3, :3]).magnitude())


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.square(values).mean()))
