# SPDX-License-Identifier: Apache-2.0
"""A torch module -> an ONNX graph, whatever its size: weights need not be in memory while it is traced or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lidargen_ros.models.download import require_space

OPSET = 20
BF16_OPSET = 22  # the first in which every operator used here takes bfloat16
INLINE_BYTES = 1_000_000_000  # weights above this lie beside the graph, whose own format ends at 2 GB
SHARD_BYTES = 2_000_000_000
Source = Callable[[str], Tensor]  # name of a parameter -> its values


@dataclass(frozen=True)
class Graph:
    """A graph to be: ``module(*inputs.values())`` gives ``outputs``.

    Attributes:
        inputs: example values by name; sizes of them are fixed, but for those in ``free``.
        free: input -> axis -> name of a dimension that stays free.
        opset: of the ONNX operators.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    opset: int = OPSET


def trace(graph: Graph, weights: Source | None = None) -> ir.Model:
    """The ONNX graph of a module, optimised, without traces of where it was made.

    Args:
        weights: values of parameters that are fake (``without_weights``), by their name in ``graph.module``; asked for
            when they are written, one at a time.
    """
    dimensions = {name for axes in graph.free.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=2) for name in dimensions}
    shapes = tuple({a: dims[d] for a, d in graph.free.get(name, {}).items()} or None for name in graph.inputs)
    program = torch.onnx.export(
        graph.module.eval(), tuple(graph.inputs.values()), None,
        input_names=list(graph.inputs), output_names=list(graph.outputs),
        dynamic_shapes=shapes if graph.free else None,
        opset_version=graph.opset, dynamo=True, verbose=False, optimize=False,
    )  # fmt: skip
    assert program is not None
    model = program.model
    if weights is not None:
        fill(model, weights)
    onnxscript.optimizer.optimize_ir(model, should_fold=keeps_weights)
    turn_weights(model)
    for item in (model, model.graph, *model.graph):
        item.metadata_props.clear()
        item.doc_string = None
    model.graph.name = graph.name
    return model


def without_weights(module: nn.Module) -> nn.Module:
    """Replaces the parameters and buffers of a module on the meta device by fakes that can be traced together with real
    tensors, in place; returns it."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in module.modules():
            for name, value in part.named_parameters(recurse=False):
                part.register_parameter(
                    name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype), False)
                )
            for name, value in part.named_buffers(recurse=False):
                part.register_buffer(name, torch.empty(value.shape, dtype=value.dtype))
    return module


def fill(model: ir.Model, weights: Source) -> None:
    """Gives fake weights a source that is read when they are written."""
    for name, value in model.graph.initializers.items():
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, FakeTensor):
            value.const_value = lazy(value, lambda name=name, dtype=raw.dtype: weights(name).to(dtype))


def lazy(value: ir.Value, read: Callable[[], Tensor]) -> ir.LazyTensor:
    assert value.dtype is not None and value.shape is not None
    return ir.LazyTensor(
        lambda: TorchTensor(read().contiguous(), name=value.name),
        dtype=value.dtype, shape=ir.Shape(value.shape), name=value.name,
    )  # fmt: skip


def keeps_weights(node: ir.Node) -> bool | None:
    """For the optimiser: constants are folded, but nothing that would load a weight that is not loaded."""
    return False if any(v is not None and is_lazy(v) for v in node.inputs) else None


def is_lazy(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.LazyTensor)


def turn_weights(model: ir.Model) -> None:
    """Transposed weights that are not loaded become weights that are transposed when they are read."""
    for node in list(model.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Transpose" or source is None or not is_lazy(source):
            continue
        axes = node.attributes["perm"].as_ints()
        tensor = source.const_value
        turned = ir.Value(name=f"{source.name}.turned", shape=output.shape, type=ir.TensorType(tensor.dtype))
        turned.const_value = lazy(turned, lambda t=tensor, axes=axes: t.raw().raw.permute(axes))
        model.graph.register_initializer(turned)
        output.replace_all_uses_with(turned)
        model.graph.remove(node, safe=True)
        if not source.uses():
            del model.graph.initializers[source.name]


def save(
    model: ir.Model, path: Path, inline_bytes: int = INLINE_BYTES, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Writes a graph and returns its files; large weights go to shards beside it, one tensor in memory at a time.

    Shards of an earlier export, finished or not, are removed first: they are never written over.
    """
    for old in path.parent.glob(f"{path.stem}-*-of-*{path.suffix}.data"):
        old.unlink()
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size <= inline_bytes:
        ir.save(model, path)
    else:
        require_space(path.parent, {f"{path.name}.data": size})
        ir.save(
            model, path, external_data=f"{path.name}.data", max_shard_size_bytes=shard_bytes, max_workers=1
        )
    onnx.checker.check_model(path, full_check=True)
    written = onnx.load(path, load_external_data=False)
    shards = {ExternalDataInfo(w).location for w in written.graph.initializer if uses_external_data(w)}
    return sorted([path, *(path.parent / shard for shard in shards)])


def proto(model: ir.Model) -> onnx.ModelProto:
    """The graph as an ``onnx.ModelProto``, without types of what lies between its inputs and outputs.

    Runtimes infer them anew; those of the exporter would contradict weights whose type changes.
    """
    found = ir.to_proto(model)
    del found.graph.value_info[:]
    return found
