# SPDX-License-Identifier: Apache-2.0
"""The few calls of the CUDA runtime that an engine without torch needs, through cuda-bindings (a light wheel)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

MEMORY_IS_OUT = "cudaErrorMemoryAllocation"


class Cuda:
    """One stream, and memory on both sides of it.

    Raises:
        EngineError: cuda-bindings is not installed, or a call failed.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError(
                f"cuda-bindings cannot be imported: {error}; pip install cuda-bindings"
            ) from error
        self._runtime: Any = runtime
        self.stream = int(self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            remedy = "; close other programs on the GPU" if status.name == MEMORY_IS_OUT else ""
            raise EngineError(f"{name} failed: {status.name}{remedy}")
        return results[0] if results else None

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        """Page-locked memory of the host, which the device reads and writes at full speed; lives until :meth:`unpin`."""
        size = int(np.prod(shape)) * dtype.itemsize
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        return np.frombuffer(memoryview((ctypes.c_byte * size).from_address(address)), dtype).reshape(shape)

    def unpin(self, array: NDArray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def upload(self, source: NDArray, target: int) -> None:
        """Begins to copy pinned memory to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, self.stream)

    def download(self, source: int, target: NDArray) -> None:
        """Begins to copy device memory to pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Until all that was begun has ended; the GIL is free meanwhile."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Records what ``enqueue`` puts on the stream, without running it; the result runs it with one call.

        Raises:
            EngineError: something on the way cannot be recorded.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return lambda: self._call("cudaGraphLaunch", ready, self.stream)

    def close(self) -> None:
        self._call("cudaStreamDestroy", self.stream)
