# SPDX-License-Identifier: Apache-2.0
"""How a student is trained, on scenes rendered while it trains or on recorded clips; see ``training/recipe.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from lidargen_ros.bundle import load_bundle
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.errors import ConfigError
from lidargen_ros.files import durable
from lidargen_ros.models.carry import carry
from lidargen_ros.models.student import Student, StudentConfig
from lidargen_ros.range_coding import decode_log
from lidargen_ros.sensors import Sensor, load_sensor

from ..data.dataset import FrameDataset
from ..draws import normal
from ..loop import ranks
from ..pairs import Pair
from ..pictures import true_made_error
from ..recipe import Kind, Position
from ..scenes.hashing import uniforms
from ..scenes.seeds import EVALUATION_SEEDS
from .clips import ClipStream, clip_stream
from .config import StudentExperiment
from .echoes import Kept, scenes_of
from .evaluate import constant_map, constant_predictor, evaluate, student_predictor
from .grow import grow
from .objective import Counts, clean_sweep, loss_terms, noisy_sweep, total
from .pieces import load_student, read_pieces
from .rigs import build_bank
from .stream import Batch, SceneStream
from .teacher import TaughtFrames
from .unfold import is_folded, unfold

PICTURES = 2
STATISTICS_BATCHES = 4  # of which the normalisation of a bundle's weights is measured
_LEVEL_DRAWS = 2 << 40  # keeps draws of noise levels apart from those of worlds and rigs


@dataclass
class Asked:
    """Scenes, and what the network is given to answer: ``clean``, ``noisy [B, 2, R, C]``, ``level``, ``regression [B]``;
    ``previous [B, 2, R, C]`` is filled in with the network's own answer to the moment before."""

    scenes: Batch
    clean: Tensor
    noisy: Tensor
    level: Tensor
    regression: Tensor
    previous: Tensor | None = None


