# SPDX-License-Identifier: Apache-2.0
"""Steadiness in time: what stands still in the world must stand still in the generated sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .chamfer import WINDOW_M, Chamfer, chamfer


def temporal_chamfer(
    clouds: Sequence[NDArray],
    poses: Sequence[NDArray],
    step: int = 1,
    window: tuple[float, float] = WINDOW_M,
    *,
    queries: int | None = None,
) -> list[Chamfer | None]:
    """Chamfer between each cloud, carried into the frame of the cloud ``step`` later by ego motion, and that
    cloud.

    The temporal Chamfer of Liang et al., "LiDARCrafter: Dynamic 4D World Modeling from LiDAR Sequences"
    (2025), steps 1 to 4; they print ``l2_half_sum_m2`` over all points. A true sequence does not reach zero
    either (new surfaces come into view, other things move): compute it for the true clouds as well and
    compare. Leave moving points out of the clouds where they are known.

    Args:
        clouds: ``[n, 3]`` points in metres, each in its own sensor frame.
        poses: ``[4, 4]`` sensor-to-world of each cloud.
        window: radii that count, seen from the later sensor position.
        queries: see ``chamfer``.
    """
    if len(clouds) != len(poses):
        raise ValueError(
            f"{len(clouds)} clouds but {len(poses)} poses: give one sensor-to-world pose per cloud"
        )
    pairs = range(len(clouds) - step)
    return [
        chamfer(carry(clouds[k], poses[k], poses[k + step]), clouds[k + step], window, queries=queries)
        for k in pairs
    ]


def carry(points: NDArray, pose_from: NDArray, pose_to: NDArray) -> NDArray:
    """Points ``[n, 3]`` given in the frame of ``pose_from``, in the frame of ``pose_to`` (both sensor-to-
    world).
    """
    motion = np.linalg.solve(np.asarray(pose_to, np.float64), np.asarray(pose_from, np.float64))
    return points @ motion[:3, :3].T + motion[:3, 3]


def flicker(maps: Sequence[NDArray], window: tuple[float, float] = WINDOW_M) -> dict[str, float | None]:
    """Change of each ray from frame to frame while sensor and world stand still.

    This project's measure. Measured sweeps do not reach zero either (noise, lost echoes): compute it for them as well.

    Args:
        maps: ``[rows, columns]`` metres, 0 = no return, in order of time; two or more.
        window: ranges that count for the change of range.

    Returns:
        ``mean_change_m``, ``median_change_m``: absolute change of the range of rays that return in both frames, in the
        window in the first (None where none does); ``blinking_share``: share of all rays that return in one frame only.

    Raises:
        ValueError: fewer than two maps.
    """
    if len(maps) < 2:
        raise ValueError(f"flicker of {len(maps)} maps: give at least 2")
    stack = np.stack(maps)
    before, after = stack[:-1], stack[1:]
    both = (before >= window[0]) & (before <= window[1]) & (after > 0)
    change = np.abs(after - before)[both].astype(np.float64)
    return {
        "mean_change_m": float(change.mean()) if len(change) else None,
        "median_change_m": float(np.median(change)) if len(change) else None,
        "blinking_share": float(((before > 0) != (after > 0)).mean()),
    }
