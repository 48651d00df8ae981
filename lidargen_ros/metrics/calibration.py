# SPDX-License-Identifier: Apache-2.0
"""Is the spread of K samples honest? Coverage of their intervals, and the CRPS.

A generator that draws several sweeps for one moment claims a distribution per ray. Counted are rays where the
truth and all K samples return.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_calibration(
    samples: NDArray, true: NDArray, mask: NDArray | None = None, levels: tuple[float, ...] = (0.5, 0.8, 0.9)
) -> dict[str, Any]:
    """Interval coverage and CRPS of range samples.

    Args:
        samples: ``[K, rows, columns]`` metres, 0 = no return, K >= 2.
        true: ``[rows, columns]``.
        mask: rays that may count.
        levels: nominal coverage of the central intervals.

    Returns:
        ``rays``; ``coverage`` {level: share of truths inside}, None for a level that K samples cannot
        express; ``crps_m`` and ``crps_fair_m`` (see ``crps``); ``spread_m``, the mean standard deviation of
        the samples.
    """
    counted = (samples > 0).all(axis=0) & (true > 0)
    if mask is not None:
        counted = counted & mask
    rays = int(counted.sum())
    if rays == 0:
        return {
            "rays": 0,
            "coverage": dict.fromkeys(levels),
            "crps_m": None,
            "crps_fair_m": None,
            "spread_m": None,
        }
    drawn, truth = samples[:, counted].astype(np.float64), true[counted].astype(np.float64)
    return {
        "rays": rays,
        "coverage": {level: interval_coverage(drawn, truth, level) for level in levels},
        "crps_m": float(crps(drawn, truth).mean()),
        "crps_fair_m": float(crps(drawn, truth, fair=True).mean()),
        "spread_m": float(drawn.std(axis=0, ddof=1).mean()),
    }


def interval_coverage(samples: NDArray, true: NDArray, level: float) -> float | None:
    """Share of truths ``[n]`` inside the central ``level`` interval of the samples ``[K, n]``; ideal:
    ``level``.

    The ends are quantiles at rank p (K + 1) (Weibull's plotting position): for exchangeable samples and truth
    the interval from order statistic i to j then holds the truth with probability (j - i) / (K + 1) exactly.
    Hence K samples can express levels up to (K - 1) / (K + 1); above that the result is None.
    """
    count = len(samples)
    if level > (count - 1) / (count + 1) + 1e-12:
        return None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return float(((true >= low) & (true <= high)).mean())


def crps(samples: NDArray, true: NDArray, *, fair: bool = False) -> NDArray:
    """Continuous ranked probability score ``[n]`` of the samples ``[K, n]``, in their unit; smaller is
    better.

    mean |x_i - y| - 1/2 mean |x_i - x_j| (Gneiting and Raftery, JASA 2007, eq. 21 with the empirical
    distribution). ``fair`` divides the second mean by K (K - 1) instead of K^2, which takes away the penalty
    for drawing few samples (Ferro, QJRMS 2014). With K = 1 it is the absolute error.
    """
    count = len(samples)
    if fair and count < 2:
        raise ValueError("the fair CRPS of 1 sample is undefined: give at least 2")
    ordered = np.sort(samples, axis=0)
    # sum over i < j of x_(j) - x_(i), from order statistics in K log K instead of K^2
    weights = 2 * np.arange(count) - count + 1
    pairs = np.tensordot(weights.astype(np.float64), ordered, axes=1)
    return np.abs(samples - true).mean(axis=0) - pairs / (count * (count - 1) if fair else count**2)
