# SPDX-License-Identifier: Apache-2.0
"""Adds the graphs without weights to the bundle of a student: raw pictures to the atlas, maps to points.

    python export/device_graphs.py BUNDLE

The export of a run writes them as well; this is for bundles that were exported before. No other file of the bundle changes,
but for its manifest. Engines on a GPU need them to do without the host; built engines have to be built again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of this checkout, installed or not

import numpy as np
import onnx
import torch

from export.equality import compare, random_value
from export.graphs import Graph, proto, trace
from lidargen_ros.bundle import load_bundle, write_manifest
from lidargen_ros.cameras.align import RAY_FEATURES
from lidargen_ros.errors import BundleError, LidargenError, failed
from lidargen_ros.models.frame_graphs import picture_graphs, points_graph


def device_graphs(
    shape: tuple[int, int], tile: tuple[int, int], ray_features: int = RAY_FEATURES
) -> list[Graph]:
    """Graphs to be, with random inputs of modest size.

    Args:
        shape: (rows, columns) of the sweep.
        tile: (height, width) of a view in the atlas; number and size of pictures stay free.
    """
    found = picture_graphs(tile=tile) | {"points": points_graph(shape, ray_features)}
    rng = np.random.default_rng(0)
    height, width = (2 * side for side in tile)
    sizes = {
        "views": 2, "channels": 3, "height": height, "width": width, "half_height": tile[0], "half_width": tile[1],
    }  # fmt: skip
    graphs = []
    for name, graph in found.items():
        inputs, free = {}, {}
        for key, (dtype, dims) in graph.signature.inputs.items():
            sides = [sizes[n] if isinstance(n, str) else n for n in dims]
            inputs[key] = torch.from_numpy(random_value(key, sides, np.dtype(dtype), rng))
            if names := {axis: n for axis, n in enumerate(dims) if isinstance(n, str)}:
                free[key] = names
        graphs.append(Graph(name, graph.module, inputs, tuple(graph.signature.outputs), free))
    return graphs


def export_device_graphs(
    folder: Path, shape: tuple[int, int], tile: tuple[int, int], ray_features: int = RAY_FEATURES
) -> dict[str, dict[str, float]]:
    """Writes ``yuv422.onnx``, ``nv12.onnx``, ``bayer.onnx``, ``pixels.onnx`` and ``points.onnx``; returns their errors against
    torch as ``export.student.export_graphs`` does."""
    errors = {}
    for graph in device_graphs(shape, tile, ray_features):
        model = proto(trace(graph))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{graph.name}.onnx")
        errors[graph.name] = {"random": compare(model, graph)}
    return errors


def add_device_graphs(bundle: str | Path) -> dict[str, dict[str, float]]:
    """Writes them into a bundle and its manifest; returns their errors.

    Raises:
        BundleError: no bundle of a student there, or a damaged one.
    """
    loaded = load_bundle(bundle)
    if loaded.manifest["family"] != "student":
        raise BundleError(
            f"bundle {loaded.name} is of family {loaded.manifest['family']}; only students have such graphs"
        )
    tile = tuple(loaded.manifest["preprocessing"]["tile"])
    errors = export_device_graphs(loaded.path, loaded.sensor.shape, tile)
    manifest = {key: value for key, value in loaded.manifest.items() if key not in ("format", "files")}
    write_manifest(loaded.path, manifest, [*loaded.manifest["files"], *(f"{name}.onnx" for name in errors)])
    return errors


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="device_graphs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="folder, or name of a shipped bundle")
    given = parser.parse_args(arguments)
    try:
        for name, kinds in add_device_graphs(given.bundle).items():
            print(f"{name}: relative error {kinds['random']:.1e}")
    except (LidargenError, OSError) as error:
        return failed(error, given.bundle, "copy the bundle to where it can be written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
