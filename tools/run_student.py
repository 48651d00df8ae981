# SPDX-License-Identifier: Apache-2.0
"""One training run of a student on one GPU, from scenes to numbers: train, evaluate, time, write everything to one folder.

    python tools/run_student.py student_nano --seconds 540 --out out/nano [--start-from out/earlier] [key=value ...]

Files: ``result.json``, ``curve.json``, ``config.yaml``, ``report.md`` with curves and pictures, ``baseline.npz`` (the best
constant map) and the averaged weights in pieces of at most 15 MB (``student-0.safetensors`` ...). ``tools/make_bundle.py``
turns the folder into a bundle.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.config import dump, load_experiment
from training.loop.ranks import pick_device
from training.loop.trainer import Trainer
from training.report import read_curve
from training.student.config import StudentExperiment
from training.student.pieces import write_pieces
from training.student.recipe import StudentRecipe


def timings(student: torch.nn.Module, recipe: StudentRecipe, repeats: int = 200) -> dict[str, float]:
    """Median milliseconds of one frame (pixels already looked up), batch 1: eager, and replayed as one CUDA graph."""
    data = recipe.stream(torch.tensor([recipe.experiment.data.first_seed - 1]), exact_only=True)

    def frame() -> torch.Tensor:
        return student.estimate(data.pixels, data.rays).code  # type: ignore[operator]

    result = {"eager_ms": median_ms(frame, repeats)}
    if recipe.device.type == "cuda":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                frame()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            frame()
        result["cuda_graph_ms"] = median_ms(graph.replay, repeats)
    return result


def median_ms(call, repeats: int) -> float:
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--seconds",
        type=float,
        required=True,
        help="until training ends, compilation included",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run whose weights to continue")
    parser.add_argument("--final-scenes", type=int, default=256)
    parser.add_argument("--baseline-scenes", type=int, default=256)
    parser.add_argument(
        "--half", action="store_true", help="write matrices and kernels in float16: half the size"
    )
    arguments = parser.parse_intermixed_args()
    started = time.perf_counter()

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = load_experiment(StudentExperiment, arguments.experiment, arguments.overrides)
    config = replace(
        config, max_seconds=arguments.seconds, eval_scenes=arguments.final_scenes, keep=0, tensorboard=False
    )
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump(config))
    if arguments.start_from:
        config = replace(config, start_from=str(arguments.start_from))
    device = pick_device(config.device)
    recipe = StudentRecipe(config, device)
    recipe.baseline_scenes = arguments.baseline_scenes
    trainer = Trainer(recipe, config, out, device, started)
    print(f"ready after {time.perf_counter() - started:.0f} s on {device}", flush=True)
    trained = trainer.run()
    (out / "curve.json").write_text(json.dumps(read_curve(out)))
    (out / "checkpoints").rmdir()  # empty: ``keep`` is 0
    (out / "student.safetensors").unlink()

    ranges, returns = recipe.constant_map
    np.savez_compressed(
        out / "baseline.npz",
        range_cm=(ranges * 100).round().numpy().astype(np.uint16),
        returns=returns.numpy() > 0.5,
    )
    with trainer.averaged() as student:
        write_pieces(student, config.model, out, half=arguments.half)
        times = timings(student, recipe)
    cuda = torch.cuda.is_available()
    result = {
        **trained,
        "timings": times,
        "machine": torch.cuda.get_device_name() if cuda else "CPU",
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
        "torch": torch.__version__, "commit": commit(), "command": " ".join(sys.argv),
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(
        f"samples {result['samples']}, {result['samples_per_second']:.0f}/s, {result['machine']}, {result['timings']}"
    )
    constant = result["ladder"]["constant_map"]
    for name, value in result["model"].items():
        print(f"{name:22s} model {value:.4f}   constant map {constant[name]:.4f}")


if __name__ == "__main__":
    main()
