# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU (every machine) or through its CUDA and TensorRT providers where they are installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .base import Signature, Spec, Written, check_input, check_present, one_line

PROVIDERS = {
    "onnxruntime-cpu": ["CPUExecutionProvider"],
    "onnxruntime-cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "onnxruntime-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


def missing_providers(name: str) -> str:
    """What this onnxruntime lacks for an engine, with what would help; "" where it lacks nothing."""
    import onnxruntime as ort

    missing = set(PROVIDERS[name]) - set(ort.get_available_providers())
    if not missing:
        return ""
    return f"this onnxruntime has no {', '.join(sorted(missing))}; pip install onnxruntime-gpu"


class OnnxRuntimeEngine:
    """One inference session per graph; tensors stay on the provider's device between them (IO binding).

    Args:
        graphs: name -> ``.onnx`` file.
        name: a key of ``PROVIDERS``.
        threads: worker threads of one run on the CPU; None takes one per core.

    Raises:
        EngineError: the provider is not there, or a graph cannot be loaded.
    """

    def __init__(
        self,
        graphs: Mapping[str, Path],
        *,
        name: str = "onnxruntime-cpu",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        import onnxruntime as ort

        if reason := missing_providers(name):
            raise EngineError(f"{name}: {reason}")
        if name != "onnxruntime-cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN may be there as Python packages only
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin between frames steal the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self.name, self.precision = name, precision
        self._ort = ort
        self._device = "cpu" if name == "onnxruntime-cpu" else "cuda"
        self._sessions: dict[str, Any] = {}
        self.graphs: dict[str, Signature] = {}
        for graph, path in graphs.items():
            try:
                session = ort.InferenceSession(str(path), options, providers=PROVIDERS[name])
            except Exception as error:
                raise EngineError(
                    f"{path} cannot be loaded by {name}: {one_line(error)}; export the bundle again"
                ) from error
            # The runtime only warns where a provider does not start, and computes on the CPU.
            if PROVIDERS[name][0] not in session.get_providers():
                raise EngineError(
                    f"{name}: {PROVIDERS[name][0]} does not start here; it needs the CUDA and cuDNN that onnxruntime "
                    "was built for: pip install 'onnxruntime-gpu[cuda,cudnn]'"
                )
            self._sessions[graph] = session
            self.graphs[graph] = Signature(_specs(session.get_inputs()), _specs(session.get_outputs()))
        self._tensors: dict[str, Any] = {}  # OrtValues on the device

    def write(self, tensors: Mapping[str, Written]) -> None:
        for key, value in tensors.items():
            check_input(self.name, self.graphs, key, value)
            known = self._tensors.get(key)
            if known is not None and tuple(known.shape()) == np.shape(value):
                known.update_inplace(np.ascontiguousarray(value))
            else:
                # On the CPU it would be a view of the caller's array.
                own = np.array(value, order="C")
                self._tensors[key] = self._ort.OrtValue.ortvalue_from_numpy(own, self._device, 0)

    def run(self, graphs: Sequence[str], wanted: Sequence[str]) -> None:
        for graph in graphs:
            signature, session = self.graphs[graph], self._sessions[graph]
            check_present(self.name, signature.inputs, self._tensors)
            binding = session.io_binding()
            for key in signature.inputs:
                binding.bind_ortvalue_input(key, self._tensors[key])
            for key, (_, shape) in signature.outputs.items():
                # What the last frame computed is overwritten: nothing is allocated after the first.
                if key in self._tensors and all(isinstance(n, int) for n in shape):
                    binding.bind_ortvalue_output(key, self._tensors[key])
                else:
                    binding.bind_output(key, self._device)
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                raise EngineError(f"{self.name} failed in {graph}: {one_line(error)}") from error
            self._tensors.update(zip(signature.outputs, binding.get_outputs(), strict=True))

    def read(self, names: Sequence[str]) -> dict[str, NDArray]:
        check_present(self.name, names, self._tensors)
        found = {name: self._tensors[name].numpy() for name in names}
        # On the CPU it is a view of a tensor that the next run overwrites.
        return {name: array.copy() for name, array in found.items()} if self._device == "cpu" else found

    def wait(self) -> None:
        """Nothing to wait for: a run ends when it returns."""

    def close(self) -> None:
        self._tensors.clear()
        self._sessions.clear()


def _specs(values: Sequence[Any]) -> dict[str, Spec]:
    def dtype(kind: str) -> str:
        plain = kind.removeprefix("tensor(").removesuffix(")")
        return _NUMPY_NAMES.get(plain, plain)

    return {
        v.name: (dtype(v.type), tuple(n if isinstance(n, int) else str(n) for n in v.shape)) for v in values
    }
