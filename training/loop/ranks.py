# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: alone, or started by ``torchrun``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lidargen_ros.errors import ConfigError

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_device(wanted: str = "auto") -> torch.device:
    """``auto``: a GPU if there is one; under ``torchrun`` each process of a machine takes its own."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {wanted}: no CUDA GPU found; use device=cpu")
    if device.index is None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} found); "
                "use a smaller --nproc_per_node"
            )
        device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_group(device: torch.device, needed: bool = False) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started; with ``needed`` a process alone forms a group of one (FSDP wants one)."""
    together = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if not (together or needed) or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if together:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        # Threads of gloo take the interpreter's lock to drop the tensors of the last exchange; the destructor of the group
        # waits for these threads while it holds that lock, and a process in some forty would never end.
        time.sleep(0.1)
        dist.destroy_process_group()


def average(values: Tensor) -> Tensor:
    """Mean over ranks, outside autograd; the values themselves when alone."""
    if count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / count()


def largest(values: list[float]) -> list[float]:
    """Element-wise maximum over ranks, by the CPU: what one rank alone knows (a signal, the clock) becomes common knowledge."""
    if count() == 1:
        return values
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.tolist()


def shared(value: T) -> T:
    """What rank 0 passed, on every rank."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def barrier() -> None:
    if dist.is_initialized():
        largest([0.0])
