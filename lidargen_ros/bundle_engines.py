# SPDX-License-Identifier: Apache-2.0
"""Opens an engine on the graphs of a student's bundle."""

from __future__ import annotations

from pathlib import Path

from .bundle import Bundle
from .engines.base import Engine
from .engines.build_record import cache_folder
from .engines.onnxruntime_engine import OnnxRuntimeEngine
from .engines.select import RUNTIMES, TORCH, WEIGHTS, built_engines, choose_engine
from .frame_pipeline import DEVICE_GRAPHS, GRAPHS


def open_engine(bundle: Bundle, wanted: str = "auto", *, threads: int | None = None) -> Engine:
    """The wanted engine, or the best that runs here.

    Args:
        threads: of the host, for engines on the CPU; None takes one per core.

    Raises:
        EngineError: no engine, or not the wanted one, can run here.
        BundleError: the bundle's weights are damaged.
    """
    name = choose_engine(wanted, bundle)
    if name in RUNTIMES:
        from .engines.tensorrt_engine import TensorRTEngine
        from .engines.trt_api import load_tensorrt

        folder, record = built_engines(name, bundle)
        engines = {Path(name).stem: folder / name for name in record.engines}
        return TensorRTEngine(engines, load_tensorrt(name), precision=record.precision)
    if name in TORCH:
        return open_torch(bundle, name, threads)
    precision = str(bundle.manifest.get("precision", "fp32")).partition(" ")[0]
    return OnnxRuntimeEngine(onnx_graphs(bundle, name), name=name, precision=precision, threads=threads)


def onnx_graphs(bundle: Bundle, name: str) -> dict[str, Path]:
    """The graphs that an ONNX Runtime engine loads: on a GPU all that the bundle has, on the CPU the network's, since OpenCV is
    quicker there."""
    device = () if name == "onnxruntime-cpu" else DEVICE_GRAPHS
    there = (graph for graph in device if f"{graph}.onnx" in bundle.manifest["files"])
    return {graph: bundle.file(f"{graph}.onnx") for graph in (*GRAPHS, *there)}


def open_torch(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """A torch engine: half precision and pictures shrunk on a GPU, float32 and no more than the network on a CPU."""
    import torch

    from .engines.torch_engine import TorchEngine
    from .models.frame_graphs import frame_graphs
    from .models.student_weights import read_student

    gpu = torch.cuda.is_available()
    precision = "fp16" if gpu else "fp32"
    graphs = frame_graphs(read_student(bundle.file(WEIGHTS)), bundle.sensor, precision=precision, pixels=gpu)
    return TorchEngine(
        graphs,
        mode=name.removeprefix("torch").removeprefix("-") or "eager",
        precision=precision,
        packages=cache_folder(bundle.name, bundle.digest) / "torch",
        threads=threads,
    )
