# SPDX-License-Identifier: Apache-2.0
"""Which type a graph computes in, and the same graph in half precision.

Graphs are strongly typed: a runtime computes in the types that stand in them. What must stay float32 in a half-precision
graph is decided here once, by position: everything before the first matrix product (pixel positions, noise levels) and
from the last one on (the head that gives metres: half precision of a range code is 0.2 m at 60 m).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lidargen_ros.errors import ConfigError

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
BF16_OPSET = 22  # the first in which convolutions take bfloat16
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}


def graph_precision(model: ModelProto) -> str:
    """``fp32``, ``fp16`` or ``bf16``: what its matrix products compute in; fp32 where it has none."""
    types = element_types(model)
    found = {types.get(n.output[0]) for n in model.graph.node if n.op_type in PRODUCTS}
    return next((name for name in ("bf16", "fp16") if TYPES[name] in found), "fp32")


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {w.name: w.data_type for w in graph.initializer}


def to_half(model: ModelProto, precision: str, features: Collection[str] = ()) -> ModelProto:
    """The same graph with the inner part in ``fp16`` or ``bf16``; inputs and outputs keep their types.

    Args:
        features: outputs that lead to matrix products in another graph (``features_between``).

    Raises:
        ConfigError: the graph is not in fp32, or a weight does not fit into the type.
    """
    found = graph_precision(model)
    if found != "fp32":
        raise ConfigError(
            f"graph {model.graph.name} is in {found}, only fp32 can be made {precision}; export it anew"
        )
    model = restored_weights(model)
    if precision == "bf16" and model.opset_import[0].version < BF16_OPSET:
        model = onnx.version_converter.convert_version(model, BF16_OPSET)
    graph, types = model.graph, element_types(model)
    inner = inner_nodes(list(graph.node), features)
    weights = {w.name: w for w in graph.initializer}
    made: dict[str, NodeProto | TensorProto] = {}  # half-precision twin -> the cast or weight that is it
    nodes = []

    def half(name: str) -> str:
        """The half-precision twin of a float32 tensor, made when first asked for."""
        twin = f"{name}.{precision}"
        if twin not in made:
            if name in weights:
                made[twin] = half_weight(weights[name], twin, precision)
            else:
                made[twin] = helper.make_node("Cast", [name], [twin], f"{twin}.cast", to=TYPES[precision])
                nodes.append(made[twin])
        return twin

    for node in graph.node:
        if node.output[0] not in inner:
            nodes.append(node)
            continue
        schema = onnx.defs.get_schema(node.op_type, model.opset_import[0].version)
        for i, name in enumerate(node.input):
            if name and types[name] == TensorProto.FLOAT and takes_half(schema, i, precision):
                node.input[i] = half(name)
        cast = next((a for a in node.attribute if node.op_type == "Cast" and a.name == "to"), None)
        if cast is not None and cast.i == TensorProto.FLOAT:
            cast.i = TYPES[precision]
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types[name] == TensorProto.FLOAT:
                node.output[i] = twin = f"{name}.{precision}"
                made[twin] = node
                # Whoever reads it outside gets it back in float32; casts that nobody reads are dropped below.
                nodes.append(helper.make_node("Cast", [twin], [name], f"{name}.back", to=TensorProto.FLOAT))
    graph.initializer.extend(w for w in made.values() if isinstance(w, TensorProto))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    drop_unread(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def features_between(models: Sequence[ModelProto]) -> set[str]:
    """Tensors of a chain of graphs that go from one into another which has matrix products."""
    return {
        value.name
        for model in models
        if any(node.op_type in PRODUCTS for node in model.graph.node)
        for value in model.graph.input
    }


def inner_nodes(nodes: list[NodeProto], features: Collection[str]) -> set[str]:
    """First outputs of the nodes between matrix products: they are one or follow one, and one follows them."""
    after: set[str] = set()  # tensors that a product leads to
    for node in nodes:
        if node.op_type in PRODUCTS or after.intersection(node.input):
            after.update(node.output)
    before = set(features)  # tensors that lead to a product
    inner = set()
    for node in reversed(nodes):
        leads = bool(before.intersection(node.output))
        if leads and after.intersection(node.output):
            inner.add(node.output[0])
        if leads or node.op_type in PRODUCTS:
            before.update(node.input)
    return inner


def takes_half(schema: onnx.defs.OpSchema, index: int, precision: str) -> bool:
    """Whether an operator's input may have the type (the scales of Resize may not, for example)."""
    wanted = schema.inputs[min(index, len(schema.inputs) - 1)]
    return {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision] in wanted.types


def half_weight(weight: TensorProto, name: str, precision: str) -> TensorProto:
    array = numpy_helper.to_array(weight)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is named below
        cast = array.astype(NUMPY[precision])
    if not np.isfinite(cast.astype(np.float32)).all():
        raise ConfigError(f"weight {weight.name} does not fit into {precision}; keep the graph in fp32")
    return numpy_helper.from_array(cast, name)


def restored_weights(model: ModelProto) -> ModelProto:
    """A copy in which weights that were only stored as float16 (weight, then Cast) are float32 weights again."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    stored = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT16}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]
    for cast in casts:
        array = numpy_helper.to_array(stored[cast.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, cast.output[0]))
        graph.node.remove(cast)
    drop_unread(model)
    return model


def drop_unread(model: ModelProto) -> None:
    """Removes nodes and weights that no output depends on, in place."""
    graph = model.graph
    read = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    weights = [w for w in graph.initializer if w.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
