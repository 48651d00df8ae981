# SPDX-License-Identifier: Apache-2.0
"""The multi-view diffusion transformer of Cosmos-Transfer-LidarGen, at any size.

The slots of a sample (LiDAR, then cameras) lie along the frame axis of the latent ``[B, C, V, H, W]``.
Slots are told apart by a learned view vector and the condition mask, which enter as input channels.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .dit_config import DiTConfig
from .dit_layers import EPSILON, Block, FinalLayer, Sinusoids, TimestepMLP, linear
from .dit_tokens import Content, TokenLayout, token_layout


class PatchEmbedding(nn.Module):
    """Patches to tokens; features of a patch are ordered (channel, dy, dx), tokens (slot, row, column)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        p = config.patch
        self.proj = nn.Sequential(
            Rearrange("b c v (h p) (w q) -> b (v h w) (c p q)", p=p, q=p),
            linear(config.input_channels * p * p, config.width),
        )

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        patches = self.proj[0](x)
        return self.proj[1](patches if keep is None else patches[:, keep])


class PositionVector(nn.Module):
    """Holds the vector 0, 1, 2 ... that checkpoints store; the tables are computed where they are used."""

    seq: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("seq", torch.arange(length, dtype=torch.float32))


class MultiViewDiT(nn.Module):
    """Network ``F`` of the denoiser; input and output are preconditioned elsewhere.

    Args:
        config: sizes.
        rounded_positions: use the bfloat16-rounded position tables that the published weights were trained
            with (needed for equal numbers in bfloat16; float32 parity runs use exact tables).
    """

    def __init__(self, config: DiTConfig, rounded_positions: bool = False) -> None:
        super().__init__()
        self.config = config
        self.rounded_positions = rounded_positions
        self.x_embedder = PatchEmbedding(config)
        self.pos_embedder = PositionVector(config.max_positions)
        self.t_embedder = nn.Sequential(Sinusoids(config.width), TimestepMLP(config.width))
        self.affline_norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.blocks = nn.ModuleDict({f"block{i}": Block(config) for i in range(config.blocks)})
        self.final_layer = FinalLayer(config)
        self.view_embeddings = nn.Embedding(config.view_rows, config.view_width)
        self._layouts: dict[Any, TokenLayout] = {}

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        condition_mask: Tensor,
        text: Tensor | None = None,
        padding_mask: Tensor | None = None,
        view_indices: Tensor | None = None,
        content: Content | None = None,
    ) -> Tensor:
        """One network call.

        Args:
            x: preconditioned latent ``[B, C, V, H, W]``.
            noise_level: ``c_noise(sigma)``, ``[B]``.
            condition_mask: 1 where a slot is given, ``[B, 1, V, H, W]``.
            text: ``[B, V*tokens, text width]``, split evenly over the slots; None skips the text branch,
                which is bitwise the same as zeros because keys, values and hence the branch are then 0.
            padding_mask: ``[B, 1, any, any]``, resized to the latent by nearest neighbour; None is zeros.
            view_indices: ``[B, V]`` integers; None is 0, 1, 2, ...
            content: latent (rows, columns) that each slot really uses; tokens outside are left out and the
                output is 0 there. Not equivalent to the published model, which attends to padding as well.

        Returns:
            ``F`` of the same shape as ``x``.
        """
        height, width = x.shape[-2:]
        layout = self.layout(height, width, x.device, x.dtype, content)
        tokens = self.x_embedder(
            self.input_channels(x, condition_mask, padding_mask, view_indices), layout.keep
        )
        sinusoids = self.t_embedder[0](noise_level, x.dtype)
        shared, level = self.t_embedder[1](sinusoids), self.affline_norm(sinusoids)
        for block in self.blocks.values():
            tokens = block(tokens, level, shared, layout.tables, text, layout.slot_lengths)
        patches = layout.scatter(self.final_layer(tokens, level, shared))
        p = self.config.patch
        return rearrange(
            patches, "b (v h w) (p q c) -> b c v (h p) (w q)", v=x.shape[2], h=height // p, p=p, q=p
        )

    def input_channels(
        self, x: Tensor, condition_mask: Tensor, padding_mask: Tensor | None, view_indices: Tensor | None
    ) -> Tensor:
        """Latent, condition mask, padding mask and view vector along channels, ``[B, C+2+V+1, V, H, W]``."""
        batch, _, views, height, width = x.shape
        if view_indices is None:
            view_indices = torch.arange(views, device=x.device).expand(batch, views)
        if padding_mask is None:
            padding = x.new_zeros(()).expand(batch, 1, views, height, width)
        else:
            padding = nearest(padding_mask, height, width)[:, :, None].expand(-1, -1, views, -1, -1)
        vectors = self.view_embeddings(view_indices.clamp(max=self.config.view_rows - 1))
        vectors = rearrange(vectors, "b v c -> b c v 1 1").expand(-1, -1, -1, height, width)
        return torch.cat([x, condition_mask.to(x.dtype), padding.to(x.dtype), vectors], dim=1)

    def layout(
        self,
        height: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        content: Content | None = None,
    ) -> TokenLayout:
        """Constant tables for a latent size, made once and kept."""
        key = (height, width, device, dtype, content)
        if key not in self._layouts:
            self._layouts[key] = token_layout(
                self.config, height, width, device, dtype, self.rounded_positions, content
            )
        return self._layouts[key]

    def compile_blocks(self, **options: Any) -> None:
        """``torch.compile`` each block; they share one graph, so this takes seconds, not minutes."""
        for block in self.blocks.values():
            block.compile(**options)

    def uncompile_blocks(self) -> None:
        """Undo ``compile_blocks``."""
        for block in self.blocks.values():
            block._compiled_call_impl = None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Weights of a fresh model: Xavier, except that blocks start as the identity plus positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
        nn.init.normal_(self.view_embeddings.weight, generator=generator)
        for name, weight in self.named_parameters():
            if name.startswith("t_embedder"):
                nn.init.normal_(weight, std=0.02, generator=generator)
            elif name.startswith("blocks") and name.endswith("adaLN_modulation.2.weight"):
                nn.init.zeros_(weight)
        self.pos_embedder.seq.copy_(torch.arange(self.config.max_positions))


def nearest(image: Tensor, height: int, width: int) -> Tensor:
    """Nearest-neighbour resize of ``[B, C, h, w]``: source index ``floor(i * in / out)``."""
    rows = torch.arange(height, device=image.device) * image.shape[-2] // height
    columns = torch.arange(width, device=image.device) * image.shape[-1] // width
    return image[..., rows[:, None], columns]
