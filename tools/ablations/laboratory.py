# SPDX-License-Identifier: Apache-2.0
"""Runs variants on one set of stored scenes: build, train, measure."""

from __future__ import annotations

import logging
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lidargen_ros.errors import ConfigError
from training.loop import ranks
from training.student.evaluate import constant_map
from training.student.objective import Counts, LossWeights, noisy_sweep

from .answers import Answer, InverseCode, Latent, LogCode, Tokenizer
from .loop import Asked, Plan, Schedule, Terms, Trained, experiment_of, in_use, now, train
from .measure import Maps, drawn_figures, estimated, figures
from .scenes import Setup, held_out_scenes, make_bank, training_scenes
from .variants import REFERENCE, Variant, build

log = logging.getLogger(__name__)
CONSTANT_SCENES = 256
TRIAL_STEPS = 60
MARGIN = 1.3  # variants cost more than the reference, attention most
PASSES = 4  # over the scenes, at most


def affordable(seconds: float, runs: int, fixed: float, per_sample: float) -> int:
    """Samples per run that let ``runs`` of them end in time.

    Args:
        fixed: seconds of a run whatever its length: capture, figures.
    """
    return max(0, int((seconds / runs / MARGIN - fixed) / per_sample))


class Laboratory:
    """Renders the scenes when made; ``samples`` is what every variant is trained with.

    Args:
        deadline: ``time.perf_counter()`` at which training gives up.
        graphs: replay training steps as CUDA graphs.
    """

    def __init__(self, setup: Setup, device: torch.device, *, deadline: float, graphs: bool) -> None:
        self.setup, self.device, self.deadline, self.graphs = setup, device, deadline, graphs
        self.samples = setup.samples or 0
        self.bank = make_bank(setup, device)
        started = now(device)
        self.held_out = held_out_scenes(setup, self.bank)
        compiled = now(device)
        self.training = training_scenes(setup, self.bank)
        log.info("renderer ready and held-out scenes after %.0f s", compiled - started)
        log.info("%d training scenes in %.0f s", len(self.training), now(device) - compiled)
        sensor = self.training.sensor
        self.log_code = LogCode(sensor.shape, (sensor.min_range_m, sensor.max_range_m), LossWeights())

    def choose_samples(self, runs: int) -> None:
        """Sets ``samples``, the number for every run, by a short trial of the reference.

        Raises:
            ConfigError: not even one batch each fits.
        """
        batch = self.setup.batch
        self.samples = TRIAL_STEPS * batch
        for _ in range(2):  # the first also takes what a process needs once
            started = now(self.device)
            per_sample = self.run(REFERENCE)["milliseconds_per_sample"] / 1e3
            fixed = now(self.device) - started - per_sample * self.samples
        samples = affordable(self.deadline - now(self.device), runs, fixed, per_sample)
        self.samples = min(samples, PASSES * len(self.training)) // batch * batch
        if not self.samples:
            raise ConfigError(
                f"{runs} runs do not fit into the time left: each takes {fixed:.0f} s without any sample; "
                "use fewer variants or more seconds"
            )
        log.info(
            "%d samples for each of %d runs: %.2f ms each, and %.1f s",
            self.samples, runs, 1e3 * per_sample, fixed,
        )  # fmt: skip

    def constant_map(self) -> dict[str, float]:
        """Figures of the best map that looks at no picture."""

        def stream(index: Tensor, exact_only: bool) -> SimpleNamespace:
            return SimpleNamespace(target=self.training.target(index))

        index = torch.arange(min(CONSTANT_SCENES, len(self.training)), device=self.device)
        ranges, returns = (m.to(self.device) for m in constant_map(stream, index))  # type: ignore[arg-type]
        shape = self.training.sensor.shape
        return self._figures(
            lambda index: (ranges.expand(len(index), *shape), returns.expand(len(index), *shape))
        )

    @cached_property
    def tokenizer(self) -> tuple[Tokenizer, dict[str, Any]]:
        """The autoencoder, trained on the same sweeps, and its own figures: the floor of what a latent can tell."""
        torch.manual_seed(0)
        tokenizer = Tokenizer().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sweeps = self.log_code

        def terms(asked: Asked) -> dict[str, Tensor]:
            target = self.training.target(asked.index)
            clean = sweeps.clean(target)
            counts = Counts.of(target, asked.regression, ranks.average)
            return sweeps.terms(tokenizer(clean, target.intensity), clean, target, asked.regression, counts)

        def rebuilt(index: Tensor) -> tuple[Tensor, Tensor]:
            target = self.held_out.target(index)
            return sweeps.maps(tokenizer(sweeps.clean(target), target.intensity))

        trained = self._train(tokenizer, terms, "tokenizer", 0, 0.0, (1, 1, 1), rebuilt)
        return tokenizer, self._report(tokenizer, trained, rebuilt)

    def answer(self, variant: Variant) -> Answer:
        if variant.answer == "latent":
            return Latent(self.tokenizer[0], self.log_code)
        if variant.answer == "inverse":
            code = self.log_code
            return InverseCode(code.shape[1:], code.limits, code.weights)
        return self.log_code

    def run(self, variant: Variant) -> dict[str, Any]:
        """Everything measured of one variant.

        Raises:
            LidargenError: it, or its tokenizer, could not be trained (``loop.train``).
        """
        answer = self.answer(variant)
        model = build(variant, self.setup.student, self.bank, answer.shape)

        def terms(asked: Asked) -> dict[str, Tensor]:
            target = self.training.target(asked.index)
            clean = answer.clean(target)
            counts = Counts.of(target, asked.regression, ranks.average)
            noisy = noisy_sweep(clean, asked.level, asked.noise)
            estimate = model(self.training.frames(asked.index), noisy, asked.level)
            return answer.terms(estimate, clean, target, asked.regression, counts)

        maps = estimated(model, answer, self.held_out)
        trained = self._train(
            model, terms, variant.name, variant.seed, variant.flow_share, answer.shape, maps
        )
        found = self._report(model, trained, maps)
        if variant.drawn:
            with in_use(model):
                found["figures"] |= drawn_figures(
                    model, answer, self.held_out, self.setup.drawn, self.setup.batch
                )
        if variant.answer == "latent":
            found["tokenizer"] = self.tokenizer[1]
        return {"says": variant.says, "seed": variant.seed, "flow_share": variant.flow_share, **found}

    def _train(self, model: nn.Module, terms: Terms, name: str, seed: int, flow_share: float, shape: tuple[int, ...],
               maps: Maps) -> Trained:  # fmt: skip
        experiment = experiment_of(name, self.samples, self.setup.batch, seed)
        plan = Plan.of(experiment, flow_share, len(self.training), self.device)
        return train(
            model, terms, plan, shape, Schedule(experiment, self.device), deadline=self.deadline, graphs=self.graphs,
            check=lambda: figures(maps, self.held_out, self.setup.checked, self.setup.batch),
        )  # fmt: skip

    def _report(self, model: nn.Module, trained: Trained, maps: Maps) -> dict[str, Any]:
        with in_use(model):
            found = self._figures(maps)
        log.info(
            "%.2f ms a sample; %s",
            trained.milliseconds_per_sample,
            {k: round(v, 4) for k, v in found.items()},
        )
        return {
            "samples": trained.samples,
            "parameters": sum(p.numel() for p in model.parameters()),
            "milliseconds_per_sample": trained.milliseconds_per_sample,
            "figures": {"loss": trained.curve["loss"][-1], **found},
            "held_out_while_training": trained.checks,
            "curve": trained.curve,
        }

    def _figures(self, maps: Maps) -> dict[str, float]:
        return figures(maps, self.held_out, self.setup.held_out, self.setup.batch)
