# SPDX-License-Identifier: Apache-2.0
"""Builds the engines of a bundle for one GPU.

    python export/build_engine.py BUNDLE [--runtime tensorrt|tensorrt-rtx] [--gpu sm_89] [--precision fp16] [--verify]

BUNDLE is a folder, or the name of a shipped bundle such as ``nano``. Engines go to
``BUNDLE/engines/<gpu>-<runtime><version>-<precision>/``, or below ``~/.cache/lidargen_ros`` where the bundle cannot be
written. What is up to date is not built again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of this checkout, installed or not

import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError
from rich.logging import RichHandler
from rich.progress import Progress

from export.engine_builder import Built, Range, Target, build
from export.engine_check import check_engines, free_sizes
from export.engine_store import building, engines_root, publish
from export.equality import TOLERANCE, in_float32, random_inputs, run_chain, worst_error
from export.precision import TYPES, features_between, graph_precision, to_half
from lidargen_ros.bundle import Bundle, file_sha256, load_bundle
from lidargen_ros.engines.build_record import BuildRecord, folder_name, graph_files, read_record
from lidargen_ros.engines.trt_api import MODULES, TensorRT, current_gpu, load_tensorrt
from lidargen_ros.errors import ConfigError, EngineError, LidargenError

log = logging.getLogger("build_engine")
PICTURES = ("yuv422", "nv12", "bayer", "pixels")
NETWORK = ("encoder", "denoiser", "sample4", "decoder")
ORDER = (*PICTURES, *NETWORK, "points")  # of a frame: what one computes, the next one reads
LAYERS = ".layers.json"
CONVERTED_WEIGHTS = 1e9  # more would need several copies of the graph in memory


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="build_engine.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="folder, or name of a shipped bundle")
    parser.add_argument("--runtime", choices=tuple(MODULES), help="default: the one that is installed")
    parser.add_argument("--gpu", help="compute capability such as sm_89; default: the GPU of this machine")
    parser.add_argument("--precision", choices=tuple(TYPES), help="of the arithmetic; default: as exported")
    parser.add_argument("--out", type=Path, help="folder for engines instead of BUNDLE/engines")
    parser.add_argument("--verify", action="store_true", help="check the engines, built now or before")
    parser.add_argument(
        "--layers", action="store_true", help="write the layers of every graph beside its engine"
    )
    parser.add_argument("--rebuild", action="store_true", help="build even what is up to date")
    parser.add_argument("--verbose", action="store_true", help="show what the runtime says while it builds")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(show_path=False, show_time=False)],
    )
    log.setLevel(logging.INFO)
    try:
        print(build_bundle(options))
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; no engine was changed", file=sys.stderr)
        return 130
    return 0


def build_bundle(options: argparse.Namespace) -> Path:
    """Builds what is missing or stale, verifies if asked, and returns the folder of the engines."""
    bundle = load_bundle(options.bundle)
    gpu = current_gpu()
    wanted_gpu = options.gpu or (gpu.capability if gpu else None)
    api = choose_runtime(options.runtime, wanted_gpu)
    target_gpu = check_target(api, wanted_gpu)
    graphs = [bundle.file(f"{name}.onnx") for name in ORDER if f"{name}.onnx" in bundle.manifest["files"]]
    exported = bundle_precision(graphs)
    precision = options.precision or exported
    root = options.out or engines_root(bundle)
    folder = root / folder_name(target_gpu, api.name, api.version, precision)
    with building(folder) as temporary:
        reason = "--rebuild" if options.rebuild else stale(folder, bundle, api, target_gpu)
        if options.layers and not reason and not list(folder.glob(f"*{LAYERS}")):
            reason = "no lists of layers yet"
        if reason:
            log.info("building %s: %s", folder, reason)
            target = Target(api, target_gpu, free_sizes(bundle), root / f".{target_gpu}.timing")
            # The others need no more than float32 has: their numbers are bytes and metres.
            network = [graph for graph in graphs if graph.stem in NETWORK]
            error = prepare(network, exported, precision, target.free, temporary)
            built, seconds = build_graphs(graphs, target, temporary)
            write_engines(built, temporary, options.layers)
            BuildRecord(
                runtime=api.name,
                version=api.version,
                gpu=target_gpu,
                gpu_name=gpu.name if gpu and not api.targets else "",
                precision=precision,
                graphs=graph_files(bundle.manifest["files"]),
                engines={f"{name}.engine": file_sha256(temporary / f"{name}.engine") for name in built},
                bindings={f"{name}.engine": engine.bindings for name, engine in built.items()},
                options={"exported_precision": exported, "conversion_error": error},
                seconds=seconds,
            ).write(temporary)
            publish(temporary, folder)
            log.info("built in %.1f s", sum(seconds.values()))
        else:
            log.info("%s is up to date", folder)
    if options.verify:
        for unproved in check_engines(bundle, folder, read_record(folder), api):
            log.warning("not verified: %s", unproved)
    return folder


def choose_runtime(wanted: str | None, gpu: str | None) -> TensorRT:
    """The runtime asked for, else the first that is installed and can build for the GPU."""
    if wanted:
        return load_tensorrt(wanted)
    absent, unable = [], []
    for name in MODULES:
        try:
            api = load_tensorrt(name)
        except EngineError as error:
            absent.append(str(error))
            continue
        try:
            check_target(api, gpu)
        except EngineError as error:
            unable.append(str(error))
            continue
        return api
    raise EngineError("; ".join(unable or absent))


def check_target(api: TensorRT, gpu: str | None) -> str:
    """The GPU to build for, once it is clear that the runtime can."""
    if gpu is None:
        raise EngineError(f"no NVIDIA GPU here: name one with --gpu ({', '.join(api.targets) or 'sm_NN'})")
    if not re.fullmatch(r"sm_\d{2,3}", gpu):
        raise EngineError(f"--gpu {gpu} is no compute capability: give it as sm_87")
    if api.targets and gpu not in api.targets:
        raise EngineError(
            f"{api.name} {api.version} does not build for {gpu}, only for {', '.join(api.targets)}; "
            "build with --runtime tensorrt on such a machine"
        )
    here = current_gpu()
    if not api.targets and (here is None or here.capability != gpu):
        raise EngineError(
            f"{api.name} builds for the GPU of its own machine ({here.capability if here else 'none here'}), not for {gpu}: "
            "run this there"
        )
    return gpu


def stale(folder: Path, bundle: Bundle, api: TensorRT, gpu: str) -> str:
    """Why a folder of engines must be built; "" where it is up to date."""
    try:
        record = read_record(folder)
    except EngineError:
        return "not built yet"
    return record.mismatch(bundle.manifest["files"], api.version, gpu) or record.damage(folder)


def read_graph(path: Path, weights: bool = False) -> onnx.ModelProto:
    """A graph without its external weights, or with them.

    Raises:
        EngineError: the file, or that of its weights, is truncated or missing, or it is no graph.
    """
    try:
        return onnx.load(path, load_external_data=weights)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise EngineError(f"{path} cannot be read: {error}; copy or export the bundle again") from error


def bundle_precision(graphs: list[Path]) -> str:
    """What the graphs were exported in: that of the first one in half precision, else fp32."""
    found = [graph_precision(read_graph(path)) for path in graphs]
    return next((precision for precision in found if precision != "fp32"), "fp32")


def prepare(
    graphs: list[Path], exported: str, precision: str, free: dict[str, Range], folder: Path
) -> float | None:
    """Writes the graphs in another precision than they were exported in to ``folder``; the error that this costs.

    Raises:
        EngineError: the graphs cannot be had in that precision, or differ more than it explains.
    """
    if precision == exported:
        return None
    if exported != "fp32":
        raise EngineError(
            f"the graphs are in {exported} and cannot be built in {precision}; export the bundle in {precision}"
        )
    weights = sum(
        math.prod(w.dims)
        for m in map(read_graph, graphs)
        for w in m.graph.initializer
        if onnx.external_data_helper.uses_external_data(w)
    )
    if weights > CONVERTED_WEIGHTS:
        raise EngineError(
            f"graphs of {weights:.2g} weights are not converted; export the bundle in {precision}"
        )
    models = [read_graph(path, weights=True) for path in graphs]
    try:
        halves = [to_half(model, precision, features_between(models)) for model in models]
    except ConfigError as error:
        raise EngineError(str(error)) from error
    inputs = random_inputs(models, {name: sizes[1] for name, sizes in free.items()})
    runnable = [in_float32(half) if precision == "bf16" else half for half in halves]
    # But for the sampler, whose network is the denoiser's (engine_check.CHAINS).
    compared = [(a, b) for path, a, b in zip(graphs, models, runnable, strict=True) if path.stem != "sample4"]
    outputs = [o.name for model, _ in compared for o in model.graph.output]
    expected, found = (run_chain(side, inputs) for side in zip(*compared, strict=True))
    error = worst_error(found, {name: expected[name] for name in outputs})
    if not error <= TOLERANCE[precision]:
        raise EngineError(
            f"the graphs in {precision} differ from those in fp32 by {error:.2g}, more than {TOLERANCE[precision]}; "
            "build in fp32"
        )
    for path, half in zip(graphs, halves, strict=True):
        onnx.save(half, folder / path.name)
    return error


def build_graphs(
    graphs: list[Path], target: Target, folder: Path
) -> tuple[dict[str, Built], dict[str, float]]:
    """Engines, and the seconds that each took, by name; a graph in ``folder`` is built instead of its original."""
    built, seconds = {}, {}
    with Progress(transient=True) as progress:
        for graph in graphs:
            start = time.monotonic()
            converted = folder / graph.name
            built[graph.stem] = build(converted if converted.exists() else graph, target, progress)
            seconds[graph.stem] = round(time.monotonic() - start, 2)
            converted.unlink(missing_ok=True)
    return built, seconds


def write_engines(built: dict[str, Built], folder: Path, layers: bool) -> None:
    for name, engine in built.items():
        (folder / f"{name}.engine").write_bytes(engine.plan)
        if layers:
            (folder / f"{name}{LAYERS}").write_text(json.dumps(engine.layers, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
