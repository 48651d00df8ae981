# SPDX-License-Identifier: Apache-2.0
"""The contract between the loop (``training/loop/``) and what is trained: an experiment's settings, and a recipe.

The loop owns ranks, precision of arithmetic, the optimiser's step, averages of weights, checkpoints, logs and signals; a recipe
owns the network, the data, the losses and what people look at. A recipe never asks which rank it runs on.

Training is counted in samples. Sample ``n`` of a run is the same thing, noise included, whatever the number of ranks and
however often the run was interrupted: every random number of a batch is drawn from the experiment's seed and ``n``
(``training/draws.py``). That is all that exact resuming and equal curves on 1 and N ranks rest on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Kind = Literal["reg", "ema"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings that every experiment has; a kind of experiment adds its own in a subclass.

    Everything that ends in ``_every`` counts samples; 0 means never.
    """

    kind: str
    name: str
    batch: int = 32  # samples per optimiser step, over all ranks
    samples: int = 300_000  # length of the run
    max_seconds: float | None = (
        None  # the schedule then ends at whichever comes first; such a run cannot be repeated
    )
    log_every: int = 640
    eval_every: int = 50_000
    save_every: int = 20_000
    pictures_every: int = 50_000
    keep: int = 3  # checkpoints that stay; 0 writes none
    seed: int = 0
    device: str = "auto"
    precision: Literal["bf16", "tf32", "fp32"] = (
        "bf16"  # of the arithmetic; weights and optimiser are float32 always
    )
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # auto: DDP if there are several ranks
    shard_group: int | None = None  # fsdp: shard inside groups of so many ranks, replicate across them
    checkpoint_activations: bool = (
        False  # of the blocks that the recipe names: less memory, one more forward pass
    )
    compile: bool = False
    out: str = "runs"
    tensorboard: bool = True
    wandb: bool = False


@dataclass(frozen=True)
class Position:
    """Where a run stands before a step: steps and samples done, and the share of the schedule done (0 to 1)."""

    step: int
    samples: int
    progress: float


class Recipe(Protocol):
    """What is trained. Made by ``kind(experiment, device)`` on every rank.

    The loop passes ``model`` to every method that uses weights (never keep it: it may be sharded, and may hold averaged weights),
    in train mode and autocast for ``losses``, in eval mode, autocast and ``no_grad`` for ``validate`` and ``pictures``.
    All ranks call all methods at the same time; only ``export`` and ``names`` on rank 0 alone.
    """

    ahead: int  # batches that threads make in advance; 0: ``batch`` runs in the loop, between steps

    def build_model(self) -> nn.Module:
        """The network, weights drawn from the seed or loaded, equal on all ranks; on the CPU where one GPU cannot hold it."""
        ...

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the trainable parameters, which are float32; the loop sets ``lr`` of every group before every step."""
        ...

    def learning_rate(self, at: Position) -> float: ...

    def clip_gradients(self, model: nn.Module) -> Tensor:
        """Clips the gradients in place (and cleans them, where that is the recipe); returns their norm. NaN ends the run."""
        ...

    def ema_beta(self, step: int) -> float:
        """Share of the old average kept after optimiser step ``step`` (from 0); 0 where nothing is averaged."""
        ...

    def batch(self, first: int, count: int) -> Any:
        """Samples ``first`` to ``first + count - 1`` on the device, with all noise that the losses need."""
        ...

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars, means over the batch; ``"loss"`` is minimised, all are logged.

        The loop averages over ranks of equally many samples. A mean over something else than samples (rays that returned) has to
        be divided by ``ranks.average`` of its local count, or 1 and N ranks would differ.
        """
        ...

    def names(self, first: int, count: int) -> list[str]:
        """What people call these samples (clip and frame, or scene seed), for the report of a NaN."""
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures over fixed held-out data; the same on every rank."""
        ...

    def ladder(self) -> dict[str, dict[str, float]]:
        """``validate`` of what a model has to beat (the best constant map ...), by name; computed once a run, may be empty."""
        ...

    def pictures(self, model: nn.Module) -> dict[str, NDArray]:
        """Pictures of fixed held-out frames, uint8 RGB ``[height, width, 3]``, by a name that can be a file's; may be empty."""
        ...

    def shard_blocks(self, model: nn.Module) -> list[nn.Module]:
        """Modules that are sharded (fsdp) and recomputed (``checkpoint_activations``) one by one; calls must go through them."""
        ...

    def layout(self, weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
        """What ``iter_N_{kind}_model.pt`` holds, from all float32 weights and buffers on the CPU by their names in the model."""
        ...

    def export(self, folder: Path, weights: Mapping[str, Tensor], samples: int) -> None:
        """Files of the family beside the checkpoints, from averaged weights on the CPU, after every save; may do nothing."""
        ...
