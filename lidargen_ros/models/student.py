# SPDX-License-Identifier: Apache-2.0
"""The student: a small network from ray-aligned pixels to a sweep, in one step or several.

Three parts, so that the condition is computed once per frame and reused by every step:

* ``ConditionEncoder``: colours looked up for every ray at several depths -> features at four scales;
* ``Denoiser``: (noisy sweep, noise level, features) -> tokens, the only part that runs once per step;
* ``Decoder``: tokens and fine features -> range code, return logit, intensity.

Scales of a 128 x 1800 sweep: full 128 x 1800, fine 64 x 600, patch 32 x 200, mid 16 x 100, coarse 8 x 50; every
stride divides 1800, so that the turn stays a circle without padding. Rows must be a multiple of 16, columns of 36.

A noisy sweep is ``x_t = (1 - t) x_0 + t e`` with two channels: range code in [-1, 1] and return in {-1, +1}. ``t = 1``
with ``x = 0`` asks for the best estimate in one step; lower levels are for drawing samples (``student_sampling``). The
straight path is that of rectified flow (Liu et al. 2022, arXiv 2209.03003); the network predicts x_0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FINE, PATCH = (2, 3), (4, 9)  # strides of the fine and patch scales against the full one
ROW_MULTIPLE, COLUMN_MULTIPLE = 16, 36
LOG_SPREAD = (-6.0, 0.0)  # limits of the logarithm of a spread of range codes


@dataclass(frozen=True)
class StudentConfig:
    """Size of a student; ``hypotheses`` is the number of depths at which each ray looks up a pixel."""

    hypotheses: int = 6
    ray_features: int = 8
    full: int = 16
    fine: int = 32
    patch: int = 96
    mid: int = 160
    coarse: int = 240
    head_width: int = 40
    encoder_blocks: tuple[int, int, int, int] = (1, 1, 1, 2)  # fine, patch, mid, coarse
    denoiser_blocks: tuple[int, int, int] = (1, 1, 2)  # patch, mid, coarse
    decoder_blocks: int = 1  # fine
    full_blocks: int = 1
    sigma_data: float = 0.5
    previous: bool = False  # the encoder also reads the sweep before, moved to where the vehicle is now
    spread: bool = False  # the decoder also sees x_t ray by ray, and says how far its range may be off

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> StudentConfig:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return StudentConfig(**plain)


NANO = StudentConfig(full_blocks=2, previous=True, spread=True)
BASE = StudentConfig(
    full=24, fine=64, patch=128, mid=256, coarse=448, head_width=64,
    encoder_blocks=(2, 2, 3, 4), denoiser_blocks=(2, 2, 4), decoder_blocks=2,
    full_blocks=2, previous=True, spread=True,
)  # fmt: skip


class Condition(NamedTuple):
    """What the encoder knows of a frame: features ``[B, C, rows / s, columns / s]`` at each scale."""

    full: Tensor
    fine: Tensor
    patch: Tensor
    mid: Tensor
    coarse: Tensor


class Estimate(NamedTuple):
    """Maps ``[B, rows, columns]``: range code (float32), logit of a return, intensity in 0..1, and, from networks that say
    it, the standard deviation of the code."""

    code: Tensor
    logit: Tensor
    intensity: Tensor
    spread: Tensor | None = None

    def known(self) -> tuple[Tensor, ...]:
        """What the network says, for a graph to give out."""
        return tuple(value for value in self if value is not None)


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; batch normalisation folds away at export."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        nn.init.constant_(self.second[1].weight, 0.2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Circular(nn.Module):
    """Runs convolutions on a circle: columns are wrapped once for the whole stack instead of once per layer.

    ``reach`` is the number of 3 x 3 convolutions inside; each spoils one wrapped column with its zero padding.
    """

    def __init__(self, *layers: nn.Module, reach: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        if self.reach == 0:
            return self.layers(x)
        n = self.reach
        return self.layers(torch.cat([x[..., -n:], x, x[..., :n]], dim=-1))[..., n:-n]


def residuals(width: int, count: int) -> Circular:
    return Circular(*(Residual(width) for _ in range(count)), reach=2 * count)


def down(inputs: int, outputs: int, stride: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, stride, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Up(nn.Module):
    """Narrows the channels, repeats pixels and adds the skip."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs, outputs, 1)
        self.stride = tuple(float(s) for s in stride)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.interpolate(self.narrow(x), scale_factor=self.stride, mode="nearest") + skip


