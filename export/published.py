# SPDX-License-Identifier: Apache-2.0
"""The published model as graphs: pictures to condition, one denoising call, latent to ranges; and its tokenizers alone.

Exported is the corrected use of the model (docs/published_model.md): clean cameras, no text (its branch is zero), no
guidance (a no-op then). A sampler around ``denoiser`` needs nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_denoiser import Condition, Corruption, DiffusionModel
from lidargen_ros.models.dit_latents import encode_views, join, split
from lidargen_ros.models.published import ROW_REPEAT
from lidargen_ros.models.published_sampling import LatentSizes
from lidargen_ros.models.tokenizer_codec import Tokenizer
from lidargen_ros.projection import pick_rows
from lidargen_ros.range_coding import decode_linear

from .graphs import BF16_OPSET, OPSET, Graph, without_weights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def opset(precision: str) -> int:
    return BF16_OPSET if precision == "bf16" else OPSET


class LatentEncoder(nn.Module):
    """``image [B, 3, H, W] in [-1, 1] -> latent [B, C, h, w]``, normalised where the tokenizer has statistics."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image: Tensor) -> Tensor:
        encode = self.tokenizer.encode_raw if self.tokenizer.stats is None else self.tokenizer.encode
        return encode(image[:, :, None])[:, :, 0]


class LatentDecoder(nn.Module):
    """``latent [B, C, h, w] -> image [B, 3, H, W]``, not clamped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latent: Tensor) -> Tensor:
        decode = self.tokenizer.decode_raw if self.tokenizer.stats is None else self.tokenizer.decode
        return decode(latent[:, :, None])[:, :, 0]


class ConditionGraph(nn.Module):
    """``images [views, 3, H, W] in [-1, 1] -> condition [1, C, views + 1, h, w]``, the LiDAR's slot empty."""

    def __init__(self, tokenizer: Tokenizer, sizes: LatentSizes) -> None:
        super().__init__()
        self.tokenizer, self.lidar = tokenizer, sizes.lidar

    def forward(self, images: Tensor) -> Tensor:
        views = [view[None, :, None] for view in images.unbind(0)]
        return join(None, encode_views(self.tokenizer.encode, views), self.lidar)


class DenoiserGraph(nn.Module):
    """``(x, sigma [1], condition) -> x0``, latents ``[1, C, views + 1, h, w]`` float32, preconditioning inside."""

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        clean = Corruption(torch.zeros_like(sigma))
        return self.model.denoise(x, sigma, Condition(condition), clean).x0


class RangeGraph(nn.Module):
    """``x0 [1, C, views + 1, h, w] -> range_m [rows, columns]``, 0 where nothing returns."""

    def __init__(self, tokenizer: Tokenizer, sizes: LatentSizes, near_m: float, far_m: float) -> None:
        super().__init__()
        self.tokenizer, self.sizes, self.limits = tokenizer, sizes, (near_m, far_m)

    def forward(self, x0: Tensor) -> Tensor:
        latent, _ = split(x0, self.sizes.lidar, self.sizes.camera)
        codes = self.tokenizer.decode(latent)[0, :, 0]
        return decode_linear(
            pick_rows(codes, ROW_REPEAT).mean(0), near_m=self.limits[0], far_m=self.limits[1]
        )


def tokenizer_graphs(tokenizer: Tokenizer, size: tuple[int, int], precision: str) -> list[Graph]:
    """Encoder and decoder of a tokenizer for single frames of ``size`` (height, width); the batch stays free."""
    tokenizer = tokenizer.to(DTYPES[precision])
    config = tokenizer.config
    generator = torch.Generator().manual_seed(0)
    small = (s // config.spatial_compression for s in size)
    image = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    latent = torch.randn(2, config.latent_channels, *small, generator=generator)
    free = {0: "batch"}
    return [
        Graph("encoder", LatentEncoder(tokenizer), {"image": image}, ("latent",), {"image": free}, opset(precision)),
        Graph("decoder", LatentDecoder(tokenizer), {"latent": latent}, ("image",), {"latent": free}, opset(precision)),
    ]  # fmt: skip


def denoiser_graph(config: DiTConfig, sizes: LatentSizes, precision: str, rounded_positions: bool) -> Graph:
    """The denoiser without weights; give ``graphs.trace`` a source of them (names as in checkpoints, ``model.`` before)."""
    dtype = DTYPES[precision]
    with torch.device("meta"):
        model = DiffusionModel(config, rounded_positions).to(dtype)
    without_weights(model.requires_grad_(False))
    height, width = sizes.padded
    model.net.layout(height, width, torch.device("cpu"), dtype)  # real position tables, become constants
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.latent_channels, config.views, height, width)
    inputs = {
        "x": torch.randn(shape, generator=generator),
        "sigma": torch.tensor([1.3]),
        "condition": torch.randn(shape, generator=generator),
    }
    return Graph("denoiser", DenoiserGraph(model), inputs, ("x0",), opset=opset(precision))


def codec_graphs(
    camera: Tokenizer,
    lidar: Tokenizer,
    config: DiTConfig,
    sizes: LatentSizes,
    precision: str,
    limits: tuple[float, float],
) -> list[Graph]:
    """The condition encoder and the range decoder around a denoiser; ``limits``: metres cut off at either end."""
    dtype = DTYPES[precision]
    generator = torch.Generator().manual_seed(0)
    size = (n * camera.config.spatial_compression for n in sizes.camera)
    images = torch.rand(config.views - 1, 3, *size, generator=generator) * 2 - 1
    x0 = torch.randn(1, config.latent_channels, config.views, *sizes.padded, generator=generator)
    encoder, decoder = ConditionGraph(camera.to(dtype), sizes), RangeGraph(lidar.to(dtype), sizes, *limits)
    return [
        Graph("encoder", encoder, {"images": images}, ("condition",), opset=opset(precision)),
        Graph("decoder", decoder, {"x0": x0}, ("range_m",), opset=opset(precision)),
    ]
