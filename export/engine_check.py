# SPDX-License-Identifier: Apache-2.0
"""What can be proved of built engines: everything on the GPU they are for, bindings and file format anywhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export.engine_builder import Range
from export.equality import TOLERANCE, in_float32, random_inputs, run_chain, worst_error
from lidargen_ros.bundle import Bundle
from lidargen_ros.engines.build_record import BuildRecord
from lidargen_ros.engines.tensorrt_engine import TensorRTEngine
from lidargen_ros.engines.trt_api import TensorRT, current_gpu
from lidargen_ros.errors import EngineError

log = logging.getLogger("build_engine")
MOST_CAMERAS = 12
LARGEST_PICTURE = (4320, 7680)  # height, width
CHAINS = (("encoder", "denoiser", "decoder"), ("yuv422",), ("nv12",), ("bayer",), ("pixels",), ("points",))
"""Graphs that are compared, each with what follows from it. Samplers are not: their network is the denoiser's, and the last
bit of a logit may turn a return into none."""
REFUSED = "Serialization"  # in the runtime's message where a plan's header or size is wrong


def check_engines(bundle: Bundle, folder: Path, record: BuildRecord, api: TensorRT) -> list[str]:
    """Checks the engines of a folder against the graphs they were built from; returns what could not be verified here.

    Raises:
        EngineError: an engine is damaged, is refused by its runtime, or has other inputs and outputs than its graph.
    """
    if damage := record.damage(folder):
        raise EngineError(f"{damage}; build it again with --rebuild")
    for name, bindings in record.bindings.items():
        graph = bundle.file(f"{Path(name).stem}.onnx")
        check_bindings(bindings, graph, folder / name)
        check_plan(api, folder / name, bindings)
    gpu = current_gpu()
    if gpu is None:
        return ["numbers of the engines: no NVIDIA GPU here"]
    if gpu.capability != record.gpu:
        return [f"numbers of the engines: built for {record.gpu}, the GPU here is {gpu.capability}"]
    check_numbers(bundle, folder, record, api)
    return []


def check_numbers(bundle: Bundle, folder: Path, record: BuildRecord, api: TensorRT) -> None:
    """Runs the engines on their GPU and compares every output with ONNX Runtime's."""
    free = {name: sizes[1] for name, sizes in free_sizes(bundle).items()}
    error = 0.0
    for names in CHAINS:
        graphs = {name: bundle.file(f"{name}.onnx") for name in names if f"{name}.engine" in record.engines}
        if not graphs:
            continue
        models = [onnx.load(path) for path in graphs.values()]
        inputs = random_inputs(models, free)
        expected = run_chain([in_float32(m) if record.precision == "bf16" else m for m in models], inputs)
        engine = TensorRTEngine(
            {name: folder / f"{name}.engine" for name in graphs}, api, precision=record.precision
        )
        try:
            engine.write(inputs)
            outputs = [o.name for model in models for o in model.graph.output]
            engine.run(tuple(graphs), outputs)
            found = worst_error(engine.read(outputs), {name: expected[name] for name in outputs})
        finally:
            engine.close()
        error = float(np.maximum(error, found))
    if not error <= TOLERANCE[record.precision]:
        raise EngineError(
            f"{folder}: the engines differ from ONNX Runtime by {error:.2g}, more than {TOLERANCE[record.precision]}; "
            "build in another precision, and report it"
        )
    log.info("verified on %s: largest relative error %.1e", record.gpu, error)


def check_bindings(bindings: dict[str, list[Any]], graph: Path, engine: Path) -> None:
    """Names, types and shapes of an engine's inputs and outputs are those of its graph."""
    model = onnx.load(graph, load_external_data=False).graph
    wanted = {v.name: binding("input", v) for v in model.input} | {
        v.name: binding("output", v) for v in model.output
    }
    if wanted != bindings:
        differing = sorted(k for k in wanted.keys() | bindings if wanted.get(k) != bindings.get(k))
        raise EngineError(
            f"{engine}: {', '.join(differing)} differ from {graph.name}; build it again with --rebuild"
        )


def binding(kind: str, value: onnx.ValueInfoProto) -> list[Any]:
    """An ONNX value as ``BuildRecord.bindings`` has it."""
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    return [kind, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape]


def check_plan(api: TensorRT, path: Path, bindings: dict[str, list[Any]]) -> None:
    """All bindings occur in the file, and, where no GPU says more, the runtime accepts its header and size."""
    plan = path.read_bytes()
    if missing := [name for name in bindings if name.encode() not in plan]:
        raise EngineError(f"{path} lacks {', '.join(missing)}; build it again with --rebuild")
    if current_gpu() is not None:
        return
    api.logger.messages.clear()
    engine = api.module.Runtime(api.logger).deserialize_cuda_engine(plan)
    if engine is None and REFUSED in (reason := api.errors()):
        raise EngineError(
            f"{path} is refused by {api.name} {api.version}: {reason}; build it again with --rebuild"
        )


def free_sizes(bundle: Bundle) -> dict[str, Range]:
    """Sizes of the dimensions that graphs leave free: the rows of the atlas (cameras below each other), the batch, number and
    size of the pictures."""
    tile = bundle.manifest.get("preprocessing", {}).get("tile", (1, 1))
    cameras, camera = len(bundle.rig), bundle.rig.views[0].camera
    usual = max(tile[0], camera.height), max(tile[1], camera.width)
    most = max(cameras, MOST_CAMERAS)
    sides = dict(zip(("height", "width"), zip(tile, usual, LARGEST_PICTURE, strict=True), strict=True))
    return {
        "atlas_height": (tile[0], tile[0] * cameras, tile[0] * most),
        "batch": (1, 1, most),
        "views": (1, cameras, most),
        "channels": (1, 3, 4),
        **sides,
        **{f"half_{side}": (low // 2, usual // 2, high // 2) for side, (low, usual, high) in sides.items()},
    }
