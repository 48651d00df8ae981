# SPDX-License-Identifier: Apache-2.0
"""What people look at while a run goes on: progress, ``curve.jsonl``, TensorBoard, Weights & Biases, pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lidargen_ros.errors import ConfigError
from lidargen_ros.files import durable
from lidargen_ros.pictures import save_picture

from ..recipe import Experiment
from ..report import CURVE, read_curve
from . import ranks

log = logging.getLogger(__name__)
CONSOLE = Console(stderr=True)  # progress and log share it, so that neither tears the other apart


EVAL = "eval/"  # before the name of a figure of a validation


class Outputs:
    """Rank 0 writes, the others do nothing. What an earlier part of the run logged after ``samples`` is dropped."""

    def __init__(self, folder: Path, experiment: Experiment, samples: int) -> None:
        self.folder, self.writes = folder, ranks.rank() == 0
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not self.writes:
            return
        path = folder / CURVE
        kept = [row for row in read_curve(folder) if row["samples"] <= samples] if path.is_file() else []
        with durable(path) as file:
            file.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
        self._curve = path.open("a")
        self._evaluation = next((row for row in reversed(kept) if figures(row)), {"samples": -1.0})
        if experiment.tensorboard:
            self._tensorboard = _tensorboard(folder / "tensorboard", samples)
        if experiment.wandb:
            self._wandb = _wandb(folder, experiment)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=CONSOLE)
        self._task = self._bar.add_task("training", total=experiment.samples, completed=samples)
        self._bar.start()

    def row(self, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """One line of the curve, on the disk of this process at once."""
        if not self.writes:
            return
        row = {"samples": samples, "seconds": round(seconds, 3), **values}
        self._curve.write(f"{json.dumps(row)}\n")
        self._curve.flush()
        if figures(row):
            self._evaluation = row
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, samples)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=samples)

    def evaluation(self, samples: int) -> dict[str, float]:
        """Figures of the validation that was logged at ``samples``; empty if there was none."""
        logged = self.writes and self._evaluation["samples"] == samples
        return figures(self._evaluation) if logged else {}

    def progress(self, samples: int, values: Mapping[str, float]) -> None:
        if self.writes:
            text = f"loss {values['loss']:.4g}  lr {values['lr']:.2e}  {values['samples_per_second']:.3g}/s"
            self._bar.update(self._task, completed=samples, description=text)

    def pictures(self, samples: int, pictures: Mapping[str, NDArray]) -> None:
        """uint8 RGB pictures to ``pictures/{samples}_{name}.jpg`` and the loggers."""
        if not self.writes:
            return
        for name, picture in pictures.items():
            path = save_picture(self.folder / "pictures" / f"{samples:09d}_{name}.jpg", picture)
            if self._tensorboard is not None:
                self._tensorboard.add_image(name, picture, samples, dataformats="HWC")
            if self._wandb is not None:
                self._wandb.log({name: self._wandb.Image(str(path))}, step=samples)

    def sync(self) -> None:
        """The curve reaches the disk before the checkpoint that goes on from its last line."""
        if self.writes:
            os.fsync(self._curve.fileno())

    def close(self) -> None:
        if not self.writes:
            return
        self._bar.stop()
        self._curve.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def figures(row: Mapping[str, float]) -> dict[str, float]:
    """The figures of a validation in a row of the curve; empty for a row of training."""
    return {name[len(EVAL) :]: value for name, value in row.items() if name.startswith(EVAL)}


def _tensorboard(folder: Path, samples: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard log: tensorboard is not installed; pip install tensorboard")
        return None
    return SummaryWriter(str(folder), purge_step=samples + 1)


def _wandb(folder: Path, experiment: Experiment) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("wandb=true, but wandb is not installed; pip install wandb") from error
    name = folder.name
    wandb.init(
        project="lidargen_ros", name=name, id=name, resume="allow", dir=str(folder),
        config=dataclasses.asdict(experiment),
    )  # fmt: skip
    return wandb
