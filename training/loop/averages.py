# SPDX-License-Identifier: Apache-2.0
"""Moving averages of the weights, kept where the weights are (each rank its shard), in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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


class Averages:
    """Averages of a model's parameters, by name; buffers are not averaged."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module, beta: float) -> None:
        update_averages(
            [local(a) for a in self.by_name.values()], [local(p.detach()) for p in model.parameters()], beta
        )

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
        for average, parameter in zip(self.by_name.values(), model.parameters(), strict=True):
            mine, theirs = local(average), local(parameter.detach())
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
