# SPDX-License-Identifier: Apache-2.0
"""The sweep before this one, moved to where the vehicle is now: one more input of a student that reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .motion import transform
from .projection import assign_rays, points_to_range_map, range_map_to_points
from .range_coding import encode_log
from .sensors import Sensor


def carry(range_map: NDArray, probability: NDArray, sensor: Sensor, motion: ArrayLike) -> NDArray:
    """What each ray of this sweep knows from the one before.

    Points move with the vehicle and are sorted into the rays again; the nearest of a ray wins. Where nothing returned,
    nothing is expected to return from the same direction. Objects are taken to stand still.

    Args:
        range_map: ``[rows, columns]`` metres, 0 = no return, of the sweep before.
        probability: ``[rows, columns]`` of a return, as that sweep says it.
        motion: ``[4, 4]`` coordinates in the LiDAR frame of that sweep -> in that of this one.

    Returns:
        ``[2, rows, columns]`` float32: range code, and what is believed of the return, from -1 (surely none) to 1; both 0 where
        nothing is known. What a network has seen it believes more firmly than what it made up.
    """
    pose = np.asarray(motion, np.float64)
    is_return = np.asarray(range_map) > 0
    belief = 2.0 * np.asarray(probability, np.float32) - 1.0
    points = transform(range_map_to_points(range_map, sensor), pose)
    moved, belief_moved = points_to_range_map(points, sensor, belief[is_return].clip(0, 1))
    # Of several empty rays that fall into one, the least certain is written last.
    order = np.argsort(belief[~is_return])
    empty = sensor.directions(dtype=np.float64)[~is_return][order]
    row, column, _ = assign_rays(sensor.max_range_m / 2 * empty @ pose[:3, :3].T, sensor)
    code, carried = np.zeros((2, *sensor.shape), np.float32)
    inside = row >= 0
    code[row[inside], column[inside]] = 1.0
    carried[row[inside], column[inside]] = belief[~is_return][order][inside].clip(-1, 0)
    returned = moved > 0
    code[returned] = encode_log(moved[returned], sensor.min_range_m, sensor.max_range_m)
    carried[returned] = belief_moved[returned]
    return np.stack([code, carried])
