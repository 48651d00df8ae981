# SPDX-License-Identifier: Apache-2.0
"""What the network answers with: a sweep in a logarithmic or inverse range code, or the latent of a tokenizer.

An answer knows the noise-free tensor of a target, the losses, how to read an estimate as maps, and how to draw a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lidargen_ros import sampling
from lidargen_ros.models.student import FINE, NANO, PATCH, Decoder, Estimate, down, precondition, residuals
from lidargen_ros.range_coding import decode_log, encode_inverse
from lidargen_ros.student_sampling import draw, noise_of
from training.student.objective import Counts, LossWeights, Target, clean_sweep, loss_terms, total

Limits = tuple[float, float]
Terms = dict[str, Tensor]
INVERSE_NEAR_M = 2.0  # a scale from 0.5 m would leave a tenth of the code for everything beyond 5 m


class Answer(Protocol):
    """``shape`` is that of the noisy tensor of one sample."""

    shape: tuple[int, int, int]

    def clean(self, target: Target) -> Tensor:
        """The noise-free tensor ``[B, *shape]``."""
        ...

    def terms(
        self, estimate: Any, clean: Tensor, target: Target, regression: Tensor, counts: Counts
    ) -> Terms:
        """Loss terms, with ``"loss"`` their weighted sum."""
        ...

    def maps(self, estimate: Any) -> tuple[Tensor, Tensor]:
        """Range in metres and probability of a return, ``[B, R, C]``."""
        ...

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """What samples are drawn from, one per seed, on the CPU."""
        ...

    def draw(
        self, denoise: Callable[[Tensor, float], Any], noise: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Maps of a sample."""
        ...


