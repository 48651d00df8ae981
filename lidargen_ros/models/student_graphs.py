# SPDX-License-Identifier: Apache-2.0
"""The three graphs of a student as they are exported: pixels to condition, one denoising step, decoding.

Training looks pixels up with the same ``look_up`` that the exported encoder holds, and decodes ranges with the same
``range_coding.decode_log``: what is trained is what runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..range_coding import decode_log
from .student import Condition, Student, StudentConfig


def look_up(atlas: Tensor, grid: Tensor, mask: Tensor) -> Tensor:
    """Colours of every ray at every supposed depth.

    Args:
        atlas: uint8 ``[B, H, W, 3]``, the views stacked top to bottom (``cameras.align.atlas``).
        grid: ``[B, K, rows, columns, 2]`` and
        mask: ``[B, K, rows, columns]`` (``cameras.align.Alignment``).

    Returns:
        ``[B, 4 K, rows, columns]``: K times red, green, blue in [-1, 1] and the mask; 0 where nobody looks.
    """
    b, k, rows, columns, _ = grid.shape
    image = atlas.permute(0, 3, 1, 2).to(grid.dtype) / 127.5 - 1
    flat = grid.reshape(b, k * rows, columns, 2)
    colours = F.grid_sample(image, flat, mode="bilinear", padding_mode="border", align_corners=False)
    colours = colours.reshape(b, 3, k, rows, columns).transpose(1, 2) * mask[:, :, None]
    return torch.cat([colours, mask[:, :, None]], dim=2).reshape(b, 4 * k, rows, columns)


class EncoderGraph(nn.Module):
    """``(atlas [H, W, 3] uint8, grid [K, R, C, 2], mask [K, R, C], rays [F, R, C]) -> condition``.

    A network that reads the sweep before has one more input, ``previous [2, R, C]`` (``carry``), zeros where there is none.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.encoder = student.encoder

    def forward(
        self, atlas: Tensor, grid: Tensor, mask: Tensor, rays: Tensor, previous: Tensor | None = None
    ) -> Condition:
        # Cast before anything else: TensorRT takes bytes at a graph's door, but no operator works on them.
        pixels = look_up(atlas.to(grid.dtype)[None], grid[None], mask[None])
        return self.encoder(pixels, rays[None], None if previous is None else previous[None])


def denoiser_outputs(config: StudentConfig) -> tuple[str, ...]:
    """Names of the denoiser graph's outputs, in order."""
    return ("code", "logit", "intensity") + ("spread",) * config.spread


def encoder_inputs(config: StudentConfig) -> tuple[str, ...]:
    """Names of the encoder graph's inputs, in order."""
    return ("atlas", "grid", "mask", "rays") + ("previous",) * config.previous


class DenoiserGraph(nn.Module):
    """``(x [1, 2, R, C], t [1], condition) -> code, logit, intensity [1, R, C]``, preconditioning inside; networks that
    say their spread give it as a fourth."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, x: Tensor, t: Tensor, full: Tensor, fine: Tensor, patch: Tensor, mid: Tensor, coarse: Tensor
    ) -> tuple[Tensor, ...]:
        return self.student.denoise(x, t, Condition(full, fine, patch, mid, coarse)).known()


class DecoderGraph(nn.Module):
    """``(code, logit [1, R, C]) -> range_m, probability [R, C]``."""

    def __init__(self, min_range: float, max_range: float) -> None:
        super().__init__()
        self.limits = (min_range, max_range)

    def forward(self, code: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        return decode_log(code[0], *self.limits), torch.sigmoid(logit[0])
