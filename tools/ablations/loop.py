# SPDX-License-Identifier: Apache-2.0
"""Training of one network on stored scenes, with the shipped recipe's optimiser, schedule and averages.

On a GPU a whole step (look-up, both passes, optimiser) is replayed as a CUDA graph: small networks wait for launches otherwise,
and nothing has to be compiled.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lidargen_ros.errors import LidargenError
from training.loop.averages import Averages, averaged_tensors
from training.recipe import Position
from training.scenes.hashing import uniforms
from training.student.config import Optimiser, StudentExperiment
from training.student.recipe import StudentRecipe, is_drawn

Terms = Callable[["Asked"], dict[str, Tensor]]
EAGER_STEPS = 3  # before the capture: libraries choose their kernels and the optimiser makes its state
CURVE_POINTS, CHECKS = 60, 8


@dataclass(frozen=True)
class Asked:
    """A batch: ``index`` of its scenes; ``regression [B]``, whether the best estimate is asked for; ``level [B]``; ``noise``.

    The tensors keep their memory through a run, as a CUDA graph demands.
    """

    index: Tensor
    regression: Tensor
    level: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Plan:
    """Which scenes, questions and noise levels make each batch, ``[steps, batch]``: the same for all variants of one seed."""

    index: Tensor
    regression: Tensor
    level: Tensor
    seed: int

    @classmethod
    def of(cls, e: StudentExperiment, flow_share: float, scenes: int, device: torch.device) -> Plan:
        steps = e.samples // e.batch
        count = steps * e.batch
        generator = torch.Generator().manual_seed(e.seed)
        passes = [torch.randperm(scenes, generator=generator) for _ in range(math.ceil(count / scenes))]
        drawn = torch.tensor([is_drawn(n, flow_share) for n in range(count)])
        level = uniforms(torch.arange(count) + (e.seed << 32), 1)[:, 0].clamp_min(1e-3)
        tables = (torch.cat(passes)[:count], ~drawn, torch.where(drawn, level, 1.0))
        index, regression, level = (t.reshape(steps, e.batch).to(device) for t in tables)
        return cls(index, regression, level, e.seed)

    def fill(self, asked: Asked, step: int, generator: torch.Generator) -> None:
        for name in ("index", "regression", "level"):
            getattr(asked, name).copy_(getattr(self, name)[step])
        asked.noise.normal_(generator=generator)
        asked.noise.mul_(~asked.regression.reshape(-1, 1, 1, 1))

    def blank(self, shape: tuple[int, ...]) -> Asked:
        """Memory for one batch whose noise has this shape per sample."""
        noise = torch.zeros(self.index.shape[1], *shape, device=self.index.device)
        return Asked(self.index[0].clone(), self.regression[0].clone(), self.level[0].clone(), noise)


class Schedule(StudentRecipe):
    """The shipped recipe's optimiser, learning rate, clipping and averages, without its data."""

    def __init__(self, experiment: StudentExperiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device


def optimiser_of(samples: int) -> Optimiser:
    """The shipped one for a short run: a tenth of it warms up."""
    return Optimiser(warmup_samples=samples // 10)


def experiment_of(name: str, samples: int, batch: int, seed: int) -> StudentExperiment:
    optimiser = optimiser_of(samples)
    return StudentExperiment(
        kind="student", name=name, samples=samples, batch=batch, seed=seed, optimiser=optimiser, compile=False
    )


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextlib.contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, the arithmetic of training."""
    model.eval()
    with torch.no_grad(), autocast(next(model.parameters()).device):
        yield


class Stepper:
    """One optimiser step per call, eager at first, then replayed.

    ``row`` holds the terms of the last step and the norm of its gradients, in the order of ``names``.
    """

    def __init__(
        self, model: nn.Module, terms: Terms, asked: Asked, schedule: Schedule, graphs: bool
    ) -> None:
        self._model, self._terms, self._asked = model, terms, asked
        self._schedule, self._graphs = schedule, graphs
        self.names: list[str] = []
        self.lr = torch.zeros((), device=schedule.device)
        self._optimiser = schedule.optimiser(model)
        for group in self._optimiser.param_groups:
            group.update(lr=self.lr, capturable=schedule.device.type == "cuda")
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self) -> None:
        self._steps += 1
        if not self._graphs or self._steps <= EAGER_STEPS:
            self._step()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
                self._step()
        self._graph.replay()

    def _step(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        with autocast(self._schedule.device):
            terms = self._terms(self._asked)
        terms["loss"].backward()
        norm = self._schedule.clip_gradients(self._model)
        self._optimiser.step()
        self.names = [*terms, "grad_norm"]
        self.row = torch.stack([*(v.detach().float() for v in terms.values()), norm.detach().float()])


@dataclass(frozen=True)
class Trained:
    """``curve`` (means over stretches of training) and ``checks`` (held-out figures): lists by name, with ``samples``."""

    curve: dict[str, list[float]]
    checks: dict[str, list[float]]
    milliseconds_per_sample: float
    samples: int


def train(
    model: nn.Module,
    terms: Terms,
    plan: Plan,
    shape: tuple[int, ...],
    schedule: Schedule,
    *,
    deadline: float,
    graphs: bool,
    check: Callable[[], dict[str, float]],
) -> Trained:
    """Trains ``model`` in place; it ends with averaged weights.

    Args:
        shape: of the noise of one sample.
        deadline: ``time.perf_counter()`` at which to give up.
        check: held-out figures of the model as it stands, looked at ``CHECKS`` times with averaged weights.

    Raises:
        LidargenError: the deadline passed, and a network with fewer samples cannot be compared; or a loss is not finite.
    """
    device, steps, batch = schedule.device, *plan.index.shape
    asked, averages = plan.blank(shape), Averages(model)
    step_once = Stepper(model, terms, asked, schedule, graphs)
    noise = torch.Generator(device).manual_seed(plan.seed)
    rows: list[Tensor] = []
    checks: dict[str, list[float]] = {}
    at_check = {round(steps * (k + 1) / CHECKS) - 1 for k in range(CHECKS)}
    seconds, counted, began = 0.0, 0, now(device)
    model.train()
    for step in range(steps):
        done = (step + 1) * batch
        plan.fill(asked, step, noise)
        step_once.lr.fill_(schedule.learning_rate(Position(step, step * batch, step / steps)))
        step_once()
        averages.update(model, schedule.ema_beta(step))
        rows.append(step_once.row.clone())
        counted += 1
        if time.perf_counter() > deadline:
            raise LidargenError(
                f"{schedule.experiment.name}: {done} of {steps * batch} samples when time was up; use fewer samples"
            )
        if step in at_check:
            seconds += now(device) - began
            with averages.swapped(model), in_use(model):
                for name, value in {"samples": float(done), **check()}.items():
                    checks.setdefault(name, []).append(value)
            model.train()
            began = now(device)
        if step == EAGER_STEPS:  # the pace is that of replayed steps
            seconds, counted, began = 0.0, 0, now(device)
    with torch.no_grad():
        for weights, average in zip(averaged_tensors(model).values(), averages.by_name.values(), strict=True):
            weights.copy_(average)
    table = torch.stack(rows).cpu()
    if not table.isfinite().all():
        raise LidargenError(f"{schedule.experiment.name}: a loss is not finite; lower the learning rate")
    pace = 1e3 * seconds / max(counted * batch, 1)
    return Trained(thinned(table, step_once.names, batch), checks, pace, steps * batch)


def now(device: torch.device) -> float:
    """The clock once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def thinned(table: Tensor, names: list[str], batch: int) -> dict[str, list[float]]:
    """Values of every step ``[steps, names]`` as means over at most ``CURVE_POINTS`` stretches, each at its last sample."""
    ends = torch.arange(1, len(table) + 1) * batch
    parts = min(CURVE_POINTS, len(table))
    means = torch.stack([part.mean(0) for part in table.tensor_split(parts)])
    samples = [float(part[-1]) for part in ends.tensor_split(parts)]
    return {"samples": samples, **{name: means[:, k].tolist() for k, name in enumerate(names)}}
