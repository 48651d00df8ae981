# SPDX-License-Identifier: Apache-2.0
"""Weights kept once: the graphs of a bundle read theirs out of the safetensors file that the torch engine loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

SHARED_ABOVE = 256  # bytes; shape constants and the like stay in the graph


def share_weights(graphs: list[Path], weights: Path) -> int:
    """Replaces initialisers that ``weights`` holds as well, byte for byte, by references; returns the bytes saved.

    The graphs must lie beside ``weights``. ONNX lets external data lie anywhere in any file, and safetensors stores
    plain arrays: a reference is an offset.
    """
    stored = tensor_places(weights)
    saved = 0
    for path in graphs:
        model = onnx.load(path)
        turned = []
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            name = tensor.name
            if array.nbytes >= SHARED_ABOVE and array.ndim == 2 and array.tobytes() not in stored:
                # Exporters turn the matrices of linear layers; the runtime turns them back when it loads the graph.
                array, name = np.ascontiguousarray(array.T), f"{name}.turned"
            offset = stored.get(array.tobytes())
            if array.nbytes < SHARED_ABOVE or offset is None:
                continue
            if name != tensor.name:
                turned.append(helper.make_node("Transpose", [name], [tensor.name], perm=[1, 0]))
            tensor.CopyFrom(numpy_helper.from_array(array, name))
            set_external_data(tensor, weights.name, offset=offset, length=array.nbytes)
            tensor.ClearField("raw_data")
            saved += array.nbytes
        nodes = [*turned, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, path)
        onnx.checker.check_model(path, full_check=True)
    return saved


def tensor_places(weights: Path) -> dict[bytes, int]:
    """Contents of every tensor of a safetensors file -> where they begin in it."""
    content = weights.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return {content[begin + first : begin + last]: begin + first for first, last in spans}
