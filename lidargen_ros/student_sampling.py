# SPDX-License-Identifier: Apache-2.0
"""Several steps of a student: from its best estimate to a sample, the same on numpy arrays and torch tensors.

Every step draws a clean sweep from what the network holds for likely (mean and spread of each range, probability of each
return), adds less noise than before, and asks again (ancestral sampling with a learnt variance; Nichol & Dhariwal 2021,
arXiv 2102.09672). Neighbours err together: a house that is judged too near is too near as a whole. So the draws are smooth
over rays, as the errors are; drawn ray by ray they would look like noise, which the next step takes out again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .range_coding import namespace

FIRST_LEVEL, LAST_LEVEL = 0.2, 0.03  # of the noise, after the first step
# Share of the variance and reach (rows, columns of 128 x 1800 rays) of the parts that a draw is made of. Errors of a student of
# the size of ``nano``, divided by their spread, correlate like that on six held-out scenes: 0.9 to the next column, 0.6 over
# 18, 0.3 over 90.
SMOOTHNESS = ((0.05, 0, 0), (0.12, 1.5, 2), (0.28, 5, 9), (0.55, 22, 60))
_PROBIT = 1.702  # a logistic variable is nearly that many standard normal ones

Denoise = Callable[[Any, float], tuple[Any, ...]]
"""``(x_t, t) -> code, logit, intensity, spread``, ``[1, rows, columns]`` each."""


def levels(steps: int) -> list[float]:
    """Noise levels t of the steps: 1, then evenly spaced on a logarithmic scale."""
    if steps == 2:
        return [1.0, (FIRST_LEVEL * LAST_LEVEL) ** 0.5]
    ratio = LAST_LEVEL / FIRST_LEVEL
    return [1.0, *(FIRST_LEVEL * ratio ** (i / (steps - 2)) for i in range(steps - 1))]


@functools.lru_cache(maxsize=1)  # frames of a drive have one seed, and it takes longer than a frame
def noise_of(seed: int, rows: int, columns: int) -> NDArray:
    """What a sample is drawn from: ``[1, 4, rows, columns]`` float32, each value standard normal, the same on every machine.

    Two maps (for range and return) are independent from ray to ray, two are smooth (``SMOOTHNESS``). Not to be written to:
    the next call for the seed gives the same array.
    """
    from scipy.ndimage import gaussian_filter  # slow to import, and best estimates need none

    rng = np.random.default_rng(seed)
    white = rng.standard_normal((2, rows, columns))
    smooth = np.zeros_like(white)
    for share, high, wide in SMOOTHNESS:
        for target in smooth:
            part = rng.standard_normal((rows, columns))
            if high:
                reach = high * rows / 128, wide * columns / 1800
                part = gaussian_filter(part, reach, mode=("reflect", "wrap"))
                part /= part.std()
            target += share**0.5 * part
    return np.concatenate([white, smooth])[None].astype(np.float32)


def draw(denoise: Denoise, noise: Any, steps: int) -> tuple[Any, Any, Any]:
    """A sample from ``noise [1, 4, rows, columns]`` (``noise_of``): code, logit and intensity, ``[1, rows, columns]``.

    ``denoise`` is called ``steps`` times, at least 2; the first call is the one-step estimate.
    """
    xp = namespace(noise)
    white, smooth = noise[:, :2], noise[:, 2:]
    first, *others = levels(steps)
    code, logit, intensity, spread = denoise(white * 0, first)
    for i, t in enumerate(others):
        # Far enough away, the same noise is another noise for every ray.
        drawn, added = (xp.roll(part, 631 * i, 3) for part in (smooth, white))
        sign = (logit + _PROBIT * drawn[:, 1] > 0) * 2.0 - 1
        clean = xp.stack([code + spread * drawn[:, 0], sign], 1)
        code, logit, intensity, spread = denoise((1 - t) * clean + t * added, t)
    return code, logit, intensity
