# SPDX-License-Identifier: Apache-2.0
"""Makes the bundle ``constant`` from ``baseline.npz`` of a training run: the ladder's first rung, which learns nothing.

    python tools/make_constant_bundle.py runs/.../baseline.npz

It has the graphs of a student, but answers with one range map whatever the pictures show: the per-ray median over procedural
training scenes. It lets the whole chain run without a trained model, and says what any model has to beat.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.device_graphs import export_device_graphs
from lidargen_ros.bundle import SHIPPED, write_manifest
from lidargen_ros.cameras.align import RAY_FEATURES
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.generator import FEATURES
from lidargen_ros.sensors import Sensor, load_sensor

TILE = (352, 640)
F32, U8 = TensorProto.FLOAT, TensorProto.UINT8
CARD = """# constant: the best constant range map

No network: the per-ray median range over 256 procedural (synthetic) scenes, and a return wherever most of them returned.
It ignores the pictures. Use it to try the chain of node, recorder and report, and as the first rung of every comparison;
never as a sensor.
"""


def value(name: str, shape: tuple[int | str, ...], kind: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: NDArray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def save(path: Path, nodes: list, inputs: list, outputs: list) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_graphs(folder: Path, sensor: Sensor, range_m: NDArray, returned: NDArray) -> None:
    """The three graphs of a student; the map is kept to the centimetre."""
    rows, columns = sensor.shape
    one = np.zeros((1, 1, 1, 1), np.float32)
    save(
        folder / "encoder.onnx",
        [constant(name, one) for name in FEATURES],
        [
            value("atlas", ("atlas_height", TILE[1], 3), U8),
            value("grid", (1, rows, columns, 2)),
            value("mask", (1, rows, columns)),
            value("rays", (RAY_FEATURES, rows, columns)),
        ],
        [value(name, (1, 1, 1, 1)) for name in FEATURES],
    )
    signed = np.where(returned, range_m, -range_m)[None]
    save(
        folder / "denoiser.onnx",
        [
            constant("signed", (np.round(signed * 100) / 100).astype(np.float32)),
            constant("sharpness", np.float32(10)),
            constant("grey", np.full((1, 1, 1), 0.2, np.float32)),
            constant("shape", np.array([1, rows, columns])),
            helper.make_node("Abs", ["signed"], ["code"]),
            helper.make_node("Sign", ["signed"], ["sign"]),
            helper.make_node("Mul", ["sign", "sharpness"], ["logit"]),
            helper.make_node("Expand", ["grey", "shape"], ["intensity"]),
        ],
        [
            value("x", (1, 2, rows, columns)),
            value("t", (1,)),
            *(value(name, (1, 1, 1, 1)) for name in FEATURES),
        ],
        [value(name, (1, rows, columns)) for name in ("code", "logit", "intensity")],
    )
    save(
        folder / "decoder.onnx",
        [
            constant("axis", np.array([0])),
            helper.make_node("Squeeze", ["code", "axis"], ["range_m"]),
            helper.make_node("Squeeze", ["logit", "axis"], ["flat"]),
            helper.make_node("Sigmoid", ["flat"], ["probability"]),
        ],
        [value("code", (1, rows, columns)), value("logit", (1, rows, columns))],
        [value("range_m", (rows, columns)), value("probability", (rows, columns))],
    )


def smooth(range_m: NDArray) -> NDArray:
    """Medians of 256 scenes still flicker from ray to ray: average the inverse range over 9 columns of the circle."""
    inverse = 1 / np.maximum(range_m, 0.5)
    wide = np.concatenate([inverse[:, -4:], inverse, inverse[:, :4]], 1)
    return 1 / np.mean([wide[:, i : i + inverse.shape[1]] for i in range(9)], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED / "constant")
    arguments = parser.parse_args()
    stored = np.load(arguments.baseline)
    sensor = load_sensor("pandar128")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_graphs(out, sensor, smooth(stored["range_cm"] / 100.0), stored["returns"])
    (out / "README.md").write_text(CARD)
    (out / "metrics.json").write_text(
        json.dumps({"trained": False, "scenes": 256, "data": "synthetic"}) + "\n"
    )
    manifest = {
        "name": "constant",
        "family": "student",
        "version": "1",
        "description": "best constant range map of synthetic scenes; ignores the pictures",
        "precision": "fp32",
        "licence": "Apache-2.0",
        "sensor": sensor.to_dict(),
        "rig": load_rig("published").to_dict(),
        "preprocessing": {"tile": list(TILE), "hypotheses": [1000.0], "lidar_height_m": 1.9},
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    device = [f"{name}.onnx" for name in export_device_graphs(out, sensor.shape, TILE)]
    files = ["encoder.onnx", "denoiser.onnx", "decoder.onnx", *device, "README.md", "metrics.json"]
    write_manifest(out, manifest, files)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