class Attention(nn.Module):
    """Transformer block over all coarse cells: the whole turn sees the whole turn."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C]
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class Coarse(nn.Module):
    """Attention blocks on a ``[B, C, h, w]`` map, after a depth-wise convolution that tells the cells their place."""

    def __init__(self, width: int, head_width: int, count: int) -> None:
        super().__init__()
        self.place = Circular(nn.Conv2d(width, width, 3, padding=1, groups=width), reach=1)
        self.blocks = nn.Sequential(*(Attention(width, head_width) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x + self.place(x)
        return self.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w)


class ConditionEncoder(nn.Module):
    """Ray-aligned pixels -> ``Condition``.

    Inputs: ``pixels [B, K * 4, rows, columns]`` (K colours in [-1, 1], each followed by 1 where a camera sees the
    point and 0 elsewhere), ``rays [B, ray_features, rows, columns]`` and, for a network that reads it, ``previous
    [B, 2, rows, columns]``: range code and return (-1 or 1) that the sweep before this one gives each ray, 0 where unknown.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        c, blocks = config, config.encoder_blocks
        inputs = 4 * c.hypotheses + c.ray_features + 2 * c.previous
        self.full = nn.Sequential(nn.Conv2d(inputs, c.full, 1), nn.ReLU())
        self.fine = nn.Sequential(down(inputs + c.full, c.fine, FINE), residuals(c.fine, blocks[0]))
        self.patch = nn.Sequential(down(c.fine, c.patch, FINE), residuals(c.patch, blocks[1]))
        self.mid = nn.Sequential(down(c.patch, c.mid, (2, 2)), residuals(c.mid, blocks[2]))
        self.coarse = nn.Sequential(down(c.mid, c.coarse, (2, 2)), Coarse(c.coarse, c.head_width, blocks[3]))

    def forward(self, pixels: Tensor, rays: Tensor, previous: Tensor | None = None) -> Condition:
        inputs = torch.cat([pixels, rays] if previous is None else [pixels, rays, previous], 1)
        full = self.full(inputs)
        fine = self.fine(torch.cat([inputs, full], 1))
        patch = self.patch(fine)
        mid = self.mid(patch)
        return Condition(full, fine, patch, mid, self.coarse(mid))


class Denoiser(nn.Module):
    """``(x_t [B, 2, rows, columns], t [B], condition) -> tokens [B, patch, rows / 4, columns / 9]``."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        c, blocks = config, config.denoiser_blocks
        self.embed = nn.Conv2d(2, c.patch, PATCH, PATCH)
        self.level = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, c.patch + c.mid + c.coarse))
        self.widths = (c.patch, c.mid, c.coarse)
        self.patch = residuals(c.patch, blocks[0])
        self.down_mid = down(c.patch, c.mid, (2, 2))
        self.mid = residuals(c.mid, blocks[1])
        self.down_coarse = down(c.mid, c.coarse, (2, 2))
        self.coarse = Coarse(c.coarse, c.head_width, blocks[2])
        self.up_mid, self.mid_out = Up(c.coarse, c.mid, (2, 2)), residuals(c.mid, blocks[1])
        self.up_patch, self.patch_out = Up(c.mid, c.patch, (2, 2)), residuals(c.patch, blocks[0])

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        level = [v[:, :, None, None] for v in self.level(t[:, None]).split(self.widths, dim=1)]
        patch = self.patch(self.embed(x) + condition.patch + level[0])
        mid = self.mid(self.down_mid(patch) + condition.mid + level[1])
        coarse = self.coarse(self.down_coarse(mid) + condition.coarse + level[2])
        mid = self.mid_out(self.up_mid(coarse, mid))
        return self.patch_out(self.up_patch(mid, patch))


class Decoder(nn.Module):
    """``(tokens, condition, x_t) -> raw maps [B, 3 or 4, rows, columns]``: range code, logit of a return, logit of the
    intensity, logarithm of the spread."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        c = config
        self.up_fine, self.fine = Up(c.patch, c.fine, FINE), residuals(c.fine, config.decoder_blocks)
        self.up_full = Up(c.fine, c.full, FINE)
        # The denoiser reads a noisy sweep by patches, which cannot tell its rays apart.
        self.noisy = nn.Conv2d(2, c.full, 1, bias=False) if c.spread else None
        self.full = residuals(c.full, c.full_blocks)
        self.out = nn.Conv2d(c.full, 4 if c.spread else 3, 1)

    def forward(self, tokens: Tensor, condition: Condition, x: Tensor) -> Tensor:
        fine = self.fine(self.up_fine(tokens, condition.fine))
        full = self.up_full(fine, condition.full)
        full = self.full(full if self.noisy is None else full + self.noisy(x.to(full.dtype)))
        # The last layer runs in float32 whatever the rest does: half precision of a range code is 0.2 m at 60 m.
        with torch.autocast(full.device.type, enabled=False):
            return F.conv2d(full.float(), self.out.weight.float(), self.out.bias.float())  # type: ignore[union-attr]


