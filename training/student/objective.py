# SPDX-License-Identifier: Apache-2.0
"""What a student is asked for: the best estimate in one step, and the denoising of a noisy sweep, in one batch.

Most items of a batch get no noisy sweep (x = 0, t = 1) and an L1 loss, whose optimum is the median: that is the one-step
answer (end-to-end fine-tuning with the task's loss; Garcia et al. 2024, arXiv 2409.11355). The others get
``x_t = (1 - t) x_0 + t e`` and an L2 loss, whose optimum is the posterior mean that a sampler needs (Liu et al. 2022,
arXiv 2209.03003). Ranges are compared only where the true ray returned. A network that says its spread is asked for the
deviation of its own code, by the likelihood of a normal distribution around it (Nix & Weigend 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidargen_ros.models.student import Estimate
from lidargen_ros.range_coding import encode_log


@dataclass(frozen=True)
class LossWeights:
    range_log: float = 1.0
    range_metres: float = 0.04  # per metre; equal to the logarithmic part at 25 m
    returns: float = 0.5
    intensity: float = 0.3
    flow: float = 1.0
    spread: float = 0.05


@dataclass
class Target:
    """True maps ``[B, rows, columns]``: range in metres (0 = no return) and intensity."""

    range_m: Tensor
    intensity: Tensor

    @property
    def returned(self) -> Tensor:
        return self.range_m > 0


def encode_code(range_m: Tensor, min_range: float, max_range: float) -> Tensor:
    """Metres -> logarithmic code in [-1, 1]; no return (0) lies at the far end, beyond which nothing returns."""
    return encode_log(torch.where(range_m > 0, range_m, max_range), min_range, max_range)


def clean_sweep(target: Target, min_range: float, max_range: float) -> Tensor:
    """``[B, 2, rows, columns]``: range code and return as -1 / +1."""
    code = encode_code(target.range_m, min_range, max_range)
    return torch.stack([code, target.returned.to(code.dtype) * 2 - 1], 1)


def noisy_sweep(clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``x_t [B, 2, R, C]`` at levels ``t [B]``; level 1 with noise 0 asks for the best estimate."""
    weight = t[:, None, None, None]
    return (1 - weight) * clean + weight * noise


@dataclass(frozen=True)
class Counts:
    """Rays that the loss terms are means over; over several ranks their average, so that 1 and N ranks mean the same."""

    returned: Tensor
    near: Tensor  # returned, in items that ask for the best estimate
    asked: Tensor  # items that ask for the best estimate
    drawn: Tensor  # the other items

    @classmethod
    def of(cls, target: Target, regression: Tensor, average: Callable[[Tensor], Tensor]) -> Counts:
        per_item = target.returned.sum((1, 2)).float()
        asks = regression.float()
        counts = torch.stack([per_item.sum(), (per_item * asks).sum(), asks.sum(), (1 - asks).sum()])
        return cls(*average(counts).clamp_min(1e-6).unbind())


def loss_terms(
    estimate: Estimate,
    clean: Tensor,
    target: Target,
    regression: Tensor,
    counts: Counts,
    limits: tuple[float, float],
) -> dict[str, Tensor]:
    """Means over the rays concerned, unweighted; ``range_log`` reads as a relative error.

    Args:
        regression: ``[B]`` bool, items that ask for the best estimate; the others are denoised.
    """
    asks = regression[:, None, None].float()
    returned = target.returned.float()
    near, rays = returned * asks, clean[0, 0].numel()
    scale = 0.5 * math.log(limits[1] / limits[0])
    error = (estimate.code - clean[:, 0]) * scale  # difference of log ranges
    metres = limits[0] * torch.exp((estimate.code.clamp(-1.2, 1.2) + 1) * scale) - target.range_m
    sign = F.binary_cross_entropy_with_logits(estimate.logit, returned, reduction="none")
    flow = 4 * (error / scale) ** 2 * (0.25 + 0.75 * returned) + 0.5 * sign
    terms = {
        "range_log": (error.abs() * near).sum() / counts.near,
        "range_metres": (metres.abs() * near).sum() / counts.near,
        "returns": (sign * asks).sum() / (counts.asked * rays),
        "intensity": ((estimate.intensity - target.intensity).abs() * returned).sum() / counts.returned,
        "flow": (flow * (1 - asks)).sum() / (counts.drawn * rays),
    }
    if estimate.spread is not None:
        ratio = (error / scale).detach() / estimate.spread
        likelihood = 0.5 * ratio**2 + estimate.spread.log()
        terms["spread"] = (likelihood * returned).sum() / counts.returned
    return terms


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    return torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
