# SPDX-License-Identifier: Apache-2.0
"""A network call recorded as a CUDA graph, so that launching its kernels costs the CPU nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError


class GraphedCall:
    """Wraps ``function(**tensors)``: records one graph per set of input shapes and replays it afterwards.

    Keyword arguments that are not tensors are constants of the graph. The result is a fresh copy.
    """

    def __init__(self, function: Callable[..., Tensor], warmups: int = 2) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("CUDA graphs need a CUDA device: leave the option off")
        self.function = function
        self.warmups = warmups
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Any], Tensor]] = {}

    def __call__(self, x: Tensor, **inputs: Any) -> Tensor:
        inputs = {"x": x, **inputs}
        key = tuple(
            (name, (value.shape, value.dtype) if isinstance(value, Tensor) else value)
            for name, value in inputs.items()
        )
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs)
        graph, static, output = self._recorded[key]
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                static[name].copy_(value)
        graph.replay()
        return output.clone()

    @torch.no_grad()
    def _record(self, inputs: dict[str, Any]) -> tuple[torch.cuda.CUDAGraph, dict[str, Any], Tensor]:
        static = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # first calls choose kernels and build tables, which may not be recorded
            for _ in range(self.warmups):
                self.function(**static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(**static)
        return graph, static, output
