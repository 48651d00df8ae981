# SPDX-License-Identifier: Apache-2.0
"""How pictures reach the rays: looked up through the calibration, or found by attention.

Both give the student what its encoder expects: ``pixels [B, 4 K, R, C]`` and ``rays [B, F, R, C]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidargen_ros.models.student import PATCH, Residual, down
from lidargen_ros.models.student_graphs import look_up
from training.student.rigs import Bank

from .scenes import EXTRA_ROWS, Frames

_STRIDE, _OCTAVES = 8, 6


class Aligned(nn.Module):
    """The shipped way: every ray's colour at each of the supposed ``depths``.

    Args:
        depths: which of the bank's hypotheses to look up.
        higher: look also along the rays above the top beam.
    """

    def __init__(self, bank: Bank, depths: Sequence[int], *, higher: bool = False) -> None:
        super().__init__()
        first = 0 if higher else EXTRA_ROWS
        self._grid = bank.grid[:, list(depths), first:].contiguous()
        self._mask = bank.mask[:, list(depths), first:].contiguous()
        self._rays = bank.rays[:, :, first:].contiguous()

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        pixels = look_up(frames.atlas, self._grid[frames.entry], self._mask[frames.entry])
        return pixels, self._rays[frames.entry]


class Attending(nn.Module):
    """No alignment: embeddings of the rays, one per patch of the sweep, attend to features of patches of the pictures.

    Both carry their direction (and a camera its place) as Fourier features, as in PETR (Liu et al. 2022, arXiv 2203.05625)
    with directions in place of points; so calibration enters here as well, and the rest of the student stays what it is.

    Args:
        hypotheses: the result has 4 times as many channels, as if so many depths had been looked up.
    """

    def __init__(self, bank: Bank, hypotheses: int, *, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        half = _STRIDE // 2
        height, columns = bank.camera_rays.shape[2:4]
        self._tile = (height, columns)
        self._rays = bank.rays[:, :, EXTRA_ROWS:].contiguous()
        of_patches = bank.camera_rays[:, :, half::_STRIDE, half::_STRIDE]
        of_patches = of_patches[:, :, : height // _STRIDE, : columns // _STRIDE]
        places = bank.camera_origins[:, :, None, None].expand_as(of_patches)
        self._keys = torch.cat([fourier(of_patches), places], -1).flatten(1, 3)
        middle = bank.directions[:, EXTRA_ROWS + PATCH[0] // 2 :: PATCH[0], PATCH[1] // 2 :: PATCH[1]]
        self._cells = middle.shape[1:3]
        self._queries = fourier(middle).flatten(1, 2)

        self.see = nn.Sequential(
            down(3, width // 2, (4, 4)),
            Residual(width // 2),
            down(width // 2, width, (2, 2)),
            Residual(width),
        )
        self.key, self.query = (
            embedding(self._keys.shape[-1], width),
            embedding(self._queries.shape[-1], width),
        )
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )  # fmt: skip
        self.out = nn.Linear(width, 4 * hypotheses)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        b, (height, width) = len(frames.entry), self._tile
        pictures = frames.atlas.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = self.see(pictures).flatten(2).transpose(1, 2)
        features = features.reshape(b, -1, features.shape[-1])
        keys = features + self.key(self._keys[frames.entry])
        found = self.query(self._queries[frames.entry])
        for layer in self.layers:
            found = layer(found, keys)
        maps = self.out(found).transpose(1, 2).unflatten(2, self._cells)
        scale = tuple(float(s) for s in PATCH)
        return F.interpolate(maps, scale_factor=scale, mode="nearest"), self._rays[frames.entry]


def fourier(directions: Tensor) -> Tensor:
    """``[..., 3] -> [..., 3 + 6 * octaves]``: the direction, and sines and cosines of its multiples."""
    angles = torch.cat([directions * (torch.pi * 2**k) for k in range(_OCTAVES)], -1)
    return torch.cat([directions, angles.sin(), angles.cos()], -1)


def embedding(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
