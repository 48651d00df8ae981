# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: built engines on one stream, the whole frame one CUDA graph.

All memory is taken at the first frame and kept: every tensor has one place on the device, shared by the graph that
computes it and those that read it, and one in pinned memory of the host if it is written or read. What graphs need between
is taken for the sizes of the frame, not for the largest that they were built for: twelve pictures of 8K would be gigabytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .base import Signature, Spec, Written, chain_inputs, check_input, check_present
from .cuda_memory import Cuda
from .trt_api import TensorRT

log = logging.getLogger(__name__)


class TensorRTEngine:
    """Runs engines that were built for this GPU and runtime (``engines.select.built_engines`` finds them).

    Args:
        graphs: name -> ``.engine`` file.
        api: the runtime that built them.

    Raises:
        EngineError: the runtime refuses an engine, or there is no memory.
    """

    def __init__(
        self, graphs: Mapping[str, Path], api: TensorRT, *, precision: str = "fp32", cuda: Cuda | None = None
    ) -> None:
        self.name, self.precision = api.name, precision
        self._api = api
        self._cuda = Cuda() if cuda is None else cuda
        self._engines = {name: api.load(path) for name, path in graphs.items()}
        own_memory = api.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._contexts = {
            name: engine.create_execution_context(own_memory) for name, engine in self._engines.items()
        }
        if without := [name for name, context in self._contexts.items() if context is None]:
            raise EngineError(f"{self.name}: no memory to run {', '.join(without)}: {api.errors()}")
        self.graphs = {name: self._signature(engine) for name, engine in self._engines.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes = {
            key: np.dtype(dtype)
            for signature in self.graphs.values()
            for key, (dtype, _) in (signature.inputs | signature.outputs).items()
        } | {workspace(name): np.dtype(np.uint8) for name in graphs}
        self._device: dict[str, int] = {}
        self._host: dict[str, NDArray] = {}
        self._uploading: set[str] = set()
        self._recorded: dict[tuple[str, ...], Callable[[], None]] = {}

    def _signature(self, engine: Any) -> Signature:
        inputs: dict[str, Spec] = {}
        outputs: dict[str, Spec] = {}
        for i in range(engine.num_io_tensors):
            key = engine.get_tensor_name(i)
            is_input = engine.get_tensor_mode(key) == self._api.module.TensorIOMode.INPUT
            shape = tuple(n if n >= 0 else "free" for n in engine.get_tensor_shape(key))
            (inputs if is_input else outputs)[key] = (self._api.dtype(engine.get_tensor_dtype(key)), shape)
        return Signature(inputs, outputs)

    def _place(self, key: str, shape: tuple[int, ...]) -> None:
        """Device memory for a tensor of this shape; where it moves, what was recorded is no longer true."""
        if self._shapes.get(key) == shape:
            return
        if key in self._device:
            self._cuda.wait()
            self._cuda.free(self._device.pop(key))
            if key in self._host:
                self._cuda.unpin(self._host.pop(key))
        self._device[key] = self._cuda.allocate(max(1, math.prod(shape)) * self._dtypes[key].itemsize)
        self._shapes[key] = shape
        self._recorded.clear()

    def _pinned(self, key: str) -> NDArray:
        if key not in self._host:
            self._host[key] = self._cuda.pinned(self._shapes[key], self._dtypes[key])
        return self._host[key]

    def write(self, tensors: Mapping[str, Written]) -> None:
        for key, value in tensors.items():
            check_input(self.name, self.graphs, key, value)
            self._place(key, np.shape(value))
            pinned = self._pinned(key)
            if key in self._uploading:  # written twice without a read between: the first is still on its way
                self._cuda.wait()
                self._uploading.clear()
            if isinstance(value, np.ndarray):
                np.copyto(pinned, value)
            else:
                np.stack(value, out=pinned)
            self._cuda.upload(pinned, self._device[key])
            self._uploading.add(key)

    def run(self, graphs: Sequence[str], wanted: Sequence[str]) -> None:
        check_present(self.name, chain_inputs(self.graphs, graphs), self._shapes)
        chain = tuple(graphs)
        if chain not in self._recorded:
            # Shapes become known and kernels are made ready by running once; then the same is recorded.
            for graph in graphs:
                self._bind(graph)
                self._enqueue(graph)
            self._cuda.wait()
            self._recorded[chain] = self._record(chain)
        self._recorded[chain]()

    def _bind(self, graph: str) -> None:
        """Tells a graph where its tensors are, after making room for its outputs."""
        context, signature = self._contexts[graph], self.graphs[graph]
        for key, (_, shape) in signature.inputs.items():
            if "free" in shape and not context.set_input_shape(key, self._shapes[key]):
                raise EngineError(
                    f"{self.name}: {graph} was not built for {key} of {self._shapes[key]}: {self._api.errors()}"
                )
        for key in signature.outputs:
            self._place(key, tuple(context.get_tensor_shape(key)))
        for key in (*signature.inputs, *signature.outputs):
            context.set_tensor_address(key, self._device[key])
        needed = context.update_device_memory_size_for_shapes()
        self._place(workspace(graph), (needed,))
        context.set_device_memory(self._device[workspace(graph)], needed)

    def _enqueue(self, graph: str) -> None:
        if not self._contexts[graph].execute_async_v3(self._cuda.stream):
            raise EngineError(f"{self.name} failed in {graph}: {self._api.errors()}")

    def _record(self, chain: tuple[str, ...]) -> Callable[[], None]:
        def enqueue() -> None:
            for graph in chain:
                self._enqueue(graph)

        try:
            return self._cuda.record(enqueue)
        except EngineError as error:
            log.warning("%s: no CUDA graph of %s (%s); frames cost more launches", self.name, chain, error)
            return enqueue

    def read(self, names: Sequence[str]) -> dict[str, NDArray]:
        check_present(self.name, names, self._shapes)
        for name in names:
            self._cuda.download(self._device[name], self._pinned(name))
        self._cuda.wait()
        self._uploading.clear()
        return {name: self._host[name].copy() for name in names}

    def wait(self) -> None:
        self._cuda.wait()

    def close(self) -> None:
        self._cuda.wait()
        self._recorded.clear()
        self._contexts.clear()
        self._engines.clear()
        for key in [*self._host]:
            self._cuda.unpin(self._host.pop(key))
        for key in [*self._device]:
            self._cuda.free(self._device.pop(key))
        self._cuda.close()


def workspace(graph: str) -> str:
    """Name under which the memory that a graph needs for itself has its place."""
    return f"{graph}: workspace"
