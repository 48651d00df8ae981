# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of one network call, counted from the sizes; a multiply-add is two operations."""

from __future__ import annotations

from collections.abc import Sequence

from .dit_config import DiTConfig


def call_flops(config: DiTConfig, slot_lengths: Sequence[int], text_tokens: int | None) -> float:
    """Floating-point operations of one call, batch 1.

    Args:
        slot_lengths: tokens per slot.
        text_tokens: text tokens per slot, or None if the text branch is skipped.
    """
    tokens, width = sum(slot_lengths), config.width
    block = 8 * tokens * width**2 + 4 * tokens**2 * width  # self-attention: maps, then scores and values
    block += 4 * config.mlp_ratio * tokens * width**2
    branches = 2 if text_tokens is None else 3
    if text_tokens is not None:
        all_text = text_tokens * len(slot_lengths)
        block += 4 * tokens * width**2 + 4 * tokens * text_tokens * width
        block += 4 * all_text * config.text_width * width
    block += 2 * branches * config.adaln_width * (width + 3 * width)
    patch_area = config.patch**2
    outside = 2 * tokens * width * (config.input_channels + config.latent_channels) * patch_area
    outside += 2 * width * (width + 3 * width) + 2 * config.adaln_width * (width + 2 * width)
    return float(config.blocks * block + outside)
