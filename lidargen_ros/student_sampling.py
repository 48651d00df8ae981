# SPDX-License-Identifier: Apache-2.0
"""Several steps of a student: from noise to a sample, the same on numpy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import sampling
from .range_coding import namespace

SIGMA_MAX, SIGMA_MIN = 80.0, 0.02
Denoise = Callable[[Any, float], tuple[Any, Any, Any]]  # (x_t, t) -> code, logit, intensity


def draw(denoise: Denoise, noise: Any, steps: int) -> tuple[Any, Any, Any]:
    """A sample from ``noise [1, 2, rows, columns]``: code, logit and intensity, ``[1, rows, columns]``.

    ``denoise`` is called once per step.
    """
    xp = namespace(noise)
    last: list[Any] = []

    def denoiser(x: Any, sigma: float) -> Any:
        # x = x_0 + sigma e of the samplers is the straight path x_t = (1 - t) x_0 + t e, scaled by 1 / (1 - t).
        t = sigma / (1 + sigma)
        code, logit, intensity = denoise(x * (1 - t), t)
        last[:] = [intensity]
        return xp.stack([code, xp.tanh(logit / 2)], 1)

    sigmas = sampling.karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    x = sampling.adams_bashforth_2(denoiser, sigmas[0] * noise, sigmas)
    # A drawn return is a drawn sign: make it the decision, near 0 or 1.
    return x[:, 0], 12 * x[:, 1].clip(-1, 1), last[0]
