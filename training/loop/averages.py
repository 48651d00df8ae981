# SPDX-License-Identifier: Apache-2.0
"""Moving averages of the weights, kept where the weights are (each rank its shard), in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that lies on this rank; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def update_averages(averages: Sequence[Tensor], parameters: Sequence[Tensor], beta: float) -> None:
    """``average <- beta average + (1 - beta) parameter``, in float32, in place."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_add_(
        averages, [p.to(a.dtype) for p, a in zip(parameters, averages, strict=True)], alpha=1 - beta
    )


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the running statistics of batch norms, which belong to the weights that made them; no other buffers."""
    statistics = {
        f"{name}.{buffer}": value.detach()
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer, value in (("running_mean", module.running_mean), ("running_var", module.running_var))
        if value is not None
    }
    return {name: p.detach() for name, p in model.named_parameters()} | statistics


class Averages:
    """Averages of a model's weights, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = {name: t.float().clone() for name, t in averaged_tensors(model).items()}

    def update(self, model: nn.Module, beta: float) -> None:
        tensors = averaged_tensors(model).values()
        update_averages([local(a) for a in self.by_name.values()], [local(t) for t in tensors], beta)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the averages. In place and tensor by tensor: sharded weights must keep their memory."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for average, tensor in zip(self.by_name.values(), averaged_tensors(model).values(), strict=True):
            mine, theirs = local(average), local(tensor)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
