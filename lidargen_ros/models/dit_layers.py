# SPDX-License-Identifier: Apache-2.0
"""Layers of the multi-view DiT. Attribute names give the key names of the published checkpoint.

Shapes: ``B`` batch, ``N`` tokens of all slots, ``D`` width, ``n`` heads, ``d`` head width.
Linear maps have no bias. Modulation, gates and residual sums run in the type of the weights; the two norms
and the rotation compute in float32 inside and round once, as the published model does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dit_config import DiTConfig
from .dit_positions import rotate

EPSILON = 1e-6


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then ``* (1 + scale) + shift``; vectors ``[B, D]``, ``x [B, N, D]``."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    return normed * (1 + scale[:, None]) + shift[:, None]


def modulation(width: int, rank: int, parts: int) -> nn.Sequential:
    """Low-rank map from the noise-level vector to ``parts`` vectors of the model width."""
    return nn.Sequential(nn.SiLU(), linear(width, rank), linear(rank, parts * width))


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        head_width = width // heads
        self.to_q = nn.Sequential(linear(width, width), nn.RMSNorm(head_width, eps=EPSILON))
        self.to_k = nn.Sequential(linear(context_width, width), nn.RMSNorm(head_width, eps=EPSILON))
        self.to_v = nn.Sequential(linear(context_width, width))
        self.to_out = nn.Sequential(linear(width, width))

    def queries(self, x: Tensor) -> Tensor:
        return self.to_q[1](self._heads(self.to_q[0](x)))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k[1](self._heads(self.to_k[0](context))), self._heads(self.to_v[0](context))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention of ``[B, tokens, n, d]`` over all keys, without a mask -> ``[B, tokens, D]``."""
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(nn.Module):
    """Attention over the tokens of all slots together."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads, config.width)

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.attn.keys_values(x)
        return rotate(self.attn.queries(x), cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.attn.to_out[0](self.attn.attend(*self.queries_keys_values(x, cos, sin)))


class CrossAttention(nn.Module):
    """Each slot attends to its own consecutive share of the text tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads, config.text_width)

    def forward(self, x: Tensor, text: Tensor, slot_lengths: Sequence[int]) -> Tensor:
        q = self.attn.queries(x).split(list(slot_lengths), dim=1)
        k, v = (part.chunk(len(slot_lengths), dim=1) for part in self.attn.keys_values(text))
        mixed = [self.attn.attend(*slot) for slot in zip(q, k, v, strict=True)]
        return self.attn.to_out[0](torch.cat(mixed, dim=1))


class MLP(nn.Module):
    """``layer2(GELU(layer1(x)))`` with the exact (erf) GELU."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.layer1 = linear(config.width, config.mlp_ratio * config.width)
        self.layer2 = linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(F.gelu(self.layer1(x)))


class SubBlock(nn.Module):
    """Gated residual branch: ``x + gate * branch(norm(x) * (1 + scale) + shift)``."""

    def __init__(self, config: DiTConfig, branch: nn.Module) -> None:
        super().__init__()
        self.block = branch
        self.adaLN_modulation = modulation(config.width, config.adaln_width, parts=3)

    def forward(self, x: Tensor, level: Tensor, shared: Tensor, *inputs: object) -> Tensor:
        """``level [B, D]`` noise-level vector, ``shared [B, 3D]`` modulation that all sub-blocks add."""
        shift, scale, gate = (self.adaLN_modulation(level) + shared).chunk(3, dim=-1)
        return x + gate[:, None] * self.block(modulated_norm(x, shift, scale), *inputs)


class Block(nn.Module):
    """Additive positions, then self-attention, cross-attention to the text, MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        branches = (SelfAttention(config), CrossAttention(config), MLP(config))
        self.blocks = nn.ModuleList(SubBlock(config, branch) for branch in branches)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        shared: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        text: Tensor | None,
        slot_lengths: Sequence[int],
    ) -> Tensor:
        """``tables``: cos, sin ``[N, d/2]``, additive embedding ``[N, D]``. Without text no cross-attention."""
        cos, sin, additive = tables
        x = x + additive
        x = self.blocks[0](x, level, shared, cos, sin)
        if text is not None:
            x = self.blocks[1](x, level, shared, text, slot_lengths)
        return self.blocks[2](x, level, shared)


class FinalLayer(nn.Module):
    """Modulated norm and the map to output patches, whose features are ordered (dy, dx, channel)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = linear(config.width, config.latent_channels * config.patch**2)
        self.adaLN_modulation = modulation(config.width, config.adaln_width, parts=2)

    def forward(self, x: Tensor, level: Tensor, shared: Tensor) -> Tensor:
        wanted = self.adaLN_modulation(level)
        shift, scale = (wanted + shared[:, : wanted.shape[-1]]).chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))


class Sinusoids(nn.Module):
    """``[cos(t f), sin(t f)]`` of a scalar per sample, cosines first, evaluated in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count = width // 2

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(t.dtype, torch.float32)
        exponents = torch.arange(self.count, dtype=wide, device=t.device) / self.count
        angles = t.to(wide)[:, None] * 10000.0**-exponents
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


class TimestepMLP(nn.Module):
    """Sinusoids ``[B, D]`` to the modulation ``[B, 3D]`` that every sub-block adds to its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = linear(width, width)
        self.linear_2 = linear(width, 3 * width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))
