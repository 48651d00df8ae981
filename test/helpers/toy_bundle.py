# SPDX-License-Identifier: Apache-2.0
"""A bundle that answers in a millisecond: every ray returns from 5 m plus a tenth of the mean of all pictures."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from stub_node import rig

from lidargen_ros.bundle import write_manifest
from lidargen_ros.cameras.align import RAY_FEATURES
from lidargen_ros.generator import FEATURES
from lidargen_ros.sensors import Sensor

TILE = (44, 80)
SENSOR = Sensor("toy", np.linspace(12, -24, 16), columns=90)


def write_bundle(folder: Path, sensor: Sensor = SENSOR) -> Path:
    """The bundle, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = sensor.shape
    f32, shape = TensorProto.FLOAT, (1, rows, columns)

    def value(name, dims, kind=f32):
        return helper.make_tensor_value_info(name, kind, dims)

    def constant(name, array):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))

    def save(name, nodes, inputs, outputs):
        graph = helper.make_graph(nodes, name, inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / f"{name}.onnx")

    features = [value(name, (1, 1, 1, 1)) for name in FEATURES]
    save(
        "encoder",
        [
            helper.make_node("Cast", ["atlas"], ["wide"], to=f32),
            helper.make_node("ReduceMean", ["wide"], ["mean"], keepdims=1),
            constant("four", np.array([1, 1, 1, 1])),
            helper.make_node("Reshape", ["mean", "four"], [FEATURES[0]]),
            *(constant(name, np.zeros((1, 1, 1, 1), np.float32)) for name in FEATURES[1:]),
        ],
        [
            value("atlas", ("atlas_height", TILE[1], 3), TensorProto.UINT8),
            value("grid", (1, rows, columns, 2)),
            value("mask", shape),
            value("rays", (RAY_FEATURES, rows, columns)),
        ],
        features,
    )
    save(
        "denoiser",
        [
            constant("tenth", np.float32(0.1)),
            constant("near", np.full((1, 1, 1), 5, np.float32)),
            constant("ones", np.full(shape, 1, np.float32)),
            constant("three", np.array([1, 1, 1])),
            helper.make_node("Reshape", [FEATURES[0], "three"], ["mean"]),
            helper.make_node("Mul", ["mean", "tenth"], ["more"]),
            helper.make_node("Add", ["near", "more"], ["range"]),
            helper.make_node("Mul", ["range", "ones"], ["code"]),
            helper.make_node("Add", ["ones", "ones"], ["logit"]),
            helper.make_node("Mul", ["ones", "tenth"], ["intensity"]),
        ],
        [value("x", (1, 2, rows, columns)), value("t", (1,)), *features],
        [value(name, shape) for name in ("code", "logit", "intensity")],
    )
    save(
        "decoder",
        [
            constant("axis", np.array([0])),
            helper.make_node("Squeeze", ["code", "axis"], ["range_m"]),
            helper.make_node("Squeeze", ["logit", "axis"], ["flat"]),
            helper.make_node("Sigmoid", ["flat"], ["probability"]),
        ],
        [value("code", shape), value("logit", shape)],
        [value("range_m", (rows, columns)), value("probability", (rows, columns))],
    )
    manifest = {
        "name": "toy",
        "family": "student",
        "version": "1",
        "precision": "fp32",
        "licence": "Apache-2.0",
        "sensor": sensor.to_dict(),
        "rig": rig().scaled(80, 44).to_dict(),
        "preprocessing": {"tile": list(TILE), "hypotheses": [1000.0], "lidar_height_m": 1.9},
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    write_manifest(folder, manifest, ["encoder.onnx", "denoiser.onnx", "decoder.onnx"])
    return folder
