# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one training batch, stage by stage: worlds, cameras, LiDAR, one optimiser step.

python tools/bench_stream.py student_nano [key=value ...]
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import load_experiment
from training.loop.ranks import pick_device
from training.loop.trainer import Trainer
from training.recipe import Position
from training.scenes.render import make_worlds, sample_ego
from training.student.config import StudentExperiment
from training.student.recipe import StudentRecipe


def timed(name: str, call: Callable[[], Any], repeats: int = 5) -> Any:
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    torch.cuda.synchronize()
    each = (time.perf_counter() - start) / repeats
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"{name:10s} first {first:6.1f} s   then {1e3 * each:8.2f} ms   peak {peak:6.1f} GB", flush=True)
    return result


def main() -> None:
    start = time.perf_counter()
    config = replace(load_experiment(StudentExperiment, sys.argv[1], sys.argv[2:]), keep=0)
    device = pick_device(config.device)
    recipe = StudentRecipe(config, device)
    trainer = Trainer(recipe, config, Path("out/bench_stream"), device)

    def step() -> None:
        at = Position(trainer.step, trainer.samples, 0.0)
        trainer.one_step(recipe.batch(at.samples, config.batch), at)

    print(f"set up in {time.perf_counter() - start:.1f} s on {torch.cuda.get_device_name()}", flush=True)
    stream = recipe.stream
    seeds = config.data.first_seed + torch.arange(config.batch, device=device)
    entries = torch.zeros(len(seeds), dtype=torch.long, device=device)
    worlds = timed("worlds", lambda: make_worlds(seeds))
    ego = sample_ego(worlds, seeds)
    timed("cameras", lambda: stream._cameras(worlds, ego, entries, True))
    timed("lidar", lambda: stream._lidar(worlds, ego, entries, True))
    timed("batch", lambda: stream(seeds))
    timed("step", step)


if __name__ == "__main__":
    main()
