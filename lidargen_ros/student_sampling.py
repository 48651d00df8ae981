# SPDX-License-Identifier: Apache-2.0
"""Several steps of a student: from its best estimate to a sample, the same on numpy arrays and torch tensors.

Every step draws a clean sweep from what the network holds for likely (mean and spread of each range, probability of each
return), adds less noise than before, and asks again: what the first draw decided ray by ray, the next ones bring into
agreement with their neighbours (ancestral sampling with a learnt variance; Nichol & Dhariwal 2021, arXiv 2102.09672).
Ray by ray, the spread of the samples is the network's own whatever the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .range_coding import namespace

FIRST_LEVEL, LAST_LEVEL = 0.6, 0.03  # of the noise, after the first step
_PROBIT = 1.702  # a logistic variable is nearly that many standard normal ones

Denoise = Callable[[Any, float], tuple[Any, ...]]
"""``(x_t, t) -> code, logit, intensity, spread``, ``[1, rows, columns]`` each."""


def levels(steps: int) -> list[float]:
    """Noise levels t of the steps: 1, then evenly spaced on a logarithmic scale."""
    if steps == 2:
        return [1.0, (FIRST_LEVEL * LAST_LEVEL) ** 0.5]
    ratio = LAST_LEVEL / FIRST_LEVEL
    return [1.0, *(FIRST_LEVEL * ratio ** (i / (steps - 2)) for i in range(steps - 1))]


def draw(denoise: Denoise, noise: Any, steps: int) -> tuple[Any, Any, Any]:
    """A sample from standard normal ``noise [1, 2, rows, columns]``: code, logit and intensity, ``[1, rows, columns]``.

    ``denoise`` is called ``steps`` times, at least 2; the first call is the one-step estimate.
    """
    xp = namespace(noise)
    rolled = 0

    def fresh() -> Any:
        # Far enough away, the same noise is another noise for every ray.
        nonlocal rolled
        rolled += 1
        return xp.roll(noise, (17 * rolled, 631 * rolled), (2, 3))

    first, *others = levels(steps)
    code, logit, intensity, spread = denoise(noise * 0, first)
    for t in others:
        drawn, added = fresh(), fresh()
        sign = (logit + _PROBIT * drawn[:, 1] > 0) * 2.0 - 1
        clean = xp.stack([code + spread * drawn[:, 0], sign], 1)
        code, logit, intensity, spread = denoise((1 - t) * clean + t * added, t)
    return code, logit, intensity
