# SPDX-License-Identifier: Apache-2.0
"""The published denoiser: preconditioned DiT, conditioned on (possibly corrupted) camera latents.

The arithmetic follows the type of ``x`` and ``sigma``: pass bfloat16 for the published model's rounding after
every operation, float32 for exact coefficients around a bfloat16 network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..preconditioning import coefficients, input_scale, lognormal_sigma
from .dit import MultiViewDiT
from .dit_config import DiTConfig
from .dit_latents import condition_indicator
from .dit_tokens import Content

AUGMENT_MEAN, AUGMENT_STD = -3.0, 2.0  # of the log of the corruption level


@dataclass(frozen=True)
class Condition:
    """What the network is told besides the noisy latent.

    Attributes:
        latent: clean joint latent ``[B, C, V, H, W]``; slot 0 is never read.
        text: ``[B, V*tokens, width]`` or None for the zero text of the published pipeline.
        padding_mask: ``[B, 1, h, w]`` or None for zeros.
        view_indices: ``[B, V]`` or None for 0, 1, 2, ...
        content: see ``MultiViewDiT.forward``; None keeps the padding tokens.
    """

    latent: Tensor
    text: Tensor | None = None
    padding_mask: Tensor | None = None
    view_indices: Tensor | None = None
    content: Content | None = None

    def without_text(self, skip: bool = True) -> Condition:
        """The unconditional branch: zero text, everything else kept. ``skip`` leaves the branch out."""
        return replace(self, text=None if skip or self.text is None else torch.zeros_like(self.text))


@dataclass(frozen=True)
class Corruption:
    """Noise put on the camera latents for one network call: ``sigma [B]``, ``noise`` like the latent."""

    sigma: Tensor
    noise: Tensor | None = None  # None with sigma 0: clean cameras


@dataclass(frozen=True)
class Prediction:
    """Result of one denoiser call; all but ``x0`` serve training and tests."""

    x0: Tensor  # condition slots hold the clean latent
    unreplaced: Tensor  # the network's own estimate in all slots
    network_input: Tensor
    noise_level: Tensor
    network_output: Tensor


class FourierFeatures(nn.Module):
    """``sqrt(2) cos(t * freqs + phases)`` with stored random frequencies and phases."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(count))
        self.register_buffer("phases", 2 * math.pi * torch.rand(count))

    def forward(self, t: Tensor) -> Tensor:
        return math.sqrt(2) * (t[:, None].to(self.freqs.dtype) * self.freqs + self.phases).cos()


def log_variance_head() -> nn.Sequential:
    """Log-variance of the error from the noise level, a training aid; its frequencies are drawn once and stored."""
    return nn.Sequential(FourierFeatures(128), nn.Linear(128, 1, bias=False))


class DiffusionModel(nn.Module):
    """Network and log-variance head, with the key names ``net.*`` and ``logvar.*`` of ``model.pt``."""

    def __init__(self, config: DiTConfig, rounded_positions: bool = False) -> None:
        super().__init__()
        self.net = MultiViewDiT(config, rounded_positions)
        self.logvar = log_variance_head()
        # What calls the network: replaced by a recorded CUDA graph where that is wanted.
        self.call: Callable[..., Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.net.view_embeddings.weight.dtype

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
        corruption: Corruption,
        drop_condition: bool = False,
    ) -> Prediction:
        """``D(x, sigma)`` for ``x [B, C, V, H, W]`` and ``sigma [B]``.

        The network sees ``c_in(sigma_aug) * (z + sigma_aug * noise)`` in the camera slots whatever ``sigma``
        is; ``sigma_aug`` itself is not told. ``drop_condition`` blanks cameras and mask (input guidance).
        """
        given = condition_indicator(x.shape[2], x.device, torch.bool)
        at_sigma = coefficients(_column(sigma))
        clean = condition.latent.to(x.dtype)
        noisy = clean
        if corruption.noise is not None:
            noisy = clean + corruption.noise.to(x.dtype) * _column(corruption.sigma.to(x.dtype))
        # Scaled up by 1 / c_in here and down again below, because in bfloat16 the two do not cancel exactly.
        noisy = noisy * input_scale(_column(corruption.sigma.to(x.dtype))) * (1 / at_sigma.c_in)
        mask = given.to(x.dtype).expand(x.shape[0], 1, -1, *x.shape[3:])
        if drop_condition:
            noisy, mask = torch.zeros_like(noisy), torch.zeros_like(mask)
        mixed = torch.where(given, noisy, x)
        network_input = mixed * at_sigma.c_in
        noise_level = at_sigma.c_noise.flatten()
        output = (self.call or self.net)(
            network_input.to(self.dtype),
            noise_level=noise_level,
            condition_mask=mask,
            text=None if condition.text is None else condition.text.to(self.dtype),
            padding_mask=condition.padding_mask,
            view_indices=condition.view_indices,
            content=condition.content,
        ).to(x.dtype)
        estimate = at_sigma.c_skip * mixed + at_sigma.c_out * output
        x0 = torch.where(given, clean, estimate)
        return Prediction(x0, estimate, network_input, noise_level, output)

    def log_variance(self, noise_level: Tensor) -> Tensor:
        """Learned log-variance ``[B, 1]`` of the error at a noise level (training only)."""
        features, linear = self.logvar
        return linear(features(noise_level).to(linear.weight.dtype))


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """``D_c + g (D_c - D_u)``: the published convention, the usual scale is ``1 + g``."""
    return conditional + guidance * (conditional - unconditional)


class RandomCorruption:
    """The published model's corruption, new for every call and, there, in inference as well.

    Order of draws as there: a uniform from NumPy (level), a full-size normal that is thrown away, the noise.
    """

    def __init__(self, device: torch.device | str, seed: int = 0) -> None:
        self.uniforms = np.random.RandomState(seed)
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, like: Tensor) -> Corruption:
        batch = like.shape[0]
        level = lognormal_sigma(self.uniforms.uniform(size=batch), AUGMENT_MEAN, AUGMENT_STD)
        self._normal(like)
        return Corruption(torch.tensor(level, dtype=torch.float32).to(like), self._normal(like))

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


class FixedCorruption:
    """The same corruption at every call: constant level, noise from ``RandomState(1)``; level 0 is clean.

    The published code also turns the camera slots into generated ones below this level; noise levels
    under ``sigma`` are therefore not supported here.
    """

    def __init__(self, sigma: float = 0.0) -> None:
        self.sigma = sigma
        self._noise: Tensor | None = None

    def __call__(self, like: Tensor) -> Corruption:
        sigma = like.new_full((like.shape[0],), self.sigma)
        if self.sigma == 0:
            return Corruption(sigma)
        if self._noise is None or self._noise.shape != like.shape:
            values = np.random.RandomState(1).standard_normal(tuple(like.shape))
            self._noise = torch.from_numpy(values.astype(np.float32)).to(like)
        return Corruption(sigma, self._noise)


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1, 1)