class LogCode:
    """The shipped answer."""

    def __init__(self, sweep: tuple[int, int], limits: Limits, weights: LossWeights) -> None:
        self.shape, self.limits, self.weights = (2, *sweep), limits, weights

    def clean(self, target: Target) -> Tensor:
        return clean_sweep(target, *self.limits)

    def terms(
        self, estimate: Estimate, clean: Tensor, target: Target, regression: Tensor, counts: Counts
    ) -> Terms:
        terms = loss_terms(estimate, clean, target, regression, counts, self.limits)
        return {**terms, "loss": total(terms, self.weights)}

    def maps(self, estimate: Estimate) -> tuple[Tensor, Tensor]:
        return self.metres(estimate.code), torch.sigmoid(estimate.logit)

    def metres(self, code: Tensor) -> Tensor:
        return decode_log(code, *self.limits)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.concatenate([noise_of(seed, *self.shape[1:]) for seed in seeds]))

    def draw(
        self, denoise: Callable[[Tensor, float], Estimate], noise: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        code, logit, _ = draw(lambda x, t: denoise(x, t).known(), noise, steps)
        return self.metres(code), torch.sigmoid(logit)


class InverseCode(LogCode):
    """The network answers with 1 / range, 2 m to the sensor's limit; losses are those of the logarithmic code.

    So only what the network has to put out differs. The flow's loss compares codes, as it must for a sampler.
    """

    def clean(self, target: Target) -> Tensor:
        code = encode_inverse(target.range_m, INVERSE_NEAR_M, self.limits[1])
        return torch.stack([code, super().clean(target)[:, 1]], 1)

    def terms(
        self, estimate: Estimate, clean: Tensor, target: Target, regression: Tensor, counts: Counts
    ) -> Terms:
        as_log = estimate._replace(code=self.log_code(estimate.code))
        terms = loss_terms(as_log, super().clean(target), target, regression, counts, self.limits)
        own = loss_terms(estimate, clean, target, regression, counts, self.limits)
        terms |= {name: own[name] for name in ("flow", "spread") if name in own}
        return {**terms, "loss": total(terms, self.weights)}

    def log_code(self, code: Tensor) -> Tensor:
        """The same range in the logarithmic code; beyond the far limit along the tangent, so that gradients live on."""
        far, near = 1 / self.limits[1], 1 / INVERSE_NEAR_M
        inverse = (code + 1) / 2 * (near - far) + far
        log_range = -inverse.clamp_min(far).log() + (far - inverse).clamp_min(0) / far
        return (log_range - math.log(self.limits[0])) * (2 / math.log(self.limits[1] / self.limits[0])) - 1

    def metres(self, code: Tensor) -> Tensor:
        return decode_log(self.log_code(code), *self.limits)


class Tokenizer(nn.Module):
    """A small convolutional autoencoder of sweeps: 4 x 9 rays to one latent of ``channels`` numbers of unit variance."""

    channels = 16

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        fine, full = width // 3, width // 6
        self.encoder = nn.Sequential(
            down(3, fine, FINE), residuals(fine, 1), down(fine, width, FINE), residuals(width, 2),
            nn.Conv2d(width, self.channels, 1), nn.BatchNorm2d(self.channels, affine=False),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(self.channels, width, 1), residuals(width, 2), nn.ConvTranspose2d(width, fine, FINE, FINE),
            residuals(fine, 1), nn.ConvTranspose2d(fine, full, FINE, FINE), residuals(full, 1),
        )  # fmt: skip
        self.out = nn.Conv2d(full, Decoder(NANO).out.out_channels, 1)

    def encode(self, clean: Tensor, intensity: Tensor) -> Tensor:
        """Code and return ``[B, 2, R, C]``, intensity ``[B, R, C]`` -> ``[B, channels, R / 4, C / 9]``."""
        return self.encoder(torch.cat([clean, 2 * intensity[:, None] - 1], 1)).float()

    def decode(self, latent: Tensor) -> Estimate:
        features = self.decoder(latent)
        with torch.autocast(features.device.type, enabled=False):  # as the student's last layer
            raw = self.out(features.float())
        nothing = raw.new_zeros(len(raw), 2, *raw.shape[2:])
        return precondition(
            raw, nothing, raw.new_ones(len(raw)), NANO.sigma_data
        )  # which at level 1 adds nothing

    def forward(self, clean: Tensor, intensity: Tensor) -> Estimate:
        return self.decode(self.encode(clean, intensity))


class Latent:
    """The latent of a trained tokenizer; the estimate of the network is a latent."""

    def __init__(self, tokenizer: Tokenizer, sweep: LogCode) -> None:
        self._tokenizer, self._sweep = tokenizer.eval().requires_grad_(False), sweep
        _, rows, columns = sweep.shape
        self.shape = (tokenizer.channels, rows // PATCH[0], columns // PATCH[1])

    def clean(self, target: Target) -> Tensor:
        return self._tokenizer.encode(self._sweep.clean(target), target.intensity)

    def terms(
        self, estimate: Tensor, clean: Tensor, target: Target, regression: Tensor, counts: Counts
    ) -> Terms:
        """As for sweeps, L1 where the best estimate is asked for and L2 where noise is taken out."""
        asks, error = regression[:, None, None, None].float(), estimate - clean
        numbers = clean[0].numel()
        terms = {
            "latent": (error.abs() * asks).sum() / (counts.asked * numbers),
            "flow": (error.square() * (1 - asks)).sum() / (counts.drawn * numbers),
        }
        return {**terms, "loss": terms["latent"] + terms["flow"]}

    def maps(self, estimate: Tensor) -> tuple[Tensor, Tensor]:
        return self._sweep.maps(self._tokenizer.decode(estimate))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        draws = (torch.Generator().manual_seed(seed) for seed in seeds)
        return torch.stack([torch.randn(self.shape, generator=draw) for draw in draws])

    def draw(
        self, denoise: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        def denoiser(x: Tensor, sigma: float) -> Tensor:  # x = x_0 + sigma e
            t = sigma / (1 + sigma)
            return denoise(x * (1 - t), t)

        sigmas = sampling.karras_sigmas(steps, 0.02, 80.0)
        return self.maps(sampling.adams_bashforth_2(denoiser, sigmas[0] * noise, sigmas))
