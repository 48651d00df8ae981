# SPDX-License-Identifier: Apache-2.0
"""Edge bleeding: points that hang in the air between a foreground edge and the background behind it.

Networks that blur range maps put such points there; "depth bleeding" in Liu et al., "L3DR: 3D-aware LiDAR
Diffusion and Rectification", CVPR 2026. The rate is this project's own measure of it: the share of rays that
lie more than a jump behind one horizontal neighbour and more than a jump in front of the other. A real sensor
has some as well (beams that hit an edge, slanted surfaces far away), so compare with the true rate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bleeding(range_map: NDArray, jump_m: float = 1.0, *, circular: bool = True) -> tuple[NDArray, NDArray]:
    """Bleeding rays, and the rays that were judged: those that return together with both neighbours in their
    row.

    Args:
        range_map: ``[..., rows, columns]`` metres, 0 = no return.
        circular: the first and the last column are neighbours (a full turn).
    """
    left, right = np.roll(range_map, 1, axis=-1), np.roll(range_map, -1, axis=-1)
    judged = (range_map > 0) & (left > 0) & (right > 0)
    if not circular:
        judged[..., [0, -1]] = False
    to_left, to_right = left - range_map, right - range_map
    between = (to_left > jump_m) & (to_right < -jump_m) | (to_left < -jump_m) & (to_right > jump_m)
    return between & judged, judged


def bleeding_rate(range_map: NDArray, jump_m: float = 1.0, *, circular: bool = True) -> float | None:
    """Share of judged rays that bleed; None where none could be judged."""
    bleeds, judged = bleeding(range_map, jump_m, circular=circular)
    count = int(judged.sum())
    return int(bleeds.sum()) / count if count else None
