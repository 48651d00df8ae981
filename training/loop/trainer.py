# SPDX-License-Identifier: Apache-2.0
"""The loop: a recipe trained from its last checkpoint to the end of its schedule."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lidargen_ros.errors import ConfigError, LidargenError

from ..draws import sample_seed
from ..recipe import Experiment, Position, Recipe
from ..report import write_report
from . import ranks
from .averages import Averages
from .batches import Batches
from .checkpoint import Checkpoints, Training
from .outputs import EVAL, Outputs
from .placing import place

T = TypeVar("T")
log = logging.getLogger(__name__)


class Stopped(LidargenError):
    """A signal ended the run; its state is saved."""


class Trainer:
    """One run in ``folder``, which goes on from the checkpoint that lies there, if any. Made and called on all ranks.

    Args:
        started: ``time.perf_counter()`` from which ``max_seconds`` counts; None means now.
    """

    def __init__(
        self,
        recipe: Recipe,
        experiment: Experiment,
        folder: Path,
        device: torch.device,
        started: float | None = None,
    ) -> None:
        if experiment.batch < 1 or experiment.batch % ranks.count():
            raise ConfigError(
                f"batch {experiment.batch} cannot be split over {ranks.count()} ranks; use a multiple above 0"
            )
        self.recipe, self.experiment, self.folder, self.device = recipe, experiment, folder, device
        self.started = time.perf_counter() if started is None else started
        torch.set_float32_matmul_precision("highest" if experiment.precision == "fp32" else "high")
        torch.manual_seed(experiment.seed)
        self.model = recipe.build_model()
        self.root = place(self.model, recipe, experiment, device)
        self.optimiser = recipe.optimiser(self.model)
        self.averages = Averages(self.model)
        self.training = Training(self.model, self.optimiser, self.averages)
        self.checkpoints = Checkpoints(folder / "checkpoints", experiment.keep)
        self.step, self.samples = self.checkpoints.load(self.training)
        self.began_at = self.samples
        self.clock: float | None = None  # runs from the end of the first step, which compiles
        self.unread: list[tuple[int, dict[str, Tensor]]] = []  # first sample and terms of steps not yet read

    def autocast(self) -> contextlib.AbstractContextManager:
        sharded = self.experiment.parallel == "fsdp"  # which casts the weights itself
        half = self.experiment.precision == "bf16" and not sharded
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def run(self) -> dict[str, Any]:
        """Trains; returns samples, seconds, samples per second, figures of the averaged model and of the ladder.

        Raises:
            Stopped: SIGTERM or SIGINT arrived; everything is saved.
            LidargenError: a loss or gradient that is not finite; the samples are in ``nan_batch.json``.
        """
        e = self.experiment
        self.outputs = Outputs(self.folder, e, self.samples)
        batches = Batches(self.recipe, e.batch)
        try:
            with signals() as received:
                while True:
                    stop, progress = ranks.largest([float(received[-1] if received else 0), self.progress()])
                    if stop:
                        self.stop(signal.Signals(int(stop)))
                    if progress >= 1:
                        break
                    self.one_step(batches.next(self.samples), Position(self.step, self.samples, progress))
                    self.after_step()
            return self.finish()
        finally:
            batches.close()
            self.outputs.close()

    def progress(self) -> float:
        """Share of the schedule that is done: of the samples, or of the time."""
        done = self.samples / self.experiment.samples
        if self.experiment.max_seconds is None or self.clock is None:
            return done
        available = max(self.experiment.max_seconds - (self.clock - self.started), 1.0)
        return max(done, self.seconds() / available)

    def seconds(self) -> float:
        return 0.0 if self.clock is None else time.perf_counter() - self.clock

    def one_step(self, batch: Any, at: Position) -> None:
        torch.manual_seed(sample_seed(self.experiment.seed, at.samples, ranks.rank()))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(at)
        self.model.train()
        with self.autocast():
            terms = self.root(self.recipe.losses, batch)
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = self.recipe.clip_gradients(self.model)
        self.optimiser.step()
        self.averages.update(self.model, self.recipe.ema_beta(at.step))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.unread.append((at.samples, {k: v.detach() for k, v in (terms | {"grad_norm": norm}).items()}))
        self.step, self.samples = at.step + 1, at.samples + self.experiment.batch
        if self.clock is None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.clock = time.perf_counter()
            self.restart_pace()
            log.info("first step done after %.0f s", self.clock - self.started)

    def after_step(self) -> None:
        e = self.experiment
        if self.due(e.log_every):
            self.write_row()
        if self.due(e.eval_every):
            self.evaluate_and_log()
        if self.due(e.pictures_every):
            self.outputs.pictures(self.samples, self.with_averages(self.recipe.pictures))
        if self.due(e.save_every):
            self.save()
        if self.due(e.eval_every) or self.due(e.pictures_every) or self.due(e.save_every):
            self.restart_pace()

    def due(self, every: int) -> bool:
        """True where the last step passed a multiple of ``every`` samples."""
        return every > 0 and self.samples // every > (self.samples - self.experiment.batch) // every

    def read(self) -> dict[str, float]:
        """Terms of the last step, means over ranks; waits for the device and looks at all steps since the last reading."""
        names = list(self.unread[0][1])
        table = torch.stack([torch.stack([terms[n].float() for n in names]) for _, terms in self.unread])
        for (first, _), values in zip(self.unread, ranks.average(table).tolist(), strict=True):
            last = dict(zip(names, values, strict=True))
            if not (math.isfinite(last["loss"]) and math.isfinite(last["grad_norm"])):
                self.report_nan(first, last)
        self.unread.clear()
        return last

    def report_nan(self, first: int, terms: dict[str, float]) -> None:
        file, count = self.folder / "nan_batch.json", self.experiment.batch
        if ranks.rank() == 0:
            names = self.recipe.names(first, count)
            file.write_text(
                json.dumps(
                    {"first_sample": first, "samples": count, "names": names, "terms": terms}, indent=1
                )
            )
        raise LidargenError(
            f"loss {terms['loss']:.4g}, gradient norm {terms['grad_norm']:.4g} after {first} samples; the batch's names are "
            f"in {file}; look at its data, lower the learning rate or use precision=fp32, and go on from the last checkpoint"
        )

    def write_row(self) -> None:
        terms = self.read()
        now = time.perf_counter()
        assert self.clock is not None
        pace = (self.samples - self.read_at) / max(now - self.last_read, 1e-9)
        row = {**terms, "lr": self.optimiser.param_groups[0]["lr"], "samples_per_second": pace}
        if self.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.outputs.row(self.samples, self.seconds(), row)
        self.outputs.progress(self.samples, row)
        self.restart_pace()

    def restart_pace(self) -> None:
        """The pace in the curve is that of training, without validations and saves."""
        self.read_at, self.last_read = self.samples, time.perf_counter()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with averaged weights, ready to be used; sharded weights only through ``root``."""
        self.model.eval()
        with self.averages.swapped(self.model), torch.no_grad(), self.autocast():
            yield self.model

    def with_averages(self, function: Callable[[nn.Module], T]) -> T:
        with self.averaged():
            return self.root(function)

    def evaluate_and_log(self) -> dict[str, float]:
        figures = self.with_averages(self.recipe.validate)
        self.outputs.row(
            self.samples, self.seconds(), {EVAL + name: value for name, value in figures.items()}
        )
        return figures

    def save(self) -> None:
        if self.unread:
            self.read()  # nothing that is not finite reaches a checkpoint
        self.outputs.sync()
        self.checkpoints.save(self.training, self.recipe, self.step, self.samples)
        log.info("saved after %d samples, %.0f s", self.samples, self.seconds())

    def stop(self, received: signal.Signals) -> None:
        self.save()
        state = "the state is saved" if self.experiment.keep else "no state is saved, because keep is 0"
        raise Stopped(
            f"{received.name} stopped the run after {self.samples} samples and {state}; go on with the same command and "
            f"--folder {self.folder}"
        )

    def finish(self) -> dict[str, Any]:
        """Last row, validation, pictures, checkpoint; each is there once, also after a kill in between."""
        if self.unread:
            self.write_row()
        seconds = self.seconds()
        figures = ranks.shared(self.outputs.evaluation(self.samples)) or self.evaluate_and_log()
        if self.experiment.pictures_every:
            self.outputs.pictures(self.samples, self.with_averages(self.recipe.pictures))
        self.save()
        done = self.samples - self.began_at
        result = {
            "samples": self.samples, "seconds": seconds, "samples_per_second": done / max(seconds, 1e-9),
            "model": figures, "ladder": self.recipe.ladder(),
        }  # fmt: skip
        if ranks.rank() == 0:
            (self.folder / "result.json").write_text(json.dumps(result, indent=1))
            write_report(self.folder)
        return result


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """The SIGTERMs and SIGINTs that arrived; a second Ctrl-C interrupts at once where one process runs alone."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and received and ranks.count() == 1:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
