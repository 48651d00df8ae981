# SPDX-License-Identifier: Apache-2.0
"""Configuration of a student experiment (``config/experiments/student_*.yaml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES, DEFAULT_TILE
from lidargen_ros.models.student import StudentConfig

from ..data.splits import ClipData
from ..recipe import Experiment
from .objective import LossWeights


@dataclass(frozen=True)
class Data(ClipData):
    """Where samples come from: rendered scenes, or with ``clips=FOLDER`` recorded clips.

    The rig of clips is their own, frame by frame; ``rig`` and the keys below ``lidar_height_m`` are for scenes, but for
    ``drop_camera`` and ``first_seed``.
    """

    rig: str = "published"
    sensor: str = "pandar128"  # ``clips``: that of the clips, at the next width that a student can have
    tile: tuple[int, int] = DEFAULT_TILE  # pixels, height and width
    hypotheses: tuple[float | str, ...] = DEFAULT_HYPOTHESES
    lidar_height_m: float = 1.9
    bank: int = 48  # rigs drawn once per run; entry 0 is the exact rig and sensor
    exact: float = 0.5  # share of scenes with the exact rig
    other_sensors: float = 0.2
    drop_camera: float = 0.08
    first_seed: int = 1_000_000


@dataclass(frozen=True)
class Optimiser:
    lr: float = 2e-3
    end_share: float = 0.0  # of lr, at the end: more than 0 where another run goes on from there
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_samples: int = 8_000
    clip_norm: float = 1.0
    ema: float = 0.999  # per step, after a warm-up


@dataclass(frozen=True, kw_only=True)
class StudentExperiment(Experiment):
    kind: Literal["student"]
    model: StudentConfig = field(default_factory=StudentConfig)
    data: Data = field(default_factory=Data)
    loss: LossWeights = field(default_factory=LossWeights)
    optimiser: Optimiser = field(default_factory=Optimiser)
    flow_share: float = 0.25  # of the samples; the others ask for the best estimate
    previous_share: float = (
        0.25  # of the batches that know their own sweep before, if the model reads it; scenes only
    )
    scene_uses: int = 1  # steps for every batch of scenes or frames that is made; more where making takes longer than training
    scenes_kept: int = 16  # batches on the device that are used again; about 1 GB each at 128 x 1800
    eval_scenes: int = 64
    compile: bool = True
    teacher: str | None = None  # published-family checkpoint whose samples are the targets (with data.clips)
    teacher_steps: int = 35
    start_from: str | None = None  # weights (safetensors) to continue from, with a fresh optimiser
