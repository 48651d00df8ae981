# SPDX-License-Identifier: Apache-2.0
"""Trains a student on an endless stream of scenes. Everything is counted in samples."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.errors import ConfigError, LidargenError
from lidargen_ros.models.student import Student
from lidargen_ros.sensors import Sensor, load_sensor

from ..config import dump
from .clips import ClipStream, clip_stream
from .config import StudentExperiment
from .evaluate import constant_map, constant_predictor, evaluate, student_predictor
from .objective import clean_sweep, loss_terms, noisy_sweep, total
from .rigs import build_bank
from .stream import Batch, SceneStream

log = logging.getLogger(__name__)


def pick_device(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_stream(
    config: StudentExperiment, device: torch.device, sensor: Sensor | None = None
) -> SceneStream | ClipStream:
    """Recorded clips or rendered scenes; ``sensor`` of scenes is that of the configuration if not given."""
    data = config.data
    if data.clips:
        return clip_stream(data, config.seed, device)
    sensor = load_sensor(data.sensor) if sensor is None else sensor
    bank = build_bank(
        load_rig(data.rig), sensor, size=data.bank, tile=data.tile, hypotheses=data.hypotheses,
        lidar_height=data.lidar_height_m, other_sensors=data.other_sensors, seed=config.seed, device=device,
    )  # fmt: skip
    return SceneStream(bank, sensor, exact=data.exact, drop=data.drop_camera)


def learning_rate(config: StudentExperiment, samples: int, progress: float) -> float:
    """Linear warm-up by samples, then a cosine to zero over ``progress`` 0..1."""
    warm = min(1.0, (samples + config.batch) / max(config.optimiser.warmup_samples, 1))
    return config.optimiser.lr * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Ema:
    """Exponential moving average of parameters and buffers, with a warm-up of the decay."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = [
            (a, b) for a, b in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        ]
        floats = [(a, b) for a, b in pairs if a.dtype.is_floating_point]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in pairs:
            if not a.dtype.is_floating_point:
                a.copy_(b)


