# SPDX-License-Identifier: Apache-2.0
"""Position tables of the DiT: rotary angles and the fixed sin/cos embedding added in every block.

The published model casts its tables to bfloat16, in training and in inference. The rounded rotary angles
differ from the exact ones by up to 0.28 rad at the right edge of the image, and the weights have only ever
seen the rounded ones; ``rounded=True`` reproduces them bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def axis_widths(width: int) -> tuple[int, int, int]:
    """Split of ``width`` features over (time, row, column); row and column get the same even share."""
    spatial = 2 * (width // 6)
    return width - 2 * spatial, spatial, spatial


def rotary_frequencies(width: int, rounded: bool, device: torch.device | str | None = None) -> Tensor:
    """``10000^(-2j/width)``, ``[width/2]`` float32; every step in bfloat16 if ``rounded``."""
    dtype = torch.bfloat16 if rounded else torch.float32
    exponents = (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width).to(dtype)
    base = torch.tensor(BASE, dtype=dtype, device=device)  # 9984 in bfloat16
    return (1.0 / torch.pow(base, exponents)).float()


def rotary_angles(
    head_width: int, rows: int, columns: int, rounded: bool, device: torch.device | str | None = None
) -> Tensor:
    """Angles of one slot, ``[rows*columns, head_width/2]`` float32, ordered (time, row, column).

    Time is 0 in every slot: slots are told apart by their view vector, not by a position.
    """
    dtype = torch.bfloat16 if rounded else torch.float32
    widths = axis_widths(head_width)
    per_axis = []
    for size, width in zip((1, rows, columns), widths, strict=True):
        positions = torch.arange(size, dtype=dtype, device=device)
        frequencies = rotary_frequencies(width, rounded, device).to(dtype)
        per_axis.append(torch.outer(positions, frequencies).float())
    return _grid(per_axis, rows, columns)


def additive_embedding(
    width: int, rows: int, columns: int, rounded: bool, device: torch.device | str | None = None
) -> Tensor:
    """Fixed embedding of one slot, ``[rows*columns, width]`` float32, sines before cosines per axis."""
    per_axis = []
    for size, axis_width in zip((1, rows, columns), axis_widths(width), strict=True):
        half = axis_width // 2
        frequencies = BASE ** -(torch.arange(half, dtype=torch.float64, device=device) / half)
        angles = torch.outer(torch.arange(size, dtype=torch.float64, device=device), frequencies)
        per_axis.append(torch.cat([angles.sin(), angles.cos()], dim=-1).float())
    table = _grid(per_axis, rows, columns)
    return table.bfloat16().float() if rounded else table


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of ``x [..., tokens, heads, d]`` by ``cos, sin [tokens, d/2]``.

    Pairs are ``(i, i + d/2)``. Computed in float32 (or the type of ``x`` if wider) and rounded once.
    """
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _grid(per_axis: list[Tensor], rows: int, columns: int) -> Tensor:
    """Concatenate tables of (time, row, column) for every token of a slot, row-major."""
    time, row, column = per_axis
    return torch.cat(
        [
            time.expand(rows * columns, -1),
            row.repeat_interleave(columns, dim=0),
            column.repeat(rows, 1),
        ],
        dim=-1,
    )
