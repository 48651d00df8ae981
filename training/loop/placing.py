# SPDX-License-Identifier: Apache-2.0
"""Puts a recipe's model on the ranks: alone, replicated (DDP) or sharded block by block (FSDP2), and gathers it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lidargen_ros.errors import ConfigError

from ..recipe import Experiment, Recipe
from . import ranks


class Root(nn.Module):
    """Whatever uses weights runs inside this module's call, so that DDP and FSDP see it, methods of the model included."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def place(model: nn.Module, recipe: Recipe, experiment: Experiment, device: torch.device) -> nn.Module:
    """The root to call instead of the model, whose own parameters become float32 and, for ``fsdp``, sharded.

    Raises:
        ConfigError: ``shard_group`` does not divide the ranks.
    """
    blocks = recipe.shard_blocks(model)
    if experiment.checkpoint_activations:
        for block in blocks:  # inside the hooks of FSDP, which must not run twice
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if experiment.parallel == "fsdp":
        half = torch.bfloat16 if experiment.precision == "bf16" else None
        shard = partial(
            fully_shard,
            mesh=mesh(experiment.shard_group, device),
            mp_policy=MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False),
            # the root too: weights that stayed whole after a validation would miss the next step's update
            reshard_after_forward=True,
        )
        for block in blocks:
            shard(in_float32(block))  # at once, so that never more than one block is whole in float32
        return shard(Root(in_float32(model)))
    root = Root(in_float32(model).to(device))
    if ranks.count() == 1:
        return root
    return DistributedDataParallel(root, gradient_as_bucket_view=True)


def mesh(group: int | None, device: torch.device) -> DeviceMesh:
    """All ranks shard together, or (hybrid) inside groups of ``group`` ranks that replicate one another."""
    count = ranks.count()
    if group is None or group == count:
        return init_device_mesh(device.type, (count,))
    if group < 1 or count % group:
        raise ConfigError(f"shard_group is {group}, which does not divide {count} ranks; use a divisor")
    return init_device_mesh(device.type, (count // group, group), mesh_dim_names=("replicate", "shard"))


def in_float32(module: nn.Module) -> nn.Module:
    """Parameters to float32; buffers (tables rounded on purpose, float64 tables) stay as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    return module


def whole_weights(model: nn.Module, instead: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """All weights and buffers on the CPU, gathered one by one; on rank 0, empty elsewhere. ``instead`` replaces by name."""
    weights = {}
    for name, value in model.state_dict().items():
        value = value if instead is None else instead.get(name, value)
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if ranks.rank() == 0:
            weights[name] = whole.detach().cpu()
    return weights
