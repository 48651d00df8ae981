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
