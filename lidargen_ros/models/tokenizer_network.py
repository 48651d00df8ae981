# SPDX-License-Identifier: Apache-2.0
"""The skeleton that both published tokenizers share; ``tokenizer_image`` and ``tokenizer_video`` give the layers.

Module names are those of the published state dicts. Encoder and decoder are not mirror images: ``down`` and ``up``
of the config say where each resamples.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .haar import Patcher
from .tokenizer_config import NO, TokenizerConfig


class Layers(Protocol):
    """What a family (images, video) builds its network from."""

    patcher_suffix: str  # "patcher" or "patcher3d", as the weights are named

    def swish(self, x: Tensor) -> Tensor: ...  # may overwrite x
    def conv(self, cin: int, cout: int) -> nn.Module: ...  # 3x3, keeps the size
    def point(self, cin: int, cout: int) -> nn.Module: ...  # 1x1
    def norm(self, channels: int) -> nn.Module: ...
    def res_block(self, cin: int, cout: int) -> nn.Module: ...
    def attention(self, channels: int) -> nn.Module: ...
    def downsample(self, channels: int, step: str) -> nn.Module | None: ...  # None: no module at all
    def upsample(self, channels: int, step: str) -> nn.Module | None: ...


def swish(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, in the memory of ``x`` where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def swish_in_two(x: Tensor) -> Tensor:
    """The same with the sigmoid rounded to the dtype of ``x``, as the published code has it."""
    return x * torch.sigmoid(x)


class ResBlock(nn.Module):
    """Two normalised convolutions around a shortcut, ``[B, cin, ...]`` to ``[B, cout, ...]``."""

    def __init__(self, layers: Layers, cin: int, cout: int) -> None:
        super().__init__()
        self.swish = layers.swish
        self.norm1 = layers.norm(cin)
        self.conv1 = layers.conv(cin, cout)
        self.norm2 = layers.norm(cout)
        self.conv2 = layers.conv(cout, cout)
        if cin != cout:
            self.nin_shortcut = layers.point(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.swish(self.norm1(x)))
        h = self.conv2(self.swish(self.norm2(h)))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Middle(nn.Module):
    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.block_1 = layers.res_block(channels, channels)
        self.attn_1 = layers.attention(channels)
        self.block_2 = layers.res_block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Res blocks, each followed by attention if the level has it, then a change of resolution."""

    def __init__(
        self, layers: Layers, cin: int, cout: int, blocks: int, attention: bool, down: str = NO, up: str = NO
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList([layers.res_block(cin if i == 0 else cout, cout) for i in range(blocks)])
        self.attn = nn.ModuleList([layers.attention(cout) for _ in range(blocks if attention else 0)])
        if (downsample := layers.downsample(cout, down)) is not None:
            self.downsample = downsample
        if (upsample := layers.upsample(cout, up)) is not None:
            self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Pixels to ``z_factor * z_channels`` feature maps."""

    def __init__(self, config: TokenizerConfig, layers: Layers) -> None:
        super().__init__()
        self.swish = layers.swish
        self.patcher_name = layers.patcher_suffix
        self.add_module(self.patcher_name, Patcher(config.kind, config.patch_method, config.patch_size))
        widths = [config.channels * m for m in (1, *config.channels_mult)]
        self.conv_in = layers.conv(config.patched_channels, widths[0])
        self.down = nn.ModuleList(
            Level(layers, cin, cout, config.num_res_blocks, attention, down=step)
            for cin, cout, attention, step in zip(
                widths, widths[1:], config.encoder_attention, config.down, strict=False
            )
        )
        self.mid = Middle(layers, widths[-1])
        self.norm_out = layers.norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], config.z_factor * config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.get_submodule(self.patcher_name)(x))
        for level in self.down:
            h = level(h)
        return self.conv_out(self.swish(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """``z_channels`` feature maps to pixels, not clamped."""

    def __init__(self, config: TokenizerConfig, layers: Layers) -> None:
        super().__init__()
        self.swish = layers.swish
        self.patcher_name = f"un{layers.patcher_suffix}"
        widths = [config.channels * m for m in config.channels_mult]
        self.conv_in = layers.conv(config.z_channels, widths[-1])
        self.mid = Middle(layers, widths[-1])
        # Stored in level order, run from the last level to the first.
        self.up = nn.ModuleList(
            Level(layers, cin, cout, config.num_res_blocks + 1, attention, up=step)
            for cin, cout, attention, step in zip(
                [*widths[1:], widths[-1]], widths, config.decoder_attention, config.up, strict=True
            )
        )
        self.norm_out = layers.norm(widths[0])
        self.conv_out = layers.conv(widths[0], config.patched_channels)
        unpatcher = Patcher(config.kind, config.patch_method, config.patch_size, inverse=True)
        self.add_module(self.patcher_name, unpatcher)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = self.conv_out(self.swish(self.norm_out(h)))
        return self.get_submodule(self.patcher_name)(h)


class TokenizerNetwork(nn.Module):
    """Autoencoder without normalisation of the latent; state dict as published."""

    def __init__(self, config: TokenizerConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, layers)
        self.decoder = Decoder(config, layers)
        self.quant_conv = layers.point(
            config.z_factor * config.z_channels, config.z_factor * config.latent_channels
        )
        self.post_quant_conv = layers.point(config.latent_channels, config.z_channels)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(p.dtype for p in self.parameters())

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the latent; the latter clamped to [-30, 20], or None where there is none."""
        moments = self.quant_conv(self.encoder(x))
        if self.config.z_factor == 1:
            return moments, None
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Latent of ``x``: the mean, or ``mean + exp(logvar / 2) * eps`` if given ``eps`` and there is a variance."""
        mean, logvar = self.posterior(x)
        return mean if logvar is None or eps is None else mean + torch.exp(0.5 * logvar) * eps

    def decode(self, z: Tensor) -> Tensor:
        """Pixels of a latent, in its dtype, not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
