# SPDX-License-Identifier: Apache-2.0
"""Are two graphs equal in what they compute? Outputs are compared by ``|a - b| / |b|`` (relative L2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.precision import graph_precision
from lidargen_ros.cameras.align import area_weights
from lidargen_ros.errors import EngineError

if TYPE_CHECKING:  # building engines compares graphs without torch
    from export.graphs import Graph

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}
Arrays = dict[str, NDArray]


def relative_error(found: NDArray, expected: NDArray) -> float:
    """``|found - expected| / |expected|``; not finite where ``found`` is not, but for NaN that both have (points of rays
    without a return)."""
    a, b = (np.asarray(v, np.float64) for v in (found, expected))
    neither = np.isnan(a) & np.isnan(b)
    a, b = np.where(neither, 0, a), np.where(neither, 0, b)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))


def worst_error(found: Mapping[str, NDArray], expected: Mapping[str, NDArray]) -> float:
    """Largest relative error over the outputs; NaN where one is."""
    return float(np.max([relative_error(found[name], expected[name]) for name in expected]))


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


def compare(model: Path | ModelProto, graph: Graph) -> float:
    """Largest relative error of an exported graph against its torch module, on the graph's inputs.

    bfloat16 is compared in float32 on both sides, with the weights rounded (``in_float32``).
    """
    import torch

    if isinstance(model, Path):
        model = onnx.load(model)
    module = graph.module
    if graph_precision(model) == "bf16":
        model, module = in_float32(model), copy.deepcopy(module).float()
    with torch.no_grad():
        results = module(*graph.inputs.values())
    expected = dict(zip(graph.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    found = run_graph(model, {name: value.numpy() for name, value in graph.inputs.items()})
    return worst_error(found, {name: value.float().numpy() for name, value in expected.items()})


def run_chain(models: Sequence[Path | ModelProto], feeds: Mapping[str, NDArray]) -> Arrays:
    """Runs graphs one after another; an output is the input of the same name of those that follow."""
    values: Arrays = dict(feeds)
    for model in models:
        values |= run_graph(model, values)
    return values


def random_inputs(models: Sequence[ModelProto], free: Mapping[str, int], seed: int = 0) -> Arrays:
    """Values for the inputs that no graph of the chain computes, see ``random_value``."""
    rng = np.random.default_rng(seed)
    computed = {o.name for m in models for o in m.graph.output}
    values: Arrays = {}
    for value in (i for m in models for i in m.graph.input):
        if value.name in computed or value.name in values:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or free[d.dim_param] for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values[value.name] = random_value(value.name, shape, dtype, rng)
    return values


def random_value(name: str, shape: Sequence[int], dtype: np.dtype, rng: np.random.Generator) -> NDArray:
    """A value for an input: bytes over their whole range, whole numbers from 0 on, floats in 0..1; weights of pixels are real
    ones, and limits rise."""
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    if np.issubdtype(dtype, np.integer):
        return np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    if name in ("row_weights", "column_weights"):
        return area_weights(shape[1], shape[0])
    random = rng.random(shape, np.float32)
    if name == "limits":
        random.sort()
    return random.astype(dtype)


def in_float32(model: ModelProto) -> ModelProto:
    """A bfloat16 graph with every bfloat16 made float32, because ONNX Runtime's CPU has no bfloat16.

    Weights keep their bfloat16 values; what is left out is the rounding after every operator.
    """
    model = ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    attributes = [a for node in graph.node for a in node.attribute]
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.type == onnx.AttributeProto.TENSOR)):
        if tensor.data_type == TensorProto.BFLOAT16:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    return model
