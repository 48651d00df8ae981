# SPDX-License-Identifier: Apache-2.0
"""``python -m training.evaluate RUN``: what a run has learnt, on held-out frames, beside the ladder.

Writes the generated and true sweeps to ``RUN/evaluation/`` (and true training sweeps to ``RUN/evaluation/training/``) in
the form that ``lidargen evaluate RUN`` reads, compares them, and writes ``RUN/evaluation.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from lidargen_ros.errors import ConfigError, LidargenError
from lidargen_ros.evaluate import evaluate, ladder_table
from lidargen_ros.evaluate_sources import pairs_from_folder, true_maps_from_folder
from lidargen_ros.sensors import Sensor

from .kinds import experiment_of, recipe_class
from .loop.ranks import pick_device
from .pairs import Pair


class Evaluated(Protocol):
    """What a recipe offers besides its training, so that its runs can be evaluated."""

    sensor: Sensor

    def trained(self, run: Path) -> nn.Module:
        """The averaged model that a run has written, on the recipe's device, in eval mode."""
        ...

    def pairs(self, model: nn.Module, limit: int) -> Iterator[Pair]:
        """Generated and true sweeps of at most ``limit`` held-out frames, evenly spread, without gradients."""
        ...

    def training_maps(self, limit: int) -> Iterator[NDArray]:
        """True maps of at most ``limit`` training frames."""
        ...


def write_sweeps(recipe: Evaluated, run: Path, frames: int, training_frames: int) -> Path:
    """``RUN/evaluation``, made anew: it appears when complete. Returns its path."""
    part, folder = run / ".evaluation", run / "evaluation"
    shutil.rmtree(part, ignore_errors=True)
    (part / "training").mkdir(parents=True)
    (part / "sensor.yaml").write_text(yaml.safe_dump(recipe.sensor.to_dict()))
    _write_pairs(recipe.pairs(recipe.trained(run), frames), part)
    for number, true in enumerate(recipe.training_maps(training_frames)):
        np.savez_compressed(part / "training" / f"{number:06d}.npz", true=true)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return folder


def _write_pairs(pairs: Iterable[Pair], folder: Path) -> None:
    seen = None
    for number, pair in enumerate(track(pairs, "sweeps", console=Console(stderr=True))):
        arrays = {"generated": pair.generated, "true": pair.true, "previous": np.zeros((0, 0), np.float32)}
        optional = {"returns": pair.returns, "tokenizer": pair.tokenizer, "previous": pair.previous}
        arrays |= {name: value for name, value in optional.items() if value is not None}
        np.savez_compressed(folder / f"{number:06d}_{pair.name}.npz", **arrays)
        seen = pair.seen if seen is None else seen
    if seen is not None:
        np.save(folder / "seen.npy", seen)


def evaluate_run(
    run: Path, frames: int = 64, training_frames: int = 256, device: str = "auto"
) -> dict[str, Any]:
    """Write and compare the sweeps of a run; returns the report of ``lidargen evaluate``, which also lies in the run.

    Raises:
        ConfigError: the folder is no run, or of a kind that makes no sweeps. CheckpointError: it has no weights yet.
    """
    experiment = experiment_of(run)
    place = pick_device(device)
    recipe = recipe_class(experiment.kind)(experiment, place)
    with torch.autocast(
        place.type, torch.bfloat16, enabled=experiment.precision == "bf16"
    ):  # as in validation
        folder = write_sweeps(recipe, run, frames, training_frames)
    found = pairs_from_folder(folder, recipe.sensor, recipe.sensor, limit=frames)
    report = evaluate(found, true_maps_from_folder(folder / "training", training_frames))
    (run / "evaluation.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--frames", type=int, default=64, help="held-out frames (default: 64)")
    parser.add_argument("--training-frames", type=int, default=256, help="for the ladder (default: 256)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(argv)
    try:
        if min(arguments.frames, arguments.training_frames) < 1:
            raise ConfigError("--frames and --training-frames must be at least 1")
        report = evaluate_run(arguments.run, arguments.frames, arguments.training_frames, arguments.device)
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    console.print(ladder_table(report, arguments.run.name))
    console.print(f"{arguments.run / 'evaluation.json'}: every number; see docs/metrics.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
