# SPDX-License-Identifier: Apache-2.0
"""The joint latent ``[B, C, V, H, W]``: LiDAR in slot 0, then cameras, each in the upper left corner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import InputError

Size = tuple[int, int]


def padded_size(lidar: Size, camera: Size) -> Size:
    """Smallest latent that holds both."""
    return max(lidar[0], camera[0]), max(lidar[1], camera[1])


def join(lidar: Tensor | None, cameras: Tensor, lidar_size: Size | None = None) -> Tensor:
    """LiDAR latent ``[B, C, 1, h, w]`` and camera latents ``[B, C, V-1, h, w]``, zero-padded to one size.

    Without a LiDAR latent (it is never needed to generate) slot 0 is zero and ``lidar_size`` gives its size.
    """
    if lidar is None:
        if lidar_size is None:
            raise InputError("the joint latent needs the LiDAR latent or its size")
        lidar = cameras.new_zeros(*cameras.shape[:2], 1, *lidar_size)
    height, width = (max(lidar.shape[axis], cameras.shape[axis]) for axis in (-2, -1))
    return torch.cat([_pad(part, height, width) for part in (lidar, cameras)], dim=2)


def split(joint: Tensor, lidar_size: Size, camera_size: Size) -> tuple[Tensor, Tensor]:
    """Inverse of ``join``: LiDAR and camera latents at their own sizes."""
    return (
        joint[:, :, :1, : lidar_size[0], : lidar_size[1]],
        joint[:, :, 1:, : camera_size[0], : camera_size[1]],
    )


def condition_indicator(
    views: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """``[1, 1, V, 1, 1]``: 0 for the generated slot 0, 1 for the cameras."""
    indicator = torch.ones(1, 1, views, 1, 1, device=device, dtype=dtype)
    indicator[:, :, 0] = 0
    return indicator


def encode_views(
    encode: Callable[[Tensor], Tensor], views: Sequence[Tensor], published_order: bool = False
) -> Tensor:
    """Encode the views ``[B, C, 1, h, w]`` in one batch -> ``[B, C, views, h, w]``.

    ``published_order`` reproduces the published model, which stacks view after view and reads the result back
    sample after sample: the same for one sample, samples and views mixed up for more.
    """
    stacked = encode(torch.cat(list(views), dim=0))
    pattern = "(b v) c 1 h w -> b c v h w" if published_order else "(v b) c 1 h w -> b c v h w"
    return rearrange(stacked, pattern, v=len(views))


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
