# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a sample: drawn from the run's seed and the sample's number, so that rank and history do not matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def sample_seed(seed: int, sample: int, purpose: int = 0) -> int:
    """A 63-bit seed for one purpose (0, 1, ...: one for each independent draw) of one sample."""
    return int(
        np.random.SeedSequence((seed, sample, purpose)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def sample_rng(seed: int, sample: int, purpose: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, sample, purpose))


def normal(
    seed: int, samples: Iterable[int], shape: Sequence[int], device: torch.device | str, purpose: int = 0
) -> Tensor:
    """``[len(samples), *shape]`` float32 standard normal on ``device``; CPU and GPU draw different numbers."""
    generator = torch.Generator(device)
    return torch.stack(
        [
            torch.randn(shape, device=device, generator=generator.manual_seed(sample_seed(seed, n, purpose)))
            for n in samples
        ]
    )
