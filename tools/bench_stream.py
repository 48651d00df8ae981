# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one training batch, stage by stage: worlds, cameras, LiDAR, one optimiser step.

python tools/bench_stream.py student_nano [key=value ...]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import load_experiment
from training.scenes.render import make_worlds, sample_ego
from training.student.config import StudentExperiment
from training.student.loop import StudentTrainer


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
    trainer = StudentTrainer(
        load_experiment(StudentExperiment, sys.argv[1], sys.argv[2:]), Path("out/bench_stream")
    )
    print(f"set up in {time.perf_counter() - start:.1f} s on {torch.cuda.get_device_name()}", flush=True)
    stream, seeds = trainer.stream, trainer.seeds().to(trainer.device)
    entries = torch.zeros(len(seeds), dtype=torch.long, device=trainer.device)
    worlds = timed("worlds", lambda: make_worlds(seeds))
    ego = sample_ego(worlds, seeds)
    timed("cameras", lambda: stream._cameras(worlds, ego, entries, True))
    timed("lidar", lambda: stream._lidar(worlds, ego, entries, True))
    timed("batch", lambda: stream(seeds))
    timed("step", trainer.step)


if __name__ == "__main__":
    main()
