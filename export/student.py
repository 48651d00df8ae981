# SPDX-License-Identifier: Apache-2.0
"""A trained student -> the graphs of a bundle (ONNX), with the proof that nothing changed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lidargen_ros.models.student import Condition, Student
from lidargen_ros.models.student_graphs import DecoderGraph, DenoiserGraph, EncoderGraph
from lidargen_ros.models.student_weights import HALF_WEIGHTS_ABOVE, folded
from lidargen_ros.sensors import Sensor

OPSET = 20


def round_weights(module: nn.Module) -> None:
    """Rounds the weights that ``half_weights`` will store to what float16 holds, so that torch and graph are equal."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() >= HALF_WEIGHTS_ABOVE:
                parameter.copy_(parameter.half().float())


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores large float32 weights as float16 followed by a cast, which runtimes fold when they load the graph.

    Arithmetic stays float32; the file halves.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < HALF_WEIGHTS_ABOVE:
            continue
        array = numpy_helper.to_array(weight)
        if np.abs(array).max() > 6e4:
            raise ValueError(f"weight {weight.name} overflows float16; export it in float32")
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # The weights changed type: their old entries among the value descriptions would contradict them.
    return model


def graph_inputs(
    student: Student, sensor: Sensor, tile: tuple[int, int], views: int
) -> dict[str, tuple[Any, ...]]:
    """Random inputs of the size of the real ones, by graph."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, k = *sensor.shape, student.config.hypotheses
    atlas = torch.randint(0, 256, (views * tile[0], tile[1], 3), dtype=torch.uint8, generator=generator)
    grid = torch.rand(k, rows, columns, 2, generator=generator) * 2 - 1
    mask = (torch.rand(k, rows, columns, generator=generator) > 0.3).float()
    rays = torch.randn(student.config.ray_features, rows, columns, generator=generator)
    with torch.no_grad():
        condition = EncoderGraph(student)(atlas, grid, mask, rays)
    x = torch.randn(1, 2, rows, columns, generator=generator)
    return {
        "encoder": (atlas, grid, mask, rays),
        "denoiser": (x, torch.tensor([0.7]), *condition),
        "decoder": (torch.rand(1, rows, columns, generator=generator) * 2 - 1, x[:, 1]),
    }


NAMES = {
    "encoder": (("atlas", "grid", "mask", "rays"), Condition._fields),
    "denoiser": (("x", "t", *Condition._fields), ("code", "logit", "intensity")),
    "decoder": (("code", "logit"), ("range_m", "probability")),
}


def export_graphs(
    student: Student,
    folder: Path,
    sensor: Sensor,
    tile: tuple[int, int],
    *,
    views: int = 3,
    half: bool = True,
) -> dict[str, float]:
    """Writes ``encoder.onnx``, ``denoiser.onnx``, ``decoder.onnx`` and returns the largest relative L2 error of each
    in ONNX Runtime against torch.

    The rows of the atlas (the number of cameras) stay free; everything else is fixed, as engines like it.
    """
    student = folded(student)
    if half:
        round_weights(student)
    inputs = graph_inputs(student, sensor, tile, views)
    modules = {
        "encoder": EncoderGraph(student),
        "denoiser": DenoiserGraph(student),
        "decoder": DecoderGraph(sensor.min_range_m, sensor.max_range_m),
    }
    errors = {}
    for name, module in modules.items():
        path = folder / f"{name}.onnx"
        dynamic = {"atlas": {0: torch.export.Dim("atlas_height", min=2)}} if name == "encoder" else None
        shapes = tuple(dynamic.get(n) if dynamic else None for n in NAMES[name][0]) if dynamic else None
        program = torch.onnx.export(
            module.eval(), inputs[name], None, input_names=NAMES[name][0], output_names=NAMES[name][1],
            dynamic_shapes=shapes, opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
        assert program is not None
        model = program.model_proto
        # Where in the sources a node came from is of no use to a runtime and holds paths of this machine.
        for node in model.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        del model.graph.metadata_props[:], model.metadata_props[:], model.graph.value_info[:]
        if half:
            model = half_weights(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        errors[name] = relative_error(path, module, inputs[name], NAMES[name][0])
    return errors


def relative_error(path: Path, module: nn.Module, inputs: tuple[Any, ...], names: tuple[str, ...]) -> float:
    """Largest ``|onnx - torch| / |torch|`` over the outputs."""
    with torch.no_grad():
        expected = module(*inputs)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})
    return max(
        float(np.linalg.norm(a - b.numpy()) / max(np.linalg.norm(b.numpy()), 1e-12))
        for a, b in zip(found, expected, strict=True)
    )
