# SPDX-License-Identifier: Apache-2.0
"""Configuration of an experiment with the published denoiser (``config/experiments/published_*.yaml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lidargen_ros.models.checkpoints import Kind
from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.tokenizer_config import NO, SPACE_TIME, TokenizerConfig

from ..data.splits import ClipData
from ..published_loss import ADAMW, CLIP_NORM, EMA_WIDTHS, LEARNING_RATE, WARMUP_STEPS
from ..recipe import Experiment

CAMERA_LAYOUT = TokenizerConfig(
    kind="video",
    num_groups=1,
    decoder_attention=(False,) * 3,
    down=(SPACE_TIME, NO, NO),
    up=(NO, SPACE_TIME, NO),
)  # CV8x8x8-720p


@dataclass(frozen=True)
class Start:
    """Weights to begin from: files or folders, as ``lidargen download`` leaves them. None: random weights of the given size."""

    checkpoint: str | None = None
    kind: Kind = "ema"
    camera_tokenizer: str | None = None
    lidar_tokenizer: str | None = None
    trust: bool = False  # let a TorchScript file run its code if it cannot be read otherwise


@dataclass(frozen=True)
class Random:
    """Sizes of what has no weights to begin from."""

    model: DiTConfig = field(default_factory=DiTConfig)
    camera_tokenizer: TokenizerConfig = CAMERA_LAYOUT
    lidar_tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


@dataclass(frozen=True)
class Sizes:
    """Latent and picture sizes (height, width), and the LiDAR's grid; the published ones."""

    lidar_latent: tuple[int, int] = (64, 224)
    camera_latent: tuple[int, int] = (88, 160)
    resize_hw: tuple[int, int] = (720, 1280)
    sensor: str = "pandar128"  # a name, a YAML file, or ``clips``: that of the data set


@dataclass(frozen=True)
class Optimiser:
    """AdamW as published."""

    lr: float = LEARNING_RATE
    betas: tuple[float, float] = ADAMW["betas"]
    eps: float = ADAMW["eps"]
    weight_decay: float = ADAMW["weight_decay"]
    warmup_steps: int = WARMUP_STEPS
    clip_norm: float = CLIP_NORM
    ema_width: float | None = EMA_WIDTHS[0]  # relative width of the average of the weights; None: no average


@dataclass(frozen=True)
class Validation:
    """Fixed held-out frames, sampled anew each time with the same noise."""

    frames: int = 8
    noise_levels: int = 4  # draws for the losses of each frame
    pictures: int = 3  # of those frames
    steps: int = 12  # of the sampler
    ladder_frames: int = 64  # training frames for the best constant map, beside which figures stand
    statistics_frames: int = 8  # training frames that give random tokenizers their latent statistics


@dataclass(frozen=True, kw_only=True)
class PublishedExperiment(Experiment):
    kind: Literal["published"] = "published"
    data: ClipData = field(default_factory=ClipData)
    start: Start = field(default_factory=Start)
    random: Random = field(default_factory=Random)
    sizes: Sizes = field(default_factory=Sizes)
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: Validation = field(default_factory=Validation)
