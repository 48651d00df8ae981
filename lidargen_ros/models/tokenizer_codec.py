# SPDX-License-Identifier: Apache-2.0
"""A tokenizer ready for use: network, latent statistics, and the dtypes that numbers pass through on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from .latents import LatentStats
from .tokenizer_config import COLOURS, TokenizerConfig
from .tokenizer_image import ImageTokenizer
from .tokenizer_network import TokenizerNetwork
from .tokenizer_script import ScriptedNetwork
from .tokenizer_video import VideoTokenizer


def build_network(config: TokenizerConfig, reference: bool = False) -> TokenizerNetwork:
    """The network of that layout, with random weights.

    ``reference`` keeps the order of roundings of the published code, for equal numbers in bfloat16; it is slower and no
    more accurate.
    """
    return (ImageTokenizer if config.kind == "image" else VideoTokenizer)(config, reference)


class Tokenizer(nn.Module):
    """Images to normalised latents and back, without gradients.

    The network runs in its own dtype (published: float32 for LiDAR, bfloat16 for cameras), the result comes back in
    the dtype of the input, and the latent is scaled in the caller's dtype.

    Images are ``[B, 3, H, W]`` or ``[B, 3, T, H, W]`` in [-1, 1], H and W multiples of ``config.spatial_compression``;
    image tokenizers take ``T = 1`` only. Latents have the same number of axes. Decoded images are not clamped.
    """

    def __init__(
        self,
        network: TokenizerNetwork | ScriptedNetwork,
        stats: LatentStats | None = None,
        chunk_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        # As in the published wrapper, statistics are kept in the network's dtype.
        self.stats = None if stats is None else stats.to(network.dtype)
        # Longer clips are coded in pieces, because statistics of latent frames count from the start of a piece.
        if chunk_frames is None and stats is not None and stats.frames > 1:
            chunk_frames = (stats.frames - 1) * self.config.temporal_compression + 1
        self.chunk_frames = chunk_frames
        self.chunk_latents = chunk_frames and (chunk_frames - 1) // self.config.temporal_compression + 1

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Normalised latent. ``InputError`` on a wrong size, ``CheckpointError`` without statistics."""
        stats = self._needed_stats()
        return _in_pieces(x, self.chunk_frames, lambda piece: stats.normalise(self._encode(piece)))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`encode`, in the dtype of ``z``."""
        stats = self._needed_stats()
        self._check(z, self.config.latent_channels, "latent")
        return _in_pieces(z, self.chunk_latents, lambda piece: self._decode(stats.denormalise(piece)))

    @torch.no_grad()
    def encode_raw(self, x: Tensor) -> Tensor:
        """Latent as the network gives it, without statistics."""
        return _in_pieces(x, self.chunk_frames, self._encode)

    @torch.no_grad()
    def decode_raw(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`encode_raw`."""
        return _in_pieces(z, self.chunk_latents, self._decode)

    def _needed_stats(self) -> LatentStats:
        if self.stats is None:
            raise CheckpointError(
                "this tokenizer was loaded without mean_std.pt, which a denoiser's latents need; put that file beside "
                "its weights, or use encode_raw and decode_raw"
            )
        return self.stats

    def _encode(self, x: Tensor) -> Tensor:
        multiple = self.config.spatial_compression
        self._check(x, COLOURS, "image")
        if x.shape[-2] % multiple or x.shape[-1] % multiple or not x.numel():
            raise InputError(
                f"image of {x.shape[-2]} x {x.shape[-1]}: the tokenizer needs height and width that are multiples of "
                f"{multiple}; pad or crop it"
            )
        return self._run(self.network.encode, x)

    def _decode(self, z: Tensor) -> Tensor:
        self._check(z, self.config.latent_channels, "latent")
        return self._run(self.network.decode, z)

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.config.kind == "image" and x.ndim == 5:
            return self._run(function, x.squeeze(2)).unsqueeze(2)
        return function(x.to(self.network.dtype)).to(x.dtype)

    def _check(self, x: Tensor, channels: int, what: str) -> None:
        video = self.config.kind == "video"
        if x.ndim not in ((5,) if video else (4, 5)) or x.shape[1] != channels or not x.is_floating_point():
            axes = f"[B, {channels}, T, H, W]" if video else f"[B, {channels}, H, W]"
            raise InputError(
                f"{what} of shape {tuple(x.shape)} and type {x.dtype}: the tokenizer takes floats {axes}"
            )
        if not video and x.ndim == 5 and x.shape[2] != 1:
            raise InputError(
                f"{what} of {x.shape[2]} frames: an image tokenizer takes one; put frames into the batch"
            )


def _in_pieces(x: Tensor, length: int | None, run: Callable[[Tensor], Tensor]) -> Tensor:
    if length is None or x.ndim != 5 or x.shape[2] <= length:
        return run(x)
    return torch.cat([run(piece) for piece in x.split(length, dim=2)], dim=2)
