# SPDX-License-Identifier: Apache-2.0
"""Are two graphs equal in what they compute? Outputs are compared by ``|a - b| / |b|`` (relative L2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lidargen_ros.errors import EngineError

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}
Arrays = dict[str, NDArray]


def relative_error(found: NDArray, expected: NDArray) -> float:
    """``|found - expected| / |expected|``; not finite where ``found`` is not."""
    a, b = (np.asarray(v, np.float64) for v in (found, expected))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))


def worst_error(found: Mapping[str, NDArray], expected: Mapping[str, NDArray]) -> float:
    """Largest relative error over the outputs."""
    return max(relative_error(found[name], expected[name]) for name in expected)


def run_graph(model: Path | ModelProto, feeds: Mapping[str, NDArray]) -> Arrays:
    """Runs a graph in ONNX Runtime on the CPU, optimisations that change numbers off.

    Raises:
        EngineError: ONNX Runtime cannot load or run it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        wanted = {i.name for i in session.get_inputs()}
        return dict(
            zip(names, session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True)
        )
    except Exception as error:
        title = model if isinstance(model, Path) else model.graph.name
        raise EngineError(
            f"{title} cannot run in ONNX Runtime: {' '.join(str(error).split())[:300]}; export it again"
        ) from error


def run_chain(models: Sequence[Path | ModelProto], feeds: Mapping[str, NDArray]) -> Arrays:
    """Runs graphs one after another; an output is the input of the same name of those that follow."""
    values: Arrays = dict(feeds)
    for model in models:
        values |= run_graph(model, values)
    return values


def random_inputs(models: Sequence[ModelProto], free: Mapping[str, int], seed: int = 0) -> Arrays:
    """Values for the inputs that no graph of the chain computes: bytes over their whole range, floats in 0..1."""
    rng = np.random.default_rng(seed)
    computed = {o.name for m in models for o in m.graph.output}
    values: Arrays = {}
    for value in (i for m in models for i in m.graph.input):
        if value.name in computed or value.name in values:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or free[d.dim_param] for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        random = rng.integers(0, 256, shape) if dtype == np.uint8 else rng.random(shape, np.float32)
        values[value.name] = random.astype(dtype)
    return values


def in_float32(model: ModelProto) -> ModelProto:
    """A bfloat16 graph as a float32 one that rounds every result to bfloat16, because ONNX Runtime's CPU has no bfloat16.

    That is what hardware does too: multiply and add in float32, round once per operator.
    """
    graph = model.graph
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.input, *graph.output)
    }
    model = ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    del graph.value_info[:]
    for weight in graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            array = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) != TensorProto.BFLOAT16:
                continue
            node.output[i] = wide = f"{name}.wide"
            rounded = f"{name}.rounded"
            nodes.append(helper.make_node("Cast", [wide], [rounded], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return model
