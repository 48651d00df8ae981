# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX behind one small adapter: their Python interfaces are nearly the same.

``tensorrt`` comes with JetPack or from NVIDIA's package index; ``tensorrt-rtx`` is on PyPI and builds for the GPUs it
knows on a machine without any. What differs between them is here and nowhere else.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import EngineError

log = logging.getLogger(__name__)

MODULES = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
}
INSTALL = {
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
    "tensorrt": "it comes with JetPack, or pip install tensorrt-cu13 from NVIDIA's index",
}
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Gpu(NamedTuple):
    """The device that this process would use: compute capability as ``sm_87``, and its marketing name."""

    capability: str
    name: str


def current_gpu() -> Gpu | None:
    """First visible NVIDIA GPU, asked of the driver itself so that no framework is needed; None where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor, name = (
        ctypes.c_int(),
        ctypes.c_int(),
        ctypes.c_int(),
        ctypes.create_string_buffer(256),
    )
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
    )
    if any(call() for call in calls):
        return None
    return Gpu(f"sm_{major.value}{minor.value}", name.value.decode())


@dataclass(frozen=True)
class TensorRT:
    """One of the two runtimes, imported. ``module`` is its Python module, ``logger`` what its objects want."""

    name: str  # a key of MODULES
    module: ModuleType
    logger: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities it can build for without having such a GPU; empty where it builds for its own only."""
        if not hasattr(getattr(self.module, "IBuilderConfig", None), "set_compute_capability"):
            return ()
        return tuple(f"sm_{m[2:]}" for m in self.module.ComputeCapability.__members__ if m.startswith("SM"))

    def dtype(self, kind: Any) -> str:
        """Name of a ``trt.DataType`` as numpy and ONNX say it: float32, float16, bfloat16, uint8, int64, ..."""
        return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(kind.name, kind.name.lower())

    def errors(self) -> str:
        """The runtime's last error messages in one line; reading them empties the memory."""
        messages = list(dict.fromkeys(self.logger.messages))
        self.logger.messages.clear()
        return "; ".join(messages) or "no reason given"

    def load(self, path: Path) -> Any:
        """Deserialises an engine; keep the result alive as long as its contexts.

        Raises:
            EngineError: the file cannot be read, there is no GPU, or the engine is for another runtime, version or GPU.
        """
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read: {error.strerror}; build it: export/build_engine.py"
            ) from error
        if current_gpu() is None:
            raise EngineError(
                f"{path} cannot run here: {self.name} needs an NVIDIA GPU with its driver and finds none; use engine auto"
            )
        self.logger.messages.clear()
        runtime = self.module.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{path} is refused by {self.name} {self.version}: {self.errors()}; build it again: "
                f"python export/build_engine.py BUNDLE --runtime {self.name}"
            )
        return engine


def load_tensorrt(name: str) -> TensorRT:
    """Imports a runtime.

    Raises:
        EngineError: unknown name, or the runtime is not installed or cannot be loaded here.
    """
    if name not in MODULES:
        raise EngineError(f"runtime {name} is unknown; there are {', '.join(MODULES)}")
    reasons = []
    for module_name in MODULES[name]:
        try:
            module = importlib.import_module(module_name)
        except (ImportError, OSError) as error:
            reasons.append(" ".join(str(error).split()))
            continue
        return TensorRT(name, module, make_logger(module))
    raise EngineError(f"{name} cannot be imported: {'; '.join(reasons)}; {INSTALL[name]}")


def make_logger(module: ModuleType) -> Any:
    """A logger of the runtime's own class that forwards to ``logging`` and remembers the last errors."""
    severity = module.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=4)

        def log(self, level: Any, message: str) -> None:
            message = " ".join(message.split())
            if level in errors:
                # Whoever meets the failure raises it as one error; logged as well it would be said twice.
                self.messages.append(message[:300])
            log.log(logging.INFO if level == severity.WARNING else logging.DEBUG, "%s", message)

    return Logger()
