# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU (every machine) or through its CUDA and TensorRT providers where they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .base import Tensors

PROVIDERS = {
    "onnxruntime-cpu": ["CPUExecutionProvider"],
    "onnxruntime-cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "onnxruntime-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
_NUMPY_NAMES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}


class OnnxRuntimeEngine:
    """One ONNX graph in one inference session.

    Args:
        path: the ``.onnx`` file.
        name: a key of ``PROVIDERS``.
        threads: worker threads of one run; None takes one per core.
    """

    def __init__(self, path: Path, *, name: str = "onnxruntime-cpu", threads: int | None = None) -> None:
        import onnxruntime as ort

        missing = set(PROVIDERS[name]) - set(ort.get_available_providers())
        if missing:
            raise EngineError(
                f"{name}: this onnxruntime has no {', '.join(sorted(missing))}; install onnxruntime-gpu"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin between frames steal the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=PROVIDERS[name])
        except Exception as error:
            raise EngineError(
                f"{path} cannot be loaded by {name}: {_one_line(error)}; export the bundle again"
            ) from error
        self.name = name
        self.inputs = {
            i.name: (_NUMPY_NAMES.get(i.type, i.type), tuple(i.shape)) for i in self._session.get_inputs()
        }
        self.outputs = {
            o.name: (_NUMPY_NAMES.get(o.type, o.type), tuple(o.shape)) for o in self._session.get_outputs()
        }

    def run(self, feeds: Mapping[str, Any]) -> Tensors:
        self._check(feeds)
        try:
            results = self._session.run(list(self.outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"{self.name} failed: {_one_line(error)}") from error
        return dict(zip(self.outputs, results, strict=True))

    def _check(self, feeds: Mapping[str, Any]) -> None:
        if feeds.keys() != self.inputs.keys():
            raise EngineError(f"{self.name}: the graph takes {sorted(self.inputs)}, given {sorted(feeds)}")
        for key, (dtype, shape) in self.inputs.items():
            value = feeds[key]
            fits = len(value.shape) == len(shape) and all(
                isinstance(want, str) or want is None or want == got
                for want, got in zip(shape, value.shape, strict=True)
            )
            if not fits or np.dtype(value.dtype).name != dtype:
                raise EngineError(
                    f"{self.name}: input {key} is {value.dtype} {value.shape}, the graph takes {dtype} {shape}"
                )

    def close(self) -> None:
        del self._session


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