class Student(nn.Module):
    """Encoder, denoiser and decoder with the preconditioning inside: ``(pixels, rays, x, t) -> Estimate``."""

    def __init__(self, config: StudentConfig = NANO) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.denoiser, self.decoder = (
            ConditionEncoder(config),
            Denoiser(config),
            Decoder(config),
        )

    def encode(self, pixels: Tensor, rays: Tensor, previous: Tensor | None = None) -> Condition:
        if previous is None and self.config.previous:  # none known
            previous = pixels.new_zeros(len(pixels), 2, *pixels.shape[2:])
        return self.encoder(pixels, rays, previous)

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Estimate:
        raw = self.decoder(self.denoiser(x, t, condition), condition, x)
        return precondition(raw, x, t, self.config.sigma_data)

    def forward(
        self, pixels: Tensor, rays: Tensor, x: Tensor, t: Tensor, previous: Tensor | None = None
    ) -> Estimate:
        return self.denoise(x, t, self.encode(pixels, rays, previous))

    def estimate(self, pixels: Tensor, rays: Tensor, previous: Tensor | None = None) -> Estimate:
        """Best estimate in one step: no noise in, nothing drawn."""
        b, _, rows, columns = pixels.shape
        x = pixels.new_zeros(b, 2, rows, columns)
        return self(pixels, rays, x, pixels.new_ones(b), previous)


def precondition(raw: Tensor, x: Tensor, t: Tensor, sigma_data: float) -> Estimate:
    """Adds what the noisy sweep itself says to what the network says, so that little noise needs little work.

    A network that says its ``spread`` s holds the range code m +- s of each ray for likely; seen through x_t = (1 - t) x_0
    + t e, Bayes' rule for two Gaussians gives the estimate. Without: the linear estimator for data of deviation
    ``sigma_data`` (EDM's c_skip, Karras et al. 2022, for the straight path). Return: the exact log-odds of a sign seen in
    Gaussian noise. Nothing is added at t = 1.
    """
    t = t.float()[:, None, None]
    keep = 1 - t
    mean, seen, spread = raw[:, 0].float(), x[:, 0].float(), None
    if raw.shape[1] == 4:
        variance = (2 * raw[:, 3].float().clamp(*LOG_SPREAD)).exp()
        total = t**2 + variance * keep**2
        code = (t**2 * mean + variance * keep * seen) / total
        spread = t * (variance / total).sqrt()
    else:
        total = keep**2 * sigma_data**2 + t**2
        code = keep * sigma_data**2 / total * seen + t / total.sqrt() * mean
    odds = (2 * keep / t.clamp_min(1e-3) ** 2 * x[:, 1].float()).clamp(-12, 12)
    return Estimate(code, raw[:, 1].float() + odds, torch.sigmoid(raw[:, 2].float()), spread)