class StudentRecipe:
    """``stream`` replaces the scenes or clips of the configuration."""

    baseline_scenes = 64  # that the best constant map is made of

    def __init__(
        self,
        experiment: StudentExperiment,
        device: torch.device,
        stream: SceneStream | ClipStream | None = None,
    ) -> None:
        if not 0 <= experiment.flow_share < 1:
            raise ConfigError(f"flow_share is {experiment.flow_share}; use 0 up to, not including, 1")
        if len(experiment.data.hypotheses) != experiment.model.hypotheses:
            raise ConfigError(
                f"model.hypotheses is {experiment.model.hypotheses}, data.hypotheses has "
                f"{len(experiment.data.hypotheses)} depths; give as many"
            )
        if experiment.scene_uses < 1 or experiment.scenes_kept < 1:
            raise ConfigError(
                f"scene_uses is {experiment.scene_uses}, scenes_kept is {experiment.scenes_kept}; use 1 or more of each"
            )
        self.experiment, self.device = experiment, device
        self.stream = make_stream(experiment, device) if stream is None else stream
        self.limits = (self.stream.sensor.min_range_m, self.stream.sensor.max_range_m)
        self._kept: Kept[Batch] = Kept(experiment.scenes_kept if experiment.scene_uses > 1 else 1)
        self.ahead = int(isinstance(self.stream, ClipStream))  # scenes are rendered where the network trains
        self._forward: Callable[..., dict[str, Tensor]] = self._terms
        if experiment.compile:
            self._forward = torch.compile(self._terms)

    def build_model(self) -> Student:
        student = Student(self.experiment.model)
        if self.experiment.start_from:
            weights, config = self._start(self.experiment.start_from)
            student.load_state_dict(grow(weights, config, self.experiment.model))
        student = student.to(self.device)
        if self.device.type != "cuda":
            return student
        if (
            ranks.count() > 1
        ):  # PyTorch has it for GPUs only: on several CPUs each rank takes statistics of its own
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
        return student.to(memory_format=torch.channels_last)

    def _start(self, path: str) -> tuple[Mapping[str, Tensor], StudentConfig]:
        """Weights of a run (its folder or file), or of a bundle (its folder or name)."""
        folder = Path(path) if Path(path).exists() else load_bundle(path).path
        weights, config = read_pieces(folder)
        if is_folded(weights):
            if self.experiment.model.hypotheses != config.hypotheses:
                raise ConfigError(
                    f"start_from {path} looks up {config.hypotheses} depths, the experiment has "
                    f"{self.experiment.model.hypotheses}; give model.hypotheses and data.hypotheses of the bundle"
                )
            seeds = torch.arange(STATISTICS_BATCHES * self.experiment.batch) + self.experiment.data.first_seed
            frames = (self.stream(part) for part in seeds.split(self.experiment.batch))
            weights = unfold(weights, config, frames, self.device)
        return weights, config

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        o = self.experiment.optimiser
        groups = decay_groups(model, o.weight_decay)
        return torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, fused=self.device.type == "cuda")

    def learning_rate(self, at: Position) -> float:
        """Linear warm-up by samples, and over the schedule a half cosine down to the last share."""
        o = self.experiment.optimiser
        warm = min(1.0, (at.samples + self.experiment.batch) / max(o.warmup_samples, 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(at.progress, 1.0)))
        return o.lr * warm * (o.end_share + (1 - o.end_share) * fall)

    def clip_gradients(self, model: nn.Module) -> Tensor:
        return nn.utils.clip_grad_norm_(model.parameters(), self.experiment.optimiser.clip_norm)

    def ema_beta(self, step: int) -> float:
        return min(self.experiment.optimiser.ema, (2 + step) / (11 + step))

    def batch(self, first: int, count: int) -> Asked:
        scene = self._first_scene(first)
        scenes = self._kept.get((scene, count), lambda: self._scenes(scene, count))
        clean = clean_sweep(scenes.target, *self.limits)
        samples = range(
            first, first + len(clean)
        )  # fewer than ``count`` if frames of clips could not be read
        turn = first // self.experiment.batch % self.experiment.scene_uses  # others when scenes come again
        drawn = [n for n in samples if is_drawn(n + turn, self.experiment.flow_share)]
        level, noise = torch.ones(len(clean), device=self.device), torch.zeros_like(clean)
        regression = torch.ones(len(clean), dtype=torch.bool, device=self.device)
        if drawn:
            numbers = torch.tensor(drawn, device=self.device)
            regression[numbers - first] = False
            level[numbers - first] = uniforms(numbers + _LEVEL_DRAWS, 1)[:, 0].clamp_min(1e-3)
            noise[numbers - first] = normal(self.experiment.seed, drawn, clean.shape[1:], self.device)
        return Asked(scenes, clean, noisy_sweep(clean, level, noise), level, regression)

    def _first_scene(self, sample: int) -> int:
        """Number of the scene that belongs to the first sample of a batch; the next ones follow it."""
        e = self.experiment
        step, mine = divmod(sample, e.batch)
        return e.batch * scenes_of(step, e.scene_uses, e.scenes_kept, e.seed) + mine

    def _scenes(self, first: int, count: int) -> Batch:
        seeds = self.experiment.data.first_seed + torch.arange(first, first + count)
        knows = (
            self.experiment.model.previous
            and isinstance(self.stream, SceneStream)
            and is_drawn(first // self.experiment.batch, self.experiment.previous_share)
        )
        scenes = self.stream(seeds, before=True) if knows else self.stream(seeds)
        if self.device.type == "cuda":  # convolutions on tensor cores want channels last
            scenes.pixels = scenes.pixels.contiguous(memory_format=torch.channels_last)
            scenes.rays = scenes.rays.contiguous(memory_format=torch.channels_last)
        return scenes

    def losses(self, model: nn.Module, batch: Asked) -> dict[str, Tensor]:
        if self.experiment.model.previous:
            batch.previous = self._previous(model, batch)
        counts = Counts.of(batch.scenes.target, batch.regression, ranks.average)
        return self._forward(model, batch, counts)

    @torch.no_grad()
    def _previous(self, model: nn.Module, batch: Asked) -> Tensor:
        """What the network would know from its own sweep of the moment before; zeros where it shall know nothing."""
        before = batch.scenes.before
        if before is None:
            return torch.zeros_like(batch.clean)
        model.eval()
        made = model.estimate(before.pixels, batch.scenes.rays)  # type: ignore[operator]
        model.train()
        ranges = torch.where(made.logit >= 0, decode_log(made.code, *self.limits), 0.0)
        return carry(ranges, made.logit.sigmoid(), before.directions, before.motion, *self.limits)

    def _terms(self, model: nn.Module, batch: Asked, counts: Counts) -> dict[str, Tensor]:
        estimate = model(batch.scenes.pixels, batch.scenes.rays, batch.noisy, batch.level, batch.previous)
        terms = loss_terms(estimate, batch.clean, batch.scenes.target, batch.regression, counts, self.limits)
        return {**terms, "loss": total(terms, self.experiment.loss)}

    def names(self, first: int, count: int) -> list[str]:
        start = self.experiment.data.first_seed + self._first_scene(first)
        return [self.stream.name(seed) for seed in range(start, start + count)]

    def validate(self, model: nn.Module, scenes: int | None = None) -> dict[str, float]:
        predict = student_predictor(model, self.limits)  # type: ignore[arg-type]
        return self._evaluate(predict, scenes)

    def ladder(self, scenes: int | None = None) -> dict[str, dict[str, float]]:
        return {"constant_map": self._evaluate(constant_predictor(self.constant_map), scenes)}

    @cached_property
    def constant_map(self) -> tuple[Tensor, Tensor]:
        """The best constant predictor, from training scenes."""
        first = self.experiment.data.first_seed
        seeds = torch.arange(first, first + self.baseline_scenes)
        return constant_map(self.stream, seeds, self.experiment.batch)

    def _evaluate(self, predict: Any, scenes: int | None) -> dict[str, float]:
        return evaluate(predict, self.stream, scenes or self.experiment.eval_scenes, self.experiment.batch)

    def pictures(self, model: nn.Module) -> dict[str, NDArray]:
        # As many scenes as in a batch: a renderer compiled for another size would take a minute.
        seeds = EVALUATION_SEEDS.start + torch.arange(self.experiment.batch)
        scenes = self.stream(seeds, exact_only=True)
        predict = student_predictor(model, self.limits)  # type: ignore[arg-type]
        made, probability = predict(scenes)
        shown = torch.where(probability >= 0.5, made, 0.0)[:PICTURES].float().cpu().numpy()
        true = scenes.target.range_m[:PICTURES].cpu().numpy()
        return {
            f"held_out_{i}": true_made_error(t, m) for i, (t, m) in enumerate(zip(true, shown, strict=True))
        }

    def shard_blocks(self, model: nn.Module) -> list[nn.Module]:
        return []  # small enough to be sharded as a whole

    def layout(self, weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
        return dict(weights)

    def export(self, folder: Path, weights: Mapping[str, Tensor], samples: int) -> None:
        """``student.safetensors``, ``sensor.yaml`` and ``rig.yaml``, of which ``tools/make_bundle.py`` makes a bundle."""
        about = {"config": json.dumps(self.experiment.model.to_dict()), "samples": str(samples)}
        with durable(folder / "student.safetensors") as file:
            save_file({k: v.contiguous() for k, v in weights.items()}, file, about)
        clips = isinstance(self.stream, ClipStream)
        rig = self.stream.rig if clips else load_rig(self.experiment.data.rig)
        for name, content in (("sensor.yaml", self.sensor.to_dict()), ("rig.yaml", rig.to_dict())):
            with durable(folder / name) as file:
                file.write_text(yaml.safe_dump(content))

    @property
    def sensor(self) -> Sensor:
        return self.stream.sensor

    def trained(self, run: Path) -> Student:
        """The averaged model that a run has written."""
        return load_student(run).to(self.device)

    @torch.no_grad()
    def pairs(self, model: nn.Module, limit: int) -> Iterator[Pair]:
        """One-step estimates of at most ``limit`` held-out scenes or frames, with a range on every ray."""
        predict = student_predictor(model, self.limits)  # type: ignore[arg-type]
        clips = self.stream if isinstance(self.stream, ClipStream) else None
        count = limit if clips is None else min(limit, len(clips.validation))
        for seed in range(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + count):
            scene = self.stream(torch.tensor([seed]), exact_only=True)
            made, probability = (x[0].float().cpu().numpy() for x in predict(scene))
            yield Pair(
                f"{seed}", made, scene.target.range_m[0].cpu().numpy(), probability,
                previous=clips and clips.before(seed), seen=scene.seen[0].cpu().numpy(),
            )  # fmt: skip

    def training_maps(self, limit: int) -> Iterator[NDArray]:
        """True maps of ``limit`` training scenes (clips: of as many frames as there are), for the ladder."""
        count = min(limit, len(self.stream.training)) if isinstance(self.stream, ClipStream) else limit
        first = self.experiment.data.first_seed
        for seed in range(first, first + count):
            yield self.stream(torch.tensor([seed]), exact_only=True).target.range_m[0].cpu().numpy()


def make_stream(
    experiment: StudentExperiment, device: torch.device, sensor: Sensor | None = None
) -> SceneStream | ClipStream:
    """Recorded clips or rendered scenes; ``sensor`` of scenes is that of the configuration if not given."""
    data = experiment.data
    if experiment.teacher is not None and (not data.clips or experiment.loss.intensity):
        raise ConfigError(
            "teacher needs data.clips=FOLDER, and loss.intensity=0 because it knows no intensity"
        )
    if data.clips:
        return clip_stream(data, experiment.seed, device, taught(experiment, device))
    sensor = load_sensor(data.sensor) if sensor is None else sensor
    bank = build_bank(
        load_rig(data.rig), sensor, size=data.bank, tile=data.tile, hypotheses=data.hypotheses,
        lidar_height=data.lidar_height_m, other_sensors=data.other_sensors, seed=experiment.seed, device=device,
    )  # fmt: skip
    return SceneStream(bank, sensor, exact=data.exact, drop=data.drop_camera, stride=experiment.batch)


def taught(
    experiment: StudentExperiment, device: torch.device
) -> Callable[[FrameDataset], TaughtFrames] | None:
    """What puts the teacher's sweeps in the place of the measured ones, if there is a teacher."""
    if experiment.teacher is None:
        return None
    return partial(TaughtFrames, checkpoint=experiment.teacher, steps=experiment.teacher_steps, device=device)


def is_drawn(sample: int, share: float) -> bool:
    """Whether a sample is denoised: an even ``share`` of all samples, so that every slice has its part."""
    return math.floor((sample + 1) * share) > math.floor(sample * share)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and norms."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
