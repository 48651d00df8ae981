# SPDX-License-Identifier: Apache-2.0
"""Which tokens exist, and the constant tables that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .dit_config import DiTConfig
from .dit_positions import additive_embedding, rotary_angles

Content = tuple[tuple[int, int], ...]  # per slot: latent rows and columns in use, from the upper left corner


@dataclass(frozen=True)
class TokenLayout:
    """Tokens of a sample in the order (slot, row, column).

    Attributes:
        tables: cos and sin ``[N, head width/2]`` (float32) and the additive embedding ``[N, width]``.
        slot_lengths: number of tokens of each slot; they sum to ``N``.
        keep: indices of the kept tokens among all of them, or None if all are kept.
        total: number of tokens before dropping.
    """

    tables: tuple[Tensor, Tensor, Tensor]
    slot_lengths: tuple[int, ...]
    keep: Tensor | None
    total: int

    def scatter(self, tokens: Tensor) -> Tensor:
        """Kept tokens ``[B, N, F]`` back to their places among all, zeros elsewhere."""
        if self.keep is None:
            return tokens
        full = tokens.new_zeros(tokens.shape[0], self.total, tokens.shape[2])
        return full.index_copy(1, self.keep, tokens)


def token_layout(
    config: DiTConfig,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    rounded: bool,
    content: Content | None = None,
) -> TokenLayout:
    """Tables for a padded latent of ``height x width``; positions of kept tokens do not change."""
    p = config.patch
    if height % p or width % p:
        raise ConfigError(f"latent of {height} x {width} is not a multiple of the patch {p}: pad it")
    rows, columns = height // p, width // p
    angles = rotary_angles(config.head_width, rows, columns, rounded, device)
    additive = additive_embedding(config.width, rows, columns, rounded, device).to(dtype)
    angle_dtype = torch.promote_types(dtype, torch.float32)
    tables = [
        part.repeat(config.views, 1)
        for part in (angles.to(angle_dtype).cos(), angles.to(angle_dtype).sin(), additive)
    ]
    total = config.views * rows * columns
    if content is None:
        cos, sin, added = tables
        return TokenLayout((cos, sin, added), (rows * columns,) * config.views, None, total)
    if len(content) != config.views:
        raise ConfigError(f"content sizes given for {len(content)} slots, the network has {config.views}")
    used = torch.zeros(config.views, rows, columns, dtype=torch.bool, device=device)
    for slot, (used_height, used_width) in enumerate(content):
        used[slot, : -(-used_height // p), : -(-used_width // p)] = True
    keep = used.flatten().nonzero()[:, 0]
    lengths = tuple(int(n) for n in used.flatten(1).sum(1).tolist())
    cos, sin, added = (part[keep] for part in tables)
    return TokenLayout((cos, sin, added), lengths, keep, total)
