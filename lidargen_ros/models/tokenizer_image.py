# SPDX-License-Identifier: Apache-2.0
"""The continuous 8x8 image tokenizer (CI8x8): ``[B, 3, H, W]`` to ``[B, latent, H / 8, W / 8]`` and back.

The LiDAR tokenizer is one: it takes a range map as an image of three equal channels, rows repeated four times.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .haar import HALF_TYPES
from .tokenizer_config import NO, TokenizerConfig
from .tokenizer_network import ResBlock, TokenizerNetwork, swish, swish_in_two

GROUP_NORM_EPS = 1e-6


class Attention(nn.Module):
    """One head over all positions of an image, with a residual; the head is as wide as the feature map."""

    def __init__(self, channels: int, num_groups: int, reference: bool = False) -> None:
        super().__init__()
        self.attend = attend_in_steps if reference else attend_positions
        self.norm = nn.GroupNorm(num_groups, channels, eps=GROUP_NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.attend(self.q(h), self.k(h), self.v(h))
        return self.proj_out(h).add_(x)


def attend_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention between the positions of each ``[B, C, H, W]`` map, scale ``C ** -0.5``."""
    height, width = q.shape[-2:]
    # [B, 1, H * W, C], one head. Kernels that never hold the (H * W)**2 scores at once want C contiguous, which
    # costs a copy unless the maps are channels_last.
    q, k, v = (t.flatten(2).transpose(1, 2).contiguous().unsqueeze(1) for t in (q, k, v))
    h = F.scaled_dot_product_attention(q, k, v)
    return h.squeeze(1).transpose(1, 2).unflatten(2, (height, width))


def attend_in_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with scores rounded before scaling, after it and after the softmax, as the published code has it.

    It holds the whole score matrix, so it is used only where those roundings matter: in half precision.
    """
    if q.dtype not in HALF_TYPES:
        return attend_positions(q, k, v)
    height, width = q.shape[-2:]
    q, k, v = (t.flatten(2) for t in (q, k, v))
    weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
    return (v @ weights.transpose(1, 2)).unflatten(2, (height, width))


class Downsample(nn.Module):
    """Halve height and width; the border is one zero column on the right and one zero row at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ImageLayers:
    """Layers of the image family, see :class:`lidargen_ros.models.tokenizer_network.Layers`."""

    patcher_suffix = "patcher"

    def __init__(self, num_groups: int, reference: bool = False) -> None:
        self.num_groups = num_groups
        self.reference = reference
        self.swish = swish_in_two if reference else swish

    def conv(self, cin: int, cout: int) -> nn.Module:
        return nn.Conv2d(cin, cout, 3, padding=1)

    def point(self, cin: int, cout: int) -> nn.Module:
        return nn.Conv2d(cin, cout, 1)

    def norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.num_groups, channels, eps=GROUP_NORM_EPS)

    def res_block(self, cin: int, cout: int) -> nn.Module:
        return ResBlock(self, cin, cout)

    def attention(self, channels: int) -> nn.Module:
        return Attention(channels, self.num_groups, self.reference)

    def downsample(self, channels: int, step: str) -> nn.Module | None:
        return Downsample(channels) if step != NO else None

    def upsample(self, channels: int, step: str) -> nn.Module | None:
        return Upsample(channels) if step != NO else None


class ImageTokenizer(TokenizerNetwork):
    """Network of the CI8x8 family. Height and width must be multiples of the compression (8)."""

    def __init__(self, config: TokenizerConfig, reference: bool = False) -> None:
        super().__init__(config, ImageLayers(config.num_groups, reference))