class StudentTrainer:
    """One run: builds everything from the configuration, ``run()`` trains, evaluates and writes to ``folder``."""

    def __init__(
        self, config: StudentExperiment, folder: Path, *, stream: SceneStream | ClipStream | None = None
    ) -> None:
        if not 0 <= config.flow_share < 1:
            raise ConfigError(f"flow_share is {config.flow_share}; use 0 up to, not including, 1")
        self.config, self.folder = config, folder
        self.created = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump(config))
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        self.device = pick_device(config.device)
        self.stream = make_stream(config, self.device) if stream is None else stream
        sensor = self.stream.sensor
        self.limits = (sensor.min_range_m, sensor.max_range_m)
        self.student = Student(config.model).to(self.device)
        if config.start_from:
            load_student(self.student, Path(config.start_from))
        if self.device.type == "cuda":
            self.student = self.student.to(memory_format=torch.channels_last)
        self.ema = Ema(self.student, config.optimiser.ema)
        o = config.optimiser
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.student, o.weight_decay),
            lr=o.lr,
            betas=o.betas,
            fused=self.device.type == "cuda",
        )
        self.regression = config.batch - int(config.flow_share * config.batch)
        self.samples = 0
        self.curve: list[dict[str, float]] = []
        self._forward: Callable[..., dict[str, Tensor]] = self._terms
        if config.compile:
            self._forward = torch.compile(self._terms)

    def autocast(self) -> contextlib.AbstractContextManager:
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _terms(self, batch: Batch, clean: Tensor, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            estimate = self.student(batch.pixels, batch.rays, x, t)
        return loss_terms(estimate, clean, batch.target, self.regression, self.limits)

    def seeds(self) -> Tensor:
        """The scenes of the next batch: every training seed is used once."""
        first = self.config.data.first_seed + self.samples
        return torch.arange(first, first + self.config.batch)

    def step(self) -> dict[str, Tensor]:
        batch = self.stream(self.seeds())
        if self.device.type == "cuda":  # convolutions on tensor cores want channels last
            batch.pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
            batch.rays = batch.rays.contiguous(memory_format=torch.channels_last)
        clean = clean_sweep(batch.target, *self.limits)
        x, t = noisy_sweep(clean, self.regression)
        terms = self._forward(batch, clean, x, t)
        loss = total(terms, self.config.loss)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.ema.update(self.student)
        self.samples += self.config.batch
        return {**{k: v.detach() for k, v in terms.items()}, "loss": loss.detach(), "grad_norm": norm}

    def evaluate(self, scenes: int | None = None) -> dict[str, float]:
        predict = student_predictor(self.ema.model, self.limits, self.autocast)  # type: ignore[arg-type]
        return evaluate(predict, self.stream, scenes or self.config.eval_scenes, self.config.batch)

    def run(self) -> dict[str, Any]:
        """Trains to the end of the schedule; returns the last evaluation and writes curve, weights and evaluation."""
        config = self.config
        next_eval, next_save = config.eval_every, config.save_every
        self.student.train()
        self.step()  # compiles, which may take minutes: max_seconds counts them, the schedule does not
        started = time.perf_counter()
        seconds_left = math.inf
        if config.max_seconds is not None:
            seconds_left = max(config.max_seconds - (started - self.created), 1.0)
            print(f"compiled; {seconds_left:.0f} s of training left", flush=True)
        with progress_bar(config.samples) as (bar, task):
            while True:
                elapsed = time.perf_counter() - started
                fraction = max(self.samples / config.samples, elapsed / seconds_left)
                if fraction >= 1:
                    break
                for group in self.optimiser.param_groups:
                    group["lr"] = learning_rate(config, self.samples, fraction)
                logs = self.step()
                if (
                    self.samples // config.batch % 20 == 1
                ):  # reading losses waits for the device: not every step
                    row = {k: float(v) for k, v in logs.items()}
                    row |= {
                        "samples": self.samples,
                        "seconds": elapsed,
                        "lr": self.optimiser.param_groups[0]["lr"],
                    }
                    self.check_finite(row)
                    self.curve.append(row)
                    bar.update(
                        task, completed=self.samples,
                        description=f"loss {row['loss']:.3f} {self.samples / max(elapsed, 1e-9):.0f}/s",
                    )  # fmt: skip
                if self.samples >= next_save:
                    next_save += config.save_every
                    self.save()
                    print(f"saved after {self.samples} samples, {elapsed:.0f} s", flush=True)
                if self.samples >= next_eval:
                    next_eval += config.eval_every
                    self.curve.append(
                        {"samples": self.samples, "seconds": elapsed, **prefixed(self.evaluate())}
                    )
                    self.save()
                    log.info("%s", json.dumps(self.curve[-1]))
        self.synchronise()
        seconds = time.perf_counter() - started
        result = {
            "samples": self.samples, "seconds": seconds, "samples_per_second": self.samples / seconds,
            "model": self.evaluate(),
        }  # fmt: skip
        self.save()
        return result

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def check_finite(self, row: dict[str, float]) -> None:
        if not math.isfinite(row["loss"]):
            seeds = self.seeds() - self.config.batch
            (self.folder / "nan_batch.json").write_text(json.dumps({"seeds": seeds.tolist(), **row}))
            raise LidargenError(
                f"loss is {row['loss']} after {self.samples} samples; the scenes are in {self.folder / 'nan_batch.json'}; "
                "lower optimiser.lr or use precision=fp32"
            )

    def constant_map(self, scenes: int = 256) -> tuple[Tensor, Tensor]:
        """The best constant predictor, from training scenes."""
        first = self.config.data.first_seed
        return constant_map(self.stream, torch.arange(first, first + scenes), self.config.batch)

    def ladder(self, maps: tuple[Tensor, Tensor], scenes: int | None = None) -> dict[str, float]:
        """Evaluation of a constant map on the held-out scenes."""
        scenes = scenes or self.config.eval_scenes
        return evaluate(constant_predictor(maps), self.stream, scenes, self.config.batch)

    def save(self) -> None:
        """Weights (averaged), and the curve, each written whole or not at all."""
        weights = {k: v.contiguous() for k, v in self.ema.model.state_dict().items()}
        temporary = self.folder / ".student.safetensors.tmp"
        save_file(
            weights,
            temporary,
            {"config": json.dumps(self.config.model.to_dict()), "samples": str(self.samples)},
        )
        temporary.replace(self.folder / "student.safetensors")
        (self.folder / "curve.json").write_text(json.dumps(self.curve))


def load_student(student: Student, path: Path) -> None:
    """Loads weights into a student of the same size, every key accounted for."""
    student.load_state_dict(load_file(path))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and norms."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def prefixed(values: dict[str, float], prefix: str = "eval/") -> dict[str, float]:
    return {prefix + k: v for k, v in values.items()}


@contextlib.contextmanager
def progress_bar(samples: int):
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        yield bar, bar.add_task("training", total=samples)
