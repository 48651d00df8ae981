# SPDX-License-Identifier: Apache-2.0
"""Noise-level schedules and solvers of the probability-flow ODE ``dx/dsigma = (x - D(x, sigma)) / sigma``.

Every solver is one function of ``(denoiser, x, sigmas)``: ``denoiser(x, sigma) -> x0`` is any callable, ``x``
a numpy array or a torch tensor of the noise level ``sigmas[0]``, ``sigmas`` decreasing floats.
``progress(i, x0)`` is called after evaluation ``i``. Coefficients are Python floats, so the state keeps the type of ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from .errors import ConfigError

Denoiser = Callable[[Any, float], Any]
Progress = Callable[[int, Any], None]


def karras_sigmas(
    count: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """``count`` levels from ``sigma_max`` to ``sigma_min``, evenly spaced in ``sigma^(1/rho)`` (EDM eq. 5).

    No zero is appended: see ``to_zero``. The published model with ``N`` steps uses ``N + 1`` levels.
    """
    if count < 1:
        raise ConfigError(f"a schedule of {count} noise levels is too short: use at least 1")
    if not 0 < sigma_min < sigma_max:
        raise ConfigError(f"noise levels need 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + i / max(count - 1, 1) * (low - high)) ** rho for i in range(count)]


def to_zero(sigmas: Sequence[float]) -> list[float]:
    """The schedule with a final level of 0, so that a solver ends on clean data."""
    return [*sigmas, 0.0]


def euler(denoiser: Denoiser, x: Any, sigmas: Sequence[float], progress: Progress | None = None) -> Any:
    """First order (DDIM); ``len(sigmas) - 1`` evaluations."""
    for i, (sigma, following) in enumerate(_intervals(sigmas)):
        x0 = denoiser(x, sigma)
        _report(progress, i, x0)
        x = x + (following / sigma - 1) * (x - x0)
    return x


def heun(denoiser: Denoiser, x: Any, sigmas: Sequence[float], progress: Progress | None = None) -> Any:
    """Second order with two evaluations per step (EDM algorithm 1); a last step to 0 is an Euler step."""
    for i, (sigma, following) in enumerate(_intervals(sigmas)):
        x0 = denoiser(x, sigma)
        _report(progress, i, x0)
        slope = (x - x0) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            slope_ahead = (ahead - denoiser(ahead, following)) / following
            ahead = x + (following - sigma) * (slope + slope_ahead) / 2
        x = ahead
    return x


def dpm_solver_2m(
    denoiser: Denoiser, x: Any, sigmas: Sequence[float], progress: Progress | None = None
) -> Any:
    """DPM-Solver++(2M) (Lu et al. 2022): second order, multistep, one evaluation per step."""
    previous, last_h = None, 0.0
    for i, (sigma, following) in enumerate(_intervals(sigmas)):
        x0 = denoiser(x, sigma)
        _report(progress, i, x0)
        if following == 0:  # the step is infinite in log sigma: its limit is x0
            return x0
        h = math.log(sigma / following)
        mixed = x0
        if previous is not None:
            ratio = h / (2 * last_h)
            mixed = (1 + ratio) * x0 - ratio * previous
        x = math.exp(-h) * x - math.expm1(-h) * mixed
        previous, last_h = x0, h
    return x


def adams_bashforth_2(
    denoiser: Denoiser, x: Any, sigmas: Sequence[float], progress: Progress | None = None
) -> Any:
    """Two-step exponential Adams-Bashforth in ``-log sigma``: the solver of the published model ("2ab").

    ``len(sigmas)`` evaluations: the denoised estimate at the last level is the result.
    """
    previous, last_h = None, 0.0
    for i, (sigma, following) in enumerate(_intervals(sigmas)):
        x0 = denoiser(x, sigma)
        _report(progress, i, x0)
        h = math.log(sigma / following)
        phi1 = -math.expm1(-h) / h
        mixed = h * phi1 * x0
        if previous is not None:
            c = -last_h / h
            phi2 = (1 - phi1) / h
            mixed = h * ((phi1 - phi2 / c) * x0 + (phi2 / c) * previous)
        x = math.exp(-h) * x + mixed
        previous, last_h = x0, h
    x0 = denoiser(x, sigmas[-1])
    _report(progress, len(sigmas) - 1, x0)
    return x0


SOLVERS: dict[str, Callable[..., Any]] = {
    "euler": euler,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "adams_bashforth_2": adams_bashforth_2,
}


def _intervals(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    pairs = [(float(a), float(b)) for a, b in pairwise(sigmas)]
    if not pairs or any(not 0 <= b < a for a, b in pairs):
        raise ConfigError("noise levels must decrease strictly and not be negative")
    return pairs


def _report(progress: Progress | None, i: int, x0: Any) -> None:
    if progress is not None:
        progress(i, x0)
