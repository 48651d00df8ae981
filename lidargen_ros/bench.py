# SPDX-License-Identifier: Apache-2.0
"""``lidargen bench``: how long a bundle takes on this machine, from pictures in host memory to the bytes of a PointCloud2."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, EngineError

WARM_UPS = 5
STAGE_FRAMES = 100  # at most; the stages are timed apart from the frames
PACKAGES = ("lidargen_ros", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "torch",
            "tensorrt", "tensorrt-rtx-cu13-bindings")  # fmt: skip
QUANTILES = (50, 95, 99)


def bench_engine(
    bundle: str | Path,
    engine: str,
    images: Sequence[NDArray],
    *,
    frames: int = 500,
    threads: int | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Times one engine; milliseconds.

    ``frame_ms``: quantiles end to end, warm. ``stages_ms``: medians of ``send`` (shrink the pictures and hand them to the
    engine), each graph, ``read`` (maps back on the host) and ``cloud`` (points and bytes), each begun when the one before
    has ended: an engine that overlaps them needs less than their sum.

    Raises:
        EngineError: the engine cannot run this bundle here.
    """
    from .generator import LidarGenerator
    from .ros.clouds import CloudPacker

    start = time.perf_counter()
    generator = LidarGenerator.from_bundle(bundle, engine=engine, threads=threads)
    try:
        packer = CloudPacker(generator.sensor)

        def frame() -> bytes:
            return packer.pack(generator(images)).data().tobytes()

        opened = time.perf_counter()
        frame()
        first = time.perf_counter()
        for _ in range(WARM_UPS):
            frame()
        times = []
        for _ in range(frames):
            begin = time.perf_counter()
            frame()
            times.append(1e3 * (time.perf_counter() - begin))
            progress()
        stages = [generator.stages(images) for _ in range(min(frames, STAGE_FRAMES))]
        sweep = generator(images)
        packing = []
        for _ in stages:
            begin = time.perf_counter()
            packer.pack(sweep).data().tobytes()
            packing.append(time.perf_counter() - begin)
        described = generator.describe()
        return {
            "engine": described["engine"],
            "precision": described["precision"],
            "frames": frames,
            "open_s": opened - start,
            "first_frame_s": first - opened,
            "frame_ms": {f"p{q}": float(np.percentile(times, q)) for q in QUANTILES}
            | {"mean": float(np.mean(times)), "max": max(times)},
            "stages_ms": {stage: 1e3 * float(np.median([s[stage] for s in stages])) for stage in stages[0]}
            | {"cloud": 1e3 * float(np.median(packing))},
        }
    finally:
        generator.close()


def environment() -> dict[str, Any]:
    """Machine and versions, for the record."""
    from .engines.trt_api import current_gpu
    from .generator import machine

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = current_gpu()
    return {
        "machine": machine(),
        "gpu": f"{gpu.name} ({gpu.capability})" if gpu else "none",
        "python": platform.python_version(),
        "versions": versions,
    }


def bench(
    bundle_name: str | Path,
    engines: Sequence[str] = (),
    *,
    frames: int = 500,
    threads: int | None = None,
    size: tuple[int, int] = (1280, 720),
    progress: Callable[[str], Callable[[], Any]] = lambda engine: lambda: None,
) -> dict[str, Any]:
    """Times engines on a bundle.

    Args:
        engines: names; none: every one that ``auto`` would consider.
        size: (width, height) of the pictures, which are noise: no engine's time depends on what they show.
        progress: called with the name of each engine, returns what is called after each frame.

    Returns:
        ``bundle``, ``environment``, ``frames``, ``threads``, ``image_size``, and ``engines``: name -> what
        :func:`bench_engine` found, or ``{"failed": reason}``.
    """
    from .bundle import load_bundle
    from .engines.select import PREFERENCE

    bundle = load_bundle(bundle_name)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in bundle.rig]
    found: dict[str, Any] = {}
    for name in engines or PREFERENCE:
        try:
            found[name] = bench_engine(
                bundle.path, name, images, frames=frames, threads=threads, progress=progress(name)
            )
        except EngineError as error:
            found[name] = {"failed": str(error)}
    return {
        "bundle": {
            "name": bundle.name,
            "version": bundle.manifest.get("version", ""),
            "sha256": bundle.digest,
        },
        "environment": environment(),
        "frames": frames,
        "threads": threads,
        "cameras": len(images),
        "image_size": list(size),
        "engines": found,
    }


def table(results: dict[str, Any]) -> Any:
    """``rich`` table: one line per engine that ran, milliseconds."""
    from rich.table import Table

    ran = {name: r for name, r in results["engines"].items() if "failed" not in r}
    stages = list(dict.fromkeys(stage for r in ran.values() for stage in r["stages_ms"]))
    heads = ("engine", "precision", "first, s", *(f"p{q}" for q in QUANTILES), *stages)
    shown = Table(*heads, title=f"{results['bundle']['name']}: ms per frame, {results['frames']} frames")
    for name, r in ran.items():
        times = [f"{r['frame_ms'][f'p{q}']:.1f}" for q in QUANTILES]
        parts = [f"{r['stages_ms'][s]:.2f}" if s in r["stages_ms"] else "" for s in stages]
        label = name if name == r["engine"] else f"{name} ({r['engine']})"
        shown.add_row(label, r["precision"], f"{r['first_frame_s']:.2f}", *times, *parts)
    return shown


def register(app: Any) -> None:
    """Add ``bench`` to a typer application."""
    import typer

    @app.command("bench")
    def command(
        bundle: Annotated[str, typer.Argument(help="Folder of a bundle, or the name of a shipped one.")],
        engine: Annotated[
            list[str] | None, typer.Option(help="Engine to time; may be repeated. Default: all that can run.")
        ] = None,
        frames: Annotated[int, typer.Option(help="Frames per engine.", min=1)] = 500,
        threads: Annotated[int, typer.Option(help="Threads on the CPU; 0 takes one per core.", min=0)] = 0,
        size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the pictures.")] = "1280x720",
        out: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
    ) -> None:
        """Time a bundle on this machine: pictures in memory to PointCloud2 bytes, per stage and end to end."""
        from rich.console import Console
        from rich.progress import Progress

        width, _, height = size.partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise ConfigError(f"size {size} is not WIDTHxHEIGHT; give it as 1280x720")
        # Before minutes go by with measuring.
        if out is not None and (out.is_dir() or not out.parent.is_dir()):
            raise ConfigError(f"--json {out} is no file in a folder that is there; give another")
        console = Console(stderr=True)
        with Progress(console=console, transient=True) as bar:

            def progress(name: str) -> Callable[[], Any]:
                task = bar.add_task(name, total=frames)
                return lambda: bar.advance(task)

            results = bench(
                bundle,
                engine or (),
                frames=frames,
                threads=threads or None,
                size=(int(width), int(height)),
                progress=progress,
            )
        failed = {name: r["failed"] for name, r in results["engines"].items() if "failed" in r}
        none = len(failed) == len(results["engines"])
        if not none:
            Console(width=None if console.is_terminal else 200).print(table(results))
        for name, reason in failed.items():
            console.print(f"{name}: {reason}", highlight=False, soft_wrap=True)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
        if none:
            raise EngineError(f"no engine could be timed on {bundle}; reasons above")
