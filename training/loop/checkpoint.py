# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a kill at any moment, and a change of the number of ranks.

    iter_000000600_reg_model.pt  weights          in the published layout (of the recipe's family)
    iter_000000600_ema_model.pt  averaged weights  likewise
    iter_000000600_state/        everything else that resuming needs, sharded (torch.distributed.checkpoint)
    iter_000000600.pt            steps and samples; written last, so that it marks the others as complete
    latest_checkpoint.txt        names the newest of these; until it does, the one before counts

Everything is written under a temporary name (with a leading dot), fsynced and renamed.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lidargen_ros.errors import CheckpointError
from lidargen_ros.files import durable, sync

from ..recipe import Kind, Recipe
from . import ranks
from .averages import Averages
from .placing import whole_weights

LATEST = "latest_checkpoint.txt"


@dataclass(frozen=True)
class Training:
    """What training changes."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    averages: Averages

    def state(self) -> dict[str, Any]:
        """By names of parameters, whatever the sharding."""
        return {
            "model": get_model_state_dict(self.model),
            "optimiser": get_optimizer_state_dict(self.model, self.optimiser),
            "averages": self.averages.by_name,
        }


class Checkpoints:
    """Those of one run, in ``folder``; the newest ``keep`` stay. Called on all ranks."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        if ranks.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_incomplete()
        ranks.barrier()

    @property
    def latest(self) -> Path | None:
        """``iter_N.pt`` of the newest complete checkpoint."""
        file = self.folder / LATEST
        return self.folder / file.read_text().strip() if file.is_file() else None

    def save(self, training: Training, recipe: Recipe, step: int, samples: int) -> None:
        """A complete checkpoint, and what the recipe exports; nothing if this step is saved."""
        mark = self.folder / f"iter_{step:09d}.pt"
        if mark == self.latest:
            return
        if ranks.rank() == 0 and mark.exists():  # of a run that was killed before it could name it the latest
            remove(mark)
        ranks.barrier()
        if self.keep:
            self._save_state(training, mark)
        first = ranks.rank() == 0
        kinds: dict[Kind, Any] = {"reg": None} if self.keep else {}
        for kind, instead in (kinds | {"ema": training.averages.by_name}).items():
            weights = whole_weights(training.model, instead)
            if first and self.keep:
                with durable(self.folder / f"{mark.stem}_{kind}_model.pt") as file:
                    torch.save(recipe.layout(weights, kind), file)
        if first:
            recipe.export(self.folder.parent, weights, samples)
        if first and self.keep:
            with durable(mark) as file:
                torch.save({"iteration": step, "samples": samples}, file)
            with durable(self.folder / LATEST) as file:
                file.write_text(f"{mark.name}\n")
            for old in self._complete()[: -self.keep]:
                remove(old)
        ranks.barrier()

    def _save_state(self, training: Training, mark: Path) -> None:
        temporary = self.folder / f".{mark.stem}_state"
        writer = dcp.FileSystemWriter(temporary, sync_files=True)
        with alone() as no_dist:
            dcp.save(training.state(), storage_writer=writer, no_dist=no_dist)
        if ranks.rank() == 0:
            sync(temporary)
            temporary.replace(state_of(mark))
            sync(self.folder)

    def load(self, training: Training) -> tuple[int, int]:
        """Restores the newest checkpoint; returns its steps and samples, (0, 0) if there is none.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        mark = self.latest
        if mark is None:
            return 0, 0
        state = training.state()
        try:
            at = torch.load(mark, weights_only=True)
            reader = dcp.FileSystemReader(state_of(mark))
            with alone() as no_dist:
                dcp.load(state, storage_reader=reader, no_dist=no_dist)
        except (
            OSError,
            RuntimeError,
            ValueError,
            pickle.UnpicklingError,
            dcp.api.CheckpointException,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{state_of(mark)}: cannot be resumed from ({reason}); write the name of an older iter_N.pt into "
                f"{self.folder / LATEST}, or start a new run"
            ) from error
        set_model_state_dict(training.model, state["model"])
        set_optimizer_state_dict(training.model, training.optimiser, state["optimiser"])
        return at["iteration"], at["samples"]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("iter_*.pt") if p.stem[5:].isdigit())

    def _remove_incomplete(self) -> None:
        """What a kill left: temporary names, and parts of a checkpoint without its mark."""
        complete = {mark.stem for mark in self._complete()}
        for path in self.folder.iterdir():
            part = re.match(r"iter_\d+", path.name)
            if path.name.startswith(".") or (part and part[0] not in complete):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """True without a process group, which is nothing to be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield not dist.is_initialized()


def state_of(mark: Path) -> Path:
    return mark.with_name(f"{mark.stem}_state")


def remove(mark: Path) -> None:
    """The mark first: what is left without it counts for nothing."""
    mark.unlink()
    for kind in ("reg", "ema"):
        mark.with_name(f"{mark.stem}_{kind}_model.pt").unlink(missing_ok=True)
    shutil.rmtree(state_of(mark))
