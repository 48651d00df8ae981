# SPDX-License-Identifier: Apache-2.0
"""The smallest recipe: a network of a few numbers that fits a known map from noisy samples. For tests of the loop alone."""

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from training.draws import normal
from training.recipe import Experiment

WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class ToyExperiment(Experiment):
    kind: str = "toy"
    name: str = "toy"
    batch: int = 4
    samples: int = 40
    log_every: int = 4
    eval_every: int = 20
    save_every: int = 8
    pictures_every: int = 20
    precision: str = "fp32"
    device: str = "cpu"
    tensorboard: bool = False
    nan_from: int | None = None  # from this sample on the loss is NaN
    ahead: int = 0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        return x + self.scale * torch.tanh(self.inner(self.norm(x)))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([Block(), Block()])

    def predict(self, x):  # not ``forward``: recipes may call methods
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class ToyRecipe:
    signal_at: int | None = None  # the step that reaches so many samples gets a SIGTERM

    def __init__(self, experiment: ToyExperiment, device: torch.device) -> None:
        self.experiment, self.device, self.ahead = experiment, device, experiment.ahead

    def build_model(self):
        return Toy()

    def optimiser(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def learning_rate(self, at):
        if at.samples + self.experiment.batch == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1e-2 * (1 - 0.5 * at.progress)

    def clip_gradients(self, model):
        return nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def ema_beta(self, step):
        return min(0.9, (1 + step) / (10 + step))

    def batch(self, first, count):
        samples = range(first, first + count)
        x = normal(self.experiment.seed, samples, (8,), self.device)
        noise = normal(self.experiment.seed, samples, (3,), self.device, purpose=1)
        bad = self.experiment.nan_from
        scale = torch.tensor([math.nan if bad is not None and n >= bad else 1.0 for n in samples])
        return x, torch.sin(x[:, :3]) + 0.1 * noise, scale.to(self.device)

    def losses(self, model, batch):
        x, target, scale = batch
        error = (model.predict(x).float() - target) ** 2 * scale[:, None]
        return {"loss": error.mean(), "worst": error.amax(1).mean()}

    def names(self, first, count):
        return [f"sample {n}" for n in range(first, first + count)]

    def validate(self, model):
        x, target, _ = self.batch(10**6, 16)
        return {"error": float((model.predict(x).float() - target).abs().mean())}

    def ladder(self):
        return {"zero": {"error": float(self.batch(10**6, 16)[1].abs().mean())}}

    def pictures(self, model):
        out = model.predict(self.batch(10**6, 16)[0]).float().cpu().numpy()
        return {"toy": (np.clip(out, -1, 1) * 127 + 128).astype(np.uint8)[None].repeat(16, 0)}

    def shard_blocks(self, model):
        return list(model.blocks)

    def layout(self, weights, kind):
        return {name: w.bfloat16() if kind == "reg" else w for name, w in weights.items()}

    def export(self, folder: Path, weights, samples):
        save_file(dict(weights), folder / "toy.safetensors", {"samples": str(samples)})
