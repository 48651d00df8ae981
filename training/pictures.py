# SPDX-License-Identifier: Apache-2.0
"""The picture of a validation frame that every kind of training shows: true, made, error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lidargen_ros.pictures import PAPER, error_picture, range_picture

_WIDTH, _GAP = 1200, 4


def true_made_error(true: NDArray, made: NDArray) -> NDArray:
    """Range maps ``[rows, columns]`` in metres -> RGB uint8, one above the other: true, made, made minus true."""
    rows, columns = true.shape
    height = max(120, round(_WIDTH * rows / columns))
    gap = np.full((_GAP, _WIDTH, 3), PAPER, np.uint8)
    return np.concatenate(
        [
            range_picture(true, _WIDTH, height),
            gap,
            range_picture(made, _WIDTH, height),
            gap,
            error_picture(made, true, width=_WIDTH, height=height),
        ]
    )
