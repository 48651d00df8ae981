# SPDX-License-Identifier: Apache-2.0
"""Intensity errors: the value on rays that both return, and the distribution regardless of where."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def intensity_errors(
    generated: NDArray,
    true: NDArray,
    generated_returns: NDArray,
    true_returns: NDArray,
    bins: int = 256,
) -> dict[str, Any]:
    """Compare intensities in 0..1; all arrays of one shape.

    Returns ``rays`` (that both return), ``mae`` over those, and ``emd``: the earth mover's distance (Rubner
    et al., IJCV 2000) between the histograms of all generated and all true returns; in one dimension it is
    the area between the cumulative distributions. None where there is nothing to compare.
    """
    both = generated_returns & true_returns
    rays = int(both.sum())
    mae = float(np.abs(generated[both].astype(np.float64) - true[both]).mean()) if rays else None
    emd = None
    if generated_returns.any() and true_returns.any():
        sides = [_cumulative(generated[generated_returns], bins), _cumulative(true[true_returns], bins)]
        emd = float(np.abs(sides[0] - sides[1]).sum() / bins)
    return {"rays": rays, "mae": mae, "emd": emd}


def _cumulative(values: NDArray, bins: int) -> NDArray:
    histogram = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))[0]
    return np.cumsum(histogram) / len(values)
