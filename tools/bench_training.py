# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of training the published denoiser, with random weights on random latents: no data, no downloads.

    torchrun --nproc_per_node=2 tools/bench_training.py --steps 20 --out out/train_7b [random.model.blocks=14] [key=value ...]

Settings are those of ``published_7b``. Losses are written as well: at equal ``batch`` and with ``precision=fp32`` those of 1 and
N GPUs have to agree. TFLOP/s count three forward passes per sample, not what ``checkpoint_activations`` computes again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.files import replacing
from lidargen_ros.models.dit_cost import call_flops
from lidargen_ros.models.published_sampling import LatentSizes
from training.config import load_experiment
from training.draws import normal
from training.loop import ranks
from training.loop.trainer import Trainer
from training.published.config import PublishedExperiment
from training.published.data import NOISE, Batch, noised
from training.published.recipe import PublishedRecipe
from training.published_loss import ema_exponent
from training.recipe import Position

WARM_UP = 3  # steps that are not timed
RANDOM = ["start.checkpoint=null", "start.camera_tokenizer=null", "start.lidar_tokenizer=null"]


class RandomLatents(PublishedRecipe):
    """The published recipe without tokenizers and clips."""

    ahead = 0

    def __init__(self, experiment: PublishedExperiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        self._ema_exponent = ema_exponent(experiment.optimiser.ema_width)
        config, sizes = experiment.random.model, experiment.sizes
        rows, columns = LatentSizes(sizes.lidar_latent, sizes.camera_latent).padded
        self.shape = (config.latent_channels, config.views, rows, columns)

    def batch(self, first: int, count: int) -> Batch:
        numbers, seed = range(first, first + count), self.experiment.seed
        return noised(normal(seed, numbers, self.shape, self.device, NOISE + 10), numbers, seed)

    def export(self, folder: Path, weights: Mapping[str, Tensor], samples: int) -> None:
        """Nothing: there are no tokenizers."""

    def flops(self) -> float:
        """Of the forward pass of one sample."""
        config = self.experiment.random.model
        _, slots, rows, columns = self.shape
        return call_flops(config, [rows * columns // config.patch**2] * slots, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0, help="no step is begun after this")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_intermixed_args()
    begun = time.perf_counter()
    experiment = load_experiment(PublishedExperiment, "published_7b", [*RANDOM, *arguments.overrides])
    experiment = replace(experiment, keep=0)
    device = ranks.pick_device(experiment.device)
    with ranks.process_group(device, needed=experiment.parallel == "fsdp"):
        recipe = RandomLatents(experiment, device)
        started = time.perf_counter()
        trainer = Trainer(recipe, experiment, arguments.out, device)
        ready = time.perf_counter() - started
        cuda = device.type == "cuda"
        result = {
            "machine": f"{ranks.count()} x {torch.cuda.get_device_name(device) if cuda else 'CPU'}",
            "torch": torch.__version__, "command": " ".join(sys.argv),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "batch": experiment.batch, "precision": experiment.precision, "parallel": experiment.parallel,
            "ready_s": ready,
        }  # fmt: skip
        mine = experiment.batch // ranks.count()
        seconds, losses = [], []
        for step in range(arguments.steps):
            batch = recipe.batch(trainer.samples + ranks.rank() * mine, mine)
            started = time.perf_counter()
            trainer.one_step(batch, Position(step, trainer.samples, trainer.progress()))
            losses.append(trainer.read()["loss"])  # waits for the device
            seconds.append(time.perf_counter() - started)
            peak, gone = ranks.largest(
                [torch.cuda.max_memory_allocated(device) / 1e9 if cuda else 0.0, time.perf_counter() - begun]
            )
            step_s = statistics.median(seconds[WARM_UP:] or seconds)
            result |= {
                "step_s": step_s, "samples_per_second": experiment.batch / step_s,
                "tflop_per_s_per_gpu": 3 * recipe.flops() * mine / step_s / 1e12,
                "peak_gb_per_gpu": peak, "seconds": seconds, "losses": losses,
            }  # fmt: skip
            if ranks.rank() == 0:  # after each step: a run that is cut keeps what it measured
                print(f"step {step}: {seconds[-1]:.2f} s, loss {losses[-1]:.6f}", flush=True)
                with replacing(arguments.out / "result.json") as temporary:
                    temporary.write_text(json.dumps(result, indent=1) + "\n")
            if gone > arguments.seconds:
                break
        if ranks.rank() == 0:
            print(json.dumps({k: v for k, v in result.items() if k not in ("seconds", "losses")}, indent=1))
            print("losses", *(f"{loss:.6f}" for loss in losses))


if __name__ == "__main__":
    main()
