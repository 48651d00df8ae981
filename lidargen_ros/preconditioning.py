# SPDX-License-Identifier: Apache-2.0
"""EDM preconditioning (Karras et al. 2022, table 1): the one home of it, for training and for sampling.

``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` with a network ``F`` and data of standard deviation
``sigma_data``. Works on floats, numpy arrays and torch tensors; a tensor keeps its type, and in bfloat16 each
operation rounds, in the order in which the published model computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Coefficients:
    """The four coefficients at one noise level (same type and shape as the noise level)."""

    c_skip: Any
    c_out: Any
    c_in: Any
    c_noise: Any


def coefficients(sigma: Any, sigma_data: float = SIGMA_DATA) -> Coefficients:
    """Coefficients for ``sigma > 0``."""
    variance = sigma**2 + sigma_data**2
    return Coefficients(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance**0.5,
        c_in=1 / variance**0.5,
        c_noise=0.25 * _log(sigma),
    )


def input_scale(sigma: Any, sigma_data: float = SIGMA_DATA) -> Any:
    """``c_in`` alone, defined at ``sigma = 0`` too."""
    return 1 / (sigma**2 + sigma_data**2) ** 0.5


def loss_weight(sigma: Any, sigma_data: float = SIGMA_DATA) -> Any:
    """Weight of the squared error of ``D`` that makes all noise levels of ``F`` count alike."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def lognormal_sigma(uniforms: Any, mean: float, std: float) -> Any:
    """Noise levels with ``ln sigma ~ Normal(mean, std)`` from uniforms in (0, 1), by inversion."""
    return np.exp(np.vectorize(NormalDist(mean, std).inv_cdf, otypes=[np.float64])(uniforms))


def _log(x: Any) -> Any:
    if isinstance(x, (int, float)):
        return math.log(x)
    return x.log() if hasattr(x, "log") else np.log(x)
