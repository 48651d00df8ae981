# SPDX-License-Identifier: Apache-2.0
"""Mean and standard deviation of latents: what ``mean_std.pt`` holds, and how a denoiser's latent is scaled."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError


class LatentStats(nn.Module):
    """Per-channel statistics ``[C, n]``: ``n`` is 1, or the number of latent frames that have statistics of their own.

    The arithmetic is done in the latent's dtype, as in the published model: a bfloat16 latent is scaled in bfloat16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @property
    def frames(self) -> int:
        """Latent frames with statistics of their own; 1 if all share them."""
        return self.mean.shape[1]

    def normalise(self, z: Tensor) -> Tensor:
        """``(z - mean) / std`` for ``[B, C, h, w]`` or ``[B, C, t, h, w]``."""
        return (z - self._like(self.mean, z)) / self._like(self.std, z)

    def denormalise(self, z: Tensor) -> Tensor:
        """``z * std + mean``."""
        return z * self._like(self.std, z) + self._like(self.mean, z)

    def _like(self, values: Tensor, z: Tensor) -> Tensor:
        values = values.to(z.dtype)
        if z.ndim == 4:
            return values[None, :, :1, None]
        if self.frames > 1 and z.shape[2] > self.frames:
            raise InputError(
                f"latent of {z.shape[2]} frames: mean_std has statistics for {self.frames}; encode the clip in chunks"
            )
        return values[None, :, : z.shape[2], None, None]

    @classmethod
    def measure(cls, latents: Iterable[Tensor]) -> LatentStats:
        """Statistics over batches of raw latents ``[B, C, ...]``, as a post-trained tokenizer needs new ones."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for z in latents:
            values = z.transpose(0, 1).flatten(1).double()
            count += values.shape[1]
            total = total + values.sum(1)
            squares = squares + values.square().sum(1)
        if count < 2:
            raise InputError(
                "latent statistics need at least two latent positions; pass some encoded batches"
            )
        mean = total / count
        std = ((squares - count * mean.square()) / (count - 1)).clamp_min(0).sqrt()
        return cls(mean.float()[:, None], std.float()[:, None])


def read_mean_std(path: str | Path, channels: int, per_frame: bool = False) -> LatentStats:
    """Read ``mean_std.pt``: anything that unpacks into two tensors of ``channels`` values each.

    ``per_frame`` also allows ``channels * n`` values, statistics of each of ``n`` latent frames (video tokenizers).
    Raises ``CheckpointError`` if the file is damaged, holds something else, or has another number of values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable mean_std file ({first_line(error)}); download it again"
        ) from error
    if not isinstance(content, (tuple, list, Tensor)) or len(content) != 2:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, not a pair (mean, std); is it the right file?"
        )
    pair = []
    for name, value in zip(("mean", "std"), content, strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise CheckpointError(f"{path}: its {name} is not a tensor of floats; is it the right file?")
        count = value.numel()
        if count == 0 or count % channels or (count != channels and not per_frame):
            wanted = f"{channels}" + (f" or a multiple ({channels} per latent frame)" if per_frame else "")
            raise CheckpointError(
                f"{path}: its {name} has shape {tuple(value.shape)}, {count} values, but the tokenizer's latent has "
                f"{channels} channels and needs {wanted}; use the mean_std.pt of the same tokenizer"
            )
        pair.append(value.reshape(channels, -1).clone())
    mean, std = pair
    if (
        mean.shape != std.shape
        or not bool(mean.isfinite().all())
        or not bool((std > 0).all() & std.isfinite().all())
    ):
        raise CheckpointError(
            f"{path}: mean and std must be finite, of one shape, and std above 0; the file is damaged, download it again"
        )
    return LatentStats(mean, std)


def first_line(error: BaseException) -> str:
    """First line of an error of a library, for use inside a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
