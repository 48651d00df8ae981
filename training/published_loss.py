# SPDX-License-Identifier: Apache-2.0
"""How the published model was trained, as plain functions: loss, noise levels, learning rate, EMA.

They fine-tune its weights on the terms they were made on; our own models train otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.preconditioning import lognormal_sigma, loss_weight

LEARNING_RATE = 2.0**-14.3
WARMUP_STEPS = 2500
ADAMW = {"lr": LEARNING_RATE, "betas": (0.9, 0.99), "eps": 1e-10, "weight_decay": 0.1}  # on every parameter
CLIP_NORM = 1.0
EMA_WIDTHS = (0.10, 0.05, 0.025)  # relative width of each replica's average


@dataclass(frozen=True)
class PublishedLoss:
    """``loss`` is minimised; the rest is for logs and tests."""

    loss: Tensor
    weighted_error: Tensor  # mean of weight * squared error
    squared_error: Tensor
    log_variance: Tensor  # [B, 1]
    weight: Tensor  # [B]


def published_loss(clean: Tensor, estimate: Tensor, log_variance: Tensor, sigma: Tensor) -> PublishedLoss:
    """``mean(w (z - D)^2 exp(-logvar) + logvar)`` over all slots and all padding (EDM2 eq. 14 in form).

    Args:
        clean: joint latent ``[B, C, V, H, W]``; estimate: of the denoiser, from ``clean + sigma * noise``.
        log_variance: learned, ``[B, 1]``. sigma: noise levels ``[B]``.
    """
    weight = loss_weight(sigma)
    squared = (clean - estimate) ** 2
    weighted = weight.reshape(-1, 1, 1, 1, 1) * squared
    per_element = log_variance.reshape(-1, 1, 1, 1, 1)
    loss = (weighted * torch.exp(-per_element) + per_element).mean()
    return PublishedLoss(loss, weighted.mean(), squared.mean(), log_variance, weight)


def training_sigma(batch: int, uniforms: Callable[..., np.ndarray] | None = None) -> np.ndarray:
    """Noise levels of a batch: ``ln sigma ~ Normal(0, 1)``; ``uniforms(size=n)`` draws from (0, 1)."""
    draw = uniforms or np.random.default_rng().uniform
    return lognormal_sigma(draw(size=batch), mean=0.0, std=1.0)


def learning_rate_factor(step: int, warmup: int = WARMUP_STEPS) -> float:
    """Factor of ``LEARNING_RATE`` after ``step`` steps: a linear warm-up, then constant."""
    start = 1e-6
    return start + (1 - start) * step / warmup if step < warmup else 1.0


def ema_exponent(width: float) -> float:
    """Exponent ``gamma`` of the power-function average of relative width ``width`` (EDM2 eq. 3).

    The largest real root of ``width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))``.
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.isreal(roots)].real.max())


def ema_beta(iteration: int, exponent: float) -> float:
    """Share of the old average kept after optimiser step ``iteration`` (counted from 0)."""
    return (1 - 1 / (iteration + 1)) ** (exponent + 1)


@torch.no_grad()
def clean_and_clip_gradients(parameters: Iterable[Tensor], norm: float = CLIP_NORM) -> Tensor:
    """Replace NaN and infinity by 0, then clip the global norm to ``norm``; returns the norm before."""
    parameters = [p for p in parameters if p.grad is not None]
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.nn.utils.clip_grad_norm_(parameters, norm)
