# SPDX-License-Identifier: Apache-2.0
"""Choices of the published pipeline: two modes, one code path. ``docs/published_model.md`` explains each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError
from ..range_coding import MAX_M, MIN_M
from ..sampling import SOLVERS


@dataclass(frozen=True)
class PublishedOptions:
    """How to sample and decode. Build with ``reference()`` or ``corrected()``, then change single fields.

    Attributes:
        mode: name for logs and file headers.
        steps: solver steps; the published solver makes ``steps + 1`` evaluations.
        guidance: ``g`` in ``D_c + g (D_c - D_u)``; the usual scale is ``1 + g``.
        random_corruption: put the training noise on the cameras, anew in every call.
        model_arithmetic: coefficients, sampled latent and decoded values in the type of the weights (bfloat16)
            as published, instead of float32.
        per_frame_noise: initial noise depends on seed and frame, drawn on the CPU; otherwise every frame gets
            the noise of the seed, drawn on the device.
        skip_zero_text: leave out the text branch where the text is zero (the result is bitwise the same).
        single_pass: leave out the unconditional pass where guidance is a no-op (bitwise the same).
        drop_padding: leave out the 28 % of tokens that are padding (cheaper, not equivalent).
        stretched_azimuth: decode the cropped map as if it covered the whole turn, on left bin edges.
        near_buffer, far_buffer: metres inside the range window that are discarded at either end.
    """

    mode: Literal["reference", "corrected"]
    guidance: float
    random_corruption: bool
    model_arithmetic: bool
    per_frame_noise: bool
    stretched_azimuth: bool
    near_buffer: float
    far_buffer: float
    steps: int = 35
    sigma_min: float = 0.02
    sigma_max: float = 80.0
    solver: str = "adams_bashforth_2"
    seed: int = 1
    skip_zero_text: bool = True
    single_pass: bool = True
    drop_padding: bool = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver {self.solver!r} is unknown: use one of {', '.join(SOLVERS)}")
        if self.steps < 1:
            raise ConfigError(f"{self.steps} sampling steps are too few: use at least 1")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"sigma_min {self.sigma_min} must lie between 0 and {self.sigma_max}")
        if not math.isfinite(self.guidance):
            raise ConfigError(f"guidance {self.guidance} is no number: the published one is 1.5")
        near, far = self.near_buffer, self.far_buffer
        if not (near >= 0 and far >= 0 and near + far < MAX_M - MIN_M):
            raise ConfigError(
                f"near_buffer {near} and far_buffer {far} leave nothing of {MIN_M:g} to {MAX_M:g} m: use metres from 0 up"
            )

    @classmethod
    def reference(cls) -> PublishedOptions:
        """Everything as published, traps included."""
        return cls(
            mode="reference",
            guidance=1.5,
            random_corruption=True,
            model_arithmetic=True,
            per_frame_noise=False,
            stretched_azimuth=True,
            near_buffer=1.5,
            far_buffer=10.0,
        )

    @classmethod
    def corrected(cls) -> PublishedOptions:
        """The default: the same weights, used as they should be."""
        return cls(
            mode="corrected",
            guidance=1.5,
            random_corruption=False,
            model_arithmetic=False,
            per_frame_noise=True,
            stretched_azimuth=False,
            near_buffer=0.5,
            far_buffer=0.5,
        )

    @classmethod
    def named(cls, mode: str) -> PublishedOptions:
        if mode not in ("reference", "corrected"):
            raise ConfigError(f"mode {mode!r} is unknown: use reference or corrected")
        return cls.reference() if mode == "reference" else cls.corrected()

    def published_work(self) -> PublishedOptions:
        """The same, but doing all the work that the published program does (for measurements)."""
        return replace(self, skip_zero_text=False, single_pass=False, drop_padding=False)
