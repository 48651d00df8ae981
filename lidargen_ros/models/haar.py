# SPDX-License-Identifier: Apache-2.0
"""Haar wavelet-packet patching, the first and last step of both published tokenizers.

``log2(patch)`` levels are applied, each to *all* channels so far. A level turns neighbours ``(a, b)`` of every
axis into low ``s(a + b)`` and high ``s(a - b)``, ``s = sqrt(1/2)``, and then divides by 2 (images) or by
2 sqrt(2) (video), so that the lowest band is a plain mean; the inverse needs no scaling. Output channels are
band-major, ``band * G + g`` with ``G`` the channels that enter the level. The families order bands differently:

- images ``[B, C, H, W]``: ``band = 2 * (high along W) + (high along H)``
- video ``[B, C, T, H, W]``: ``band = 4 * (high along T) + 2 * (high along H) + (high along W)``

On the time axis the first frame is repeated until it occurs ``patch`` times; the inverse drops those copies.
An odd length is completed by reflection, and the inverse keeps the extra sample.

In bfloat16 every rounding is that of the published code, bit for bit.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import ConfigError

SQRT_HALF = 0.7071067811865476
HALF_TYPES = (torch.bfloat16, torch.float16)
# The outermost split comes first: it is the slowest index of the band number.
IMAGE_AXES = (-1, -2)
VIDEO_AXES = (-3, -2, -1)


def _levels(patch: int) -> int:
    if patch < 1 or patch & (patch - 1):
        raise ConfigError(
            f"patch size {patch} is not a power of two: haar patching halves the image repeatedly"
        )
    return patch.bit_length() - 1


def _filter_tap(x: Tensor) -> float:
    """``sqrt(1/2)`` in the dtype of ``x``, as the published filter is cast to it."""
    return 0.70703125 if x.dtype in HALF_TYPES else SQRT_HALF


def _split(x: Tensor, axis: int, tap: float) -> list[Tensor]:
    """Low and high band of ``x`` along ``axis`` (counted from the end, here and below), rounded once each."""
    dtype = x.dtype
    if x.shape[axis] % 2:
        # Reflection about the last sample: index n - 2 follows n - 1 (a single sample follows itself).
        last = x.shape[axis] - 2 if x.shape[axis] > 1 else 0
        x = torch.cat([x, x.narrow(axis, last, 1)], dim=axis)
    x = x.float() if dtype in HALF_TYPES else x
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis)
    return [((even + odd) * tap).to(dtype), ((even - odd) * tap).to(dtype)]


def _merge(low: Tensor, high: Tensor, axis: int, tap: float) -> Tensor:
    """Inverse of ``_split`` up to a factor of ``2 * tap**2``, which is 1."""
    low, high = low * tap, high * tap
    return torch.stack([low + high, low - high], dim=axis).flatten(axis - 1, axis)


def _forward_level(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    tap = _filter_tap(x)
    bands = [x]
    for axis in axes:
        bands = [part for band in bands for part in _split(band, axis, tap)]
    return torch.cat(bands, dim=1) / 2.0 ** (len(axes) / 2)


def _inverse_level(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    tap = _filter_tap(x)
    bands = list(x.chunk(2 ** len(axes), dim=1))
    for axis in reversed(axes):
        bands = [_merge(low, high, axis, tap) for low, high in zip(bands[::2], bands[1::2], strict=True)]
    return bands[0] * 2.0 ** (len(axes) / 2)


def haar_image(x: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B, C * patch**2, H / patch, W / patch]``."""
    for _ in range(_levels(patch)):
        x = _forward_level(x, IMAGE_AXES)
    return x


def unhaar_image(x: Tensor, patch: int) -> Tensor:
    """Inverse of :func:`haar_image`."""
    for _ in range(_levels(patch)):
        x = _inverse_level(x, IMAGE_AXES)
    return x


def haar_video(x: Tensor, patch: int) -> Tensor:
    """``[B, C, T, H, W]`` to ``[B, C * patch**3, (T - 1 + patch) / patch, H / patch, W / patch]``."""
    x = repeat_first_frame(x, patch - 1)
    for _ in range(_levels(patch)):
        x = _forward_level(x, VIDEO_AXES)
    return x


def unhaar_video(x: Tensor, patch: int) -> Tensor:
    """Inverse of :func:`haar_video`."""
    for _ in range(_levels(patch)):
        x = _inverse_level(x, VIDEO_AXES)
    return x[:, :, patch - 1 :]


def repeat_first_frame(x: Tensor, copies: int) -> Tensor:
    """Put ``copies`` more of the first frame before ``x`` ``[B, C, T, H, W]``: causal padding in time."""
    return torch.cat([x[:, :, :1].expand(-1, -1, copies, -1, -1), x], dim=2) if copies else x


def blocks_image(x: Tensor, patch: int) -> Tensor:
    """Plain space-to-channel patching, channels ``(c, p_h, p_w)``; no published file uses it."""
    return F.pixel_unshuffle(x, patch)


def unblocks_image(x: Tensor, patch: int) -> Tensor:
    """Inverse of :func:`blocks_image`."""
    return F.pixel_shuffle(x, patch)


def blocks_video(x: Tensor, patch: int) -> Tensor:
    """Plain space-time-to-channel patching, channels ``(c, p_t, p_h, p_w)``; frames repeated as for haar."""
    x = repeat_first_frame(x, patch - 1)
    return rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=patch, q=patch, r=patch)


def unblocks_video(x: Tensor, patch: int) -> Tensor:
    """Inverse of :func:`blocks_video`."""
    x = rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=patch, q=patch, r=patch)
    return x[:, :, patch - 1 :]


TRANSFORMS = {
    ("image", "haar"): (haar_image, unhaar_image),
    ("image", "rearrange"): (blocks_image, unblocks_image),
    ("video", "haar"): (haar_video, unhaar_video),
    ("video", "rearrange"): (blocks_video, unblocks_video),
}


class Patcher(nn.Module):
    """Patching as a module, with the buffers that published state dicts carry.

    Nothing reads the buffers: the filter is a constant, and they exist so that such files load strictly.
    """

    def __init__(self, kind: str, method: str, patch: int, inverse: bool = False) -> None:
        super().__init__()
        self.transform = TRANSFORMS[kind, method][int(inverse)]
        self.patch = patch
        self.with_size = kind == "video" and not inverse
        for name, value in self.published_buffers().items():
            self.register_buffer(name, value)

    def published_buffers(self) -> dict[str, Tensor]:
        """Buffers of the published files by name; training checkpoints leave them out."""
        buffers = {"wavelets": torch.tensor([SQRT_HALF, SQRT_HALF]), "_arange": torch.arange(2)}
        if self.with_size:
            buffers["patch_size_buffer"] = torch.tensor([self.patch], dtype=torch.int32)
        return buffers

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x, self.patch)
