# SPDX-License-Identifier: Apache-2.0
"""The causal video tokenizer (CV8x8x8): ``[B, 3, T, H, W]`` to ``[B, latent, 1 + (T - 1) / 8, H / 8, W / 8]``.

Causal: frame ``i`` never sees a later one; time is padded with copies of the first frame, space with zeros. ``T``
should be ``1 + 8 k``; other lengths run but do not come back with the same length.

**Single frames.** The project encodes one frame at a time. All copies of a lone frame are equal, so a convolution
over three frames is one over a single frame with its taps summed, temporal attention is its value path, and the
network is two-dimensional: 13 % fewer operations for the same numbers up to rounding. This happens by itself
whenever ``T`` is 1, unless ``reference`` asks for the published roundings, which matter in bfloat16.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .haar import repeat_first_frame
from .tokenizer_config import NO, SPACE, TIME, TokenizerConfig
from .tokenizer_image import GROUP_NORM_EPS, attend_in_steps, attend_positions
from .tokenizer_network import ResBlock, TokenizerNetwork, swish, swish_in_two


class CausalConv(nn.Module):
    """Convolution with kernel ``(kt, k, k)``; ``kt - time_stride`` copies of the first frame precede the clip."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: tuple[int, int, int],
        stride: int = 1,
        time_stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.fold_taps = True
        self.copies = max(kernel[0] - time_stride, 0)
        self.conv3d = nn.Conv3d(
            cin, cout, kernel, stride=(time_stride, stride, stride), padding=(0, padding, padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 1 and self.conv3d.stride[0] == 1:
            return self.on_equal_frames(x)
        return self.conv3d(repeat_first_frame(x, self.copies))

    def on_equal_frames(self, x: Tensor) -> Tensor:
        """Output for kernels that lie on copies of one frame, ``[B, cin, 1, H, W]`` to ``[B, cout, 1, H, W]``."""
        conv = self.conv3d
        if not self.fold_taps:
            return conv(repeat_first_frame(x, conv.kernel_size[0] - 1))
        stride, padding = conv.stride[1:], conv.padding[1:]
        return F.conv2d(x.squeeze(2), conv.weight.sum(2), conv.bias, stride, padding).unsqueeze(2)


def space_conv(cin: int, cout: int, stride: int = 1, padding: int = 1) -> CausalConv:
    """3x3 within each frame."""
    return CausalConv(cin, cout, (1, 3, 3), stride=stride, padding=padding)


def time_conv(cin: int, cout: int, time_stride: int = 1) -> CausalConv:
    """Three frames at each pixel."""
    return CausalConv(cin, cout, (3, 1, 1), time_stride=time_stride)


def point_conv(cin: int, cout: int) -> CausalConv:
    return CausalConv(cin, cout, (1, 1, 1))


class FrameNorm(nn.Module):
    """Group norm with a single group and statistics of each frame alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return from_frames(self.norm(to_frames(x)), x.shape[0])


def to_frames(x: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` to ``[B * T, C, H, W]``; a view for single frames."""
    return x.transpose(1, 2).flatten(0, 1)


def from_frames(x: Tensor, batch: int) -> Tensor:
    """Inverse of :func:`to_frames`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


class Attention(nn.Module):
    """One head, with a residual: over the positions of each frame, or over the past of each position."""

    def __init__(self, channels: int, over_time: bool, reference: bool = False) -> None:
        super().__init__()
        self.attend = attend_in_steps if reference else attend_positions
        self.over_time = over_time
        self.norm = FrameNorm(channels)
        self.q = point_conv(channels, channels)
        self.k = point_conv(channels, channels)
        self.v = point_conv(channels, channels)
        self.proj_out = point_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if not self.over_time:
            q, k, v = (to_frames(layer(h)) for layer in (self.q, self.k, self.v))
            h = from_frames(self.attend(q, k, v), x.shape[0])
        elif x.shape[2] == 1:
            h = self.v(h)  # a softmax over one frame is 1
        else:
            # [B, C, T, H, W] to [B, H, W, T, C].
            q, k, v = (layer(h).permute(0, 3, 4, 2, 1) for layer in (self.q, self.k, self.v))
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(0, 4, 3, 1, 2)
        return self.proj_out(h).add_(x)


class HybridDownsample(nn.Module):
    """Halve space, time or both: a strided convolution plus average pooling of the same padded tensor."""

    def __init__(self, channels: int, step: str) -> None:
        super().__init__()
        self.step = step
        if SPACE in step:
            self.conv1 = space_conv(channels, channels, stride=2, padding=0)
        if TIME in step:
            self.conv2 = time_conv(channels, channels, time_stride=2)
        if step != NO:
            self.conv3 = point_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.step == NO:
            return x
        if SPACE in self.step:
            x = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + from_frames(F.avg_pool2d(to_frames(x), 2), x.shape[0])
        if TIME in self.step and x.shape[2] == 1:
            x = self.conv2.on_equal_frames(x) + x
        elif TIME in self.step:
            x = repeat_first_frame(x, 1)
            # A frame left over at the end has no pair.
            pairs = x[:, :, : x.shape[2] // 2 * 2].unflatten(2, (-1, 2))
            x = self.conv2(x) + pairs.mean(3)
        return self.conv3(x)


class HybridUpsample(nn.Module):
    """Double time (``T`` to ``2 T - 1``), space or both: repetition, then a residual convolution."""

    def __init__(self, channels: int, step: str) -> None:
        super().__init__()
        self.step = step
        if TIME in step:
            self.conv1 = time_conv(channels, channels)
        if SPACE in step:
            self.conv2 = space_conv(channels, channels)
        if step != NO:
            self.conv3 = point_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.step == NO:
            return x
        if TIME in self.step:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = x + self.conv1(x)
        if SPACE in self.step:
            x = from_frames(F.interpolate(to_frames(x), scale_factor=2.0, mode="nearest"), x.shape[0])
            x = x + self.conv2(x)
        return self.conv3(x)


class VideoLayers:
    """Layers of the video family, see :class:`lidargen_ros.models.tokenizer_network.Layers`."""

    patcher_suffix = "patcher3d"

    def __init__(self, reference: bool = False) -> None:
        self.reference = reference
        self.swish = swish_in_two if reference else swish

    def conv(self, cin: int, cout: int) -> nn.Module:
        return nn.Sequential(space_conv(cin, cout), time_conv(cout, cout))

    def point(self, cin: int, cout: int) -> nn.Module:
        return point_conv(cin, cout)

    def norm(self, channels: int) -> nn.Module:
        return FrameNorm(channels)

    def res_block(self, cin: int, cout: int) -> nn.Module:
        return ResBlock(self, cin, cout)

    def attention(self, channels: int) -> nn.Module:
        return nn.Sequential(
            Attention(channels, over_time=False, reference=self.reference),
            Attention(channels, over_time=True),
        )

    def downsample(self, channels: int, step: str) -> nn.Module | None:
        return HybridDownsample(channels, step)

    def upsample(self, channels: int, step: str) -> nn.Module | None:
        return HybridUpsample(channels, step)


class VideoTokenizer(TokenizerNetwork):
    """Network of the CV8x8x8 family. Height and width must be multiples of the compression (8)."""

    def __init__(self, config: TokenizerConfig, reference: bool = False) -> None:
        super().__init__(config, VideoLayers(reference))
        for module in self.modules():
            if isinstance(module, CausalConv):
                module.fold_taps = not reference
