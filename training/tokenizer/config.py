# SPDX-License-Identifier: Apache-2.0
"""Configuration of an experiment with the LiDAR tokenizer (``config/experiments/tokenizer_lidar.yaml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lidargen_ros.models.tokenizer_config import TokenizerConfig

from ..data.splits import ClipData
from ..recipe import Experiment
from ..tokenizer_loss import BETAS, EPS, GRADIENT_NORM, LEARNING_RATE, WARMUP, WEIGHT_DECAY


@dataclass(frozen=True)
class RangeImages(ClipData):
    """Clips as range images; one sample is one clip, ``frames`` of it drawn with replacement, in one random window of columns."""

    columns: int = 1800  # of a sweep before the window; clips may have a multiple of it
    window: int = 896  # columns; -1: all
    frames: int = 10
    row_repeat: int = 4  # copies of each row that make a picture of usual proportions


@dataclass(frozen=True)
class Start:
    """Weights to begin from: a file or folder that ``load_tokenizer`` reads. None: random weights of ``layout``."""

    tokenizer: str | None = None
    trust: bool = False
    # What the published training begins with has no decoder attention; those blocks are added with random weights.
    add_decoder_attention: bool = False


@dataclass(frozen=True)
class Optimiser:
    """AdamW as published; weights are not averaged."""

    lr: float = LEARNING_RATE
    betas: tuple[float, float] = BETAS
    eps: float = EPS
    weight_decay: float = WEIGHT_DECAY
    warmup_steps: int = WARMUP
    clip_norm: float = GRADIENT_NORM


@dataclass(frozen=True)
class Validation:
    """Held-out clips at full width."""

    clips: int = 8
    frames: int = 3  # of each
    statistics_frames: int = (
        64  # training frames over which the statistics of the latent are taken at every save
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerExperiment(Experiment):
    kind: Literal["tokenizer"] = "tokenizer"
    data: RangeImages = field(default_factory=RangeImages)
    start: Start = field(default_factory=Start)
    layout: TokenizerConfig = field(default_factory=TokenizerConfig)  # of random weights
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: Validation = field(default_factory=Validation)
    vgg: str | None = (
        None  # vgg16-397923af.pth for the perceptual term; None: the colour term alone, another objective
    )
