# SPDX-License-Identifier: Apache-2.0
"""PyTorch: graphs as modules, run as they are, through ``torch.compile`` or as an AOTInductor package.

On a GPU the whole chain of a frame is recorded once as a CUDA graph and replayed: launching its kernels then costs the
host nothing. Uploads and downloads go through pinned memory on a stream of the engine's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import EngineError
from .base import Signature, Written, chain_inputs, check_input, check_present, one_line

MODES = ("eager", "compile", "aoti")
WARM_UPS = 3

# Streams that closed engines have left, for the next ones: cuBLAS keeps a workspace for every stream it has ever seen (36 MB
# on an H200), so that a node that is configured again and again would take more and more memory.
_idle_streams: list[torch.cuda.Stream] = []


def take_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no engine uses."""
    index = torch.cuda.current_device() if device.index is None else device.index
    for i, stream in enumerate(_idle_streams):
        if stream.device.index == index:
            return _idle_streams.pop(i)
    return torch.cuda.Stream(index)


@dataclass(frozen=True)
class TorchGraph:
    """A module whose positional arguments and results have the names of ``signature``."""

    module: nn.Module
    signature: Signature


class TorchEngine:
    """Runs torch modules.

    Args:
        graphs: name -> module, on the CPU; they are moved to ``device`` and belong to the engine afterwards.
        mode: ``eager``; ``compile`` (a minute at the first frame); ``aoti`` (the same, kept in ``packages``).
        precision: what the modules compute in, for reports; they were cast by whoever made them.
        cuda_graph: record and replay; None takes it on a GPU.
        packages: folder for compiled AOTInductor packages; needed by ``aoti``.
    """

    def __init__(
        self,
        graphs: Mapping[str, TorchGraph],
        *,
        device: str | None = None,
        mode: str = "eager",
        precision: str = "fp32",
        cuda_graph: bool | None = None,
        packages: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cuda = self.device.type == "cuda"
        if cuda and not torch.cuda.is_available():
            raise EngineError(
                "torch: no CUDA device here; use engine onnxruntime-cpu, or install torch for CUDA"
            )
        if mode not in MODES:
            raise EngineError(f"torch: mode {mode} is unknown; there are {', '.join(MODES)}")
        if mode == "aoti" and packages is None:
            raise EngineError("torch: aoti needs a folder for its packages; give packages=")
        if threads is not None and not cuda:
            torch.set_num_threads(threads)
        self.name = "torch" if mode == "eager" else f"torch-{mode}"
        self.precision, self.mode, self.packages = precision, mode, packages
        self.cuda_graph = cuda if cuda_graph is None else cuda_graph
        with self._reported():
            self._modules = {
                name: graph.module.to(self.device).eval().requires_grad_(False)
                for name, graph in graphs.items()
            }
        self.graphs = {name: graph.signature for name, graph in graphs.items()}
        self._tensors: dict[str, Tensor] = {}
        self._staging: dict[str, tuple[Tensor, torch.cuda.Event]] = {}
        self._callables: dict[Any, Callable[..., Any]] = {}
        self._recorded: dict[Any, Callable[[], tuple[Tensor, ...]]] = {}
        self._stream = take_stream(self.device) if cuda else None
        if cuda:  # for the whole process: shapes are fixed, so convolutions may be chosen by trial
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = precision != "fp32"

    @property
    def memory_bytes(self) -> int:
        """Largest device memory taken so far; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self._stream else 0

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns torch's own errors into one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{self.name} is out of GPU memory: {one_line(error)}; close other programs on the GPU"
            ) from error
        except RuntimeError as error:
            raise EngineError(f"{self.name} failed: {one_line(error)}") from error

    def write(self, tensors: Mapping[str, Written]) -> None:
        for key, value in tensors.items():
            check_input(self.name, self.graphs, key, value)
            with self._reported():
                self._write(key, value)

    def _write(self, key: str, value: Written) -> None:
        parts = [value] if isinstance(value, np.ndarray) else list(value)
        shape = np.shape(value) if isinstance(value, np.ndarray) else (len(parts), *parts[0].shape)
        known = self._tensors.get(key)
        if known is None or known.shape != shape or not known.is_contiguous():  # the latter by a graph
            dtype = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype
            known = self._tensors[key] = torch.empty(shape, dtype=dtype, device=self.device)
        target = known if self._stream is None else self._staging_of(key, known)
        # Copied by numpy: torch would copy with a thread per core, and OpenMP's threads spin for milliseconds afterwards.
        for slot, part in zip(target.view(len(parts), *parts[0].shape), parts, strict=True):
            np.copyto(slot.numpy(), part)
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                known.copy_(target, non_blocking=True)
                self._staging[key][1].record()

    def _staging_of(self, key: str, tensor: Tensor) -> Tensor:
        """Pinned memory of the shape of a tensor, from which nothing is being copied any more."""
        known = self._staging.get(key)
        if known is None or known[0].shape != tensor.shape:
            pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._staging[key] = known = (pinned, torch.cuda.Event())
        known[1].synchronize()
        return known[0]

    def run(self, graphs: Sequence[str], wanted: Sequence[str]) -> None:
        needed = chain_inputs(self.graphs, graphs)
        check_present(self.name, needed, self._tensors)
        inputs = {name: self._tensors[name] for name in needed}
        with self._reported(), torch.no_grad(), torch.cuda.stream(self._stream):
            if self.cuda_graph:
                # Recorded for the shapes and addresses of its inputs; a tensor of another shape is another tensor.
                place = (*graphs, *wanted, *((t.shape, t.data_ptr()) for t in inputs.values()))
                if place not in self._recorded:
                    self._recorded[place] = self._record(graphs, wanted, inputs)
                results = self._recorded[place]()
            else:
                results = self._chain(graphs, wanted, inputs)
        self._tensors.update(zip(wanted, results, strict=True))

    def _chain(
        self, graphs: Sequence[str], wanted: Sequence[str], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        named = dict(inputs)
        for graph in graphs:
            signature = self.graphs[graph]
            given = tuple(named[name] for name in signature.inputs)
            results = self._callable(graph, given)(*given)
            results = results if isinstance(results, (tuple, list)) else (results,)
            named.update(zip(signature.outputs, results, strict=True))
        return tuple(named[name] for name in wanted)

    def _callable(self, graph: str, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
        """What runs a graph: for a package, one made for just these shapes and strides."""
        kind = (graph, *((t.shape, t.stride()) for t in inputs)) if self.mode == "aoti" else (graph,)
        if kind not in self._callables:
            self._callables[kind] = self._built(graph, inputs)
        return self._callables[kind]

    def _built(self, graph: str, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
        module = self._modules[graph]
        if self.mode == "eager":
            return module
        if self.mode == "compile":
            return torch.compile(module, dynamic=False, fullgraph=True)
        from .aoti import load_or_build

        assert self.packages is not None
        return load_or_build(module, inputs, self.packages, graph)

    def _record(
        self, graphs: Sequence[str], wanted: Sequence[str], inputs: Mapping[str, Tensor]
    ) -> Callable[[], tuple[Tensor, ...]]:
        # First calls compile, choose kernels and allocate, which may not be recorded.
        for _ in range(WARM_UPS):
            self._chain(graphs, wanted, inputs)
        torch.cuda.synchronize(self.device)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self._chain(graphs, wanted, inputs)

        def replay() -> tuple[Tensor, ...]:
            recorded.replay()
            return outputs

        return replay

    def read(self, names: Sequence[str]) -> dict[str, NDArray]:
        check_present(self.name, names, self._tensors)
        if self._stream is None:
            return {name: self._tensors[name].numpy().copy() for name in names}
        with self._reported():
            with torch.cuda.stream(self._stream):
                # Pinned blocks come from torch's pool and go back to it when the caller lets the array go.
                found = {
                    name: torch.empty_like(self._tensors[name], device="cpu", pin_memory=True)
                    for name in names
                }
                for name, target in found.items():
                    target.copy_(self._tensors[name], non_blocking=True)
            self._stream.synchronize()
        return {name: target.numpy() for name, target in found.items()}

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        self.wait()
        self._recorded.clear()
        self._callables.clear()
        self._tensors.clear()
        self._staging.clear()
        self._modules.clear()
        if self._stream is not None:
            _idle_streams.append(self._stream)
            self._stream = None
            gc.collect()
            torch.cuda.empty_cache()  # torch would keep what is free now for itself
