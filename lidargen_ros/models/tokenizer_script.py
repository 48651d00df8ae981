# SPDX-License-Identifier: Apache-2.0
"""Run a TorchScript tokenizer as it is: the last resort for archives whose weights cannot be read.

Such a file is locked to the dtype it was traced in, and a decoder traced on one frame returns too few frames for longer
clips. None of this concerns files that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .latents import first_line
from .tokenizer_config import COLOURS, TokenizerConfig

PROBE = 64  # pixels along both sides of the image that finds out what the file takes


class ScriptedNetwork(nn.Module):
    """Encoder and decoder as opaque functions; ``config`` holds only what a probe can see from outside."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, config: TokenizerConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config, self.dtype = encoder, decoder, config, dtype

    def encode(self, x: Tensor) -> Tensor:
        return _latent(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def run_scripts(files: Sequence[Path]) -> ScriptedNetwork:
    """Load encoder and decoder archives, executing their code. Trust must have been settled before."""
    if len(files) != 2:
        raise CheckpointError(
            f"{files[0]}: only an encoder and decoder pair can be run as TorchScript; give both files"
        )
    try:
        encoder, decoder = (torch.jit.load(str(path), map_location="cpu").eval() for path in files)
    except RuntimeError as error:
        raise CheckpointError(
            f"{files[0]}: not loadable as TorchScript ({first_line(error)}); get it again"
        ) from error
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        for kind, shape in (("image", (1, COLOURS, PROBE, PROBE)), ("video", (1, COLOURS, 1, PROBE, PROBE))):
            try:
                with torch.no_grad():
                    z = _latent(encoder(torch.zeros(shape, dtype=dtype)))
                    decoder(z)
            except RuntimeError as error:
                errors.append(f"{kind} {dtype}: {first_line(error)}")
                continue
            config = TokenizerConfig(
                kind=kind,
                patch_size=PROBE // z.shape[-1],
                latent_channels=z.shape[1],
                down=(),
                up=(),
                channels_mult=(),
            )
            return ScriptedNetwork(encoder, decoder, config, dtype)
    raise CheckpointError(f"{files[0]}: takes neither images nor frames ({errors[0]}); it is not a tokenizer")


def _latent(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Traced encoders return the latent first in a tuple, or alone."""
    return output if isinstance(output, Tensor) else output[0]
