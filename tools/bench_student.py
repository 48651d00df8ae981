# SPDX-License-Identifier: Apache-2.0
"""Time of one frame of a student on this GPU, from three pictures in host memory to points in host memory.

    python tools/bench_student.py --out out/bench_student                                 # one H100/H200, under five minutes
    python tools/bench_student.py --out out/bench_student --bundle nano                   # a bundle instead of random weights
    python tools/bench_student.py --out /tmp/b --device cpu --tiny --frames 20 --engines torch    # checks the script itself

For each model (``nano``, ``base``: random weights; or a bundle) and each engine: frames end to end (three 1280 x 720
pictures up, ``[rows, columns, 4]`` points, range map and probability down), each stage alone, kernels and host launches of a
frame; the same with pictures as cameras send them (``raw_ms``). The rates that bound it (matrix products, copies, transfers)
are measured in the same run. An engine that fails is a line with its reason. Results are written after each:
``bench_student.json``, ``bench_student.md``.
Needs torch; ``onnxruntime-cuda`` needs onnxruntime-gpu as well, and a bundle or onnxscript.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.bundle import load_bundle
from lidargen_ros.bundle_engines import onnx_graphs
from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES, DEFAULT_TILE, Alignment, align, area_weights
from lidargen_ros.cameras.encodings import Picture, RawPicture
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.engines.base import Engine
from lidargen_ros.engines.onnxruntime_engine import OnnxRuntimeEngine, missing_providers
from lidargen_ros.engines.torch_engine import TorchEngine
from lidargen_ros.errors import EngineError
from lidargen_ros.frame_pipeline import GRAPHS, FramePipeline, Limits, Points
from lidargen_ros.models.frame_graphs import PRECISIONS, frame_graphs
from lidargen_ros.models.student import BASE, NANO, Student, StudentConfig
from lidargen_ros.models.student_weights import folded, read_student
from lidargen_ros.sensors import Sensor, load_sensor

TINY = StudentConfig(
    full=4, fine=4, patch=8, mid=8, coarse=16, head_width=8, encoder_blocks=(1, 1, 1, 1),
    denoiser_blocks=(1, 1, 1), previous=True, spread=True,
)  # fmt: skip
CONFIGS = {"nano": NANO, "base": BASE, "tiny": TINY}
ENGINES = ("torch", "torch+graph", "onnxruntime-cuda", "torch-compile", "torch-compile+graph", "torch-aoti",
           "torch-aoti+graph", "onnxruntime-cpu")  # fmt: skip
STAGES = ("pixels", "encoder", "denoiser", "decoder", "points")


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.cuda = args.device == "cuda"
        self.begun = time.perf_counter()
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.sensor: Sensor = load_sensor("pandar128")
        self.image_size = (720, 1280)
        self.tile = DEFAULT_TILE
        if args.tiny:
            self.sensor = Sensor(name="tiny", elevations_deg=np.linspace(10, -20, 16), columns=72)
            self.image_size, self.tile = (72, 128), (32, 64)
        self.rig = load_rig("published")
        self.lidar_height, self.hypotheses = 1.9, None
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*self.image_size, 3), dtype=np.uint8) for _ in self.rig.views]
        height, width = self.image_size
        shapes = {
            "bgr8": (height, width, 3), "bayer_rggb8": (height, width), "uyvy": (height, width, 2),
            "nv12": (height * 3 // 2, width),
        }  # fmt: skip
        self.raw = {
            name: [RawPicture(rng.integers(0, 256, shape, dtype=np.uint8), name) for _ in self.rig.views]
            for name, shape in shapes.items()
        }
        self.results: dict[str, Any] = {"machine": self.machine(), "frames": args.frames, "models": {}}

    # --- the machine ---------------------------------------------------------------------------------------------

    def machine(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            query = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,driver_version"
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
            if shutil.which(command[0]):
                asked = subprocess.run(command, capture_output=True, text=True, check=False)
                facts[query] = asked.stdout.strip()
            facts |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
                      "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # fmt: skip
        else:
            facts["cpu"] = platform.processor() or platform.machine()
        return facts

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int = 20, warm_ups: int = 3) -> float:
        """Median wall time of a call with the device idle before and after."""
        for _ in range(warm_ups):
            call()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def rates(self) -> dict[str, float]:
        """What this device reaches on plain work: TFLOP/s of products, GB/s of copies and transfers."""
        n, device = (8192 if self.cuda else 256), self.args.device
        rates = {}
        for name in ("fp16", "bf16", "fp32"):
            a, b = (torch.randn(n, n, device=device, dtype=PRECISIONS[name]) for _ in range(2))
            rates[f"matmul_{name}_tflop_per_s"] = 2 * n**3 / self.seconds(lambda a=a, b=b: a @ b) / 1e12
        count = 2**30 if self.cuda else 2**22
        source = torch.empty(count, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        rates["copy_gb_per_s"] = 2 * count / self.seconds(lambda: target.copy_(source)) / 1e9
        if self.cuda:
            host = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
            part = source[: 2**26]
            up = self.seconds(lambda: part.copy_(host, non_blocking=True))
            down = self.seconds(lambda: host.copy_(part, non_blocking=True))
            rates |= {"upload_gb_per_s": 2**26 / up / 1e9, "download_gb_per_s": 2**26 / down / 1e9}
        return rates

    # --- one model -----------------------------------------------------------------------------------------------

    def student(self, name: str) -> Student:
        if self.args.bundle:
            return read_student(load_bundle(self.args.bundle).file("student.safetensors"))
        torch.manual_seed(0)
        return folded(Student(CONFIGS[name]))

    def alignment(self, student: Student) -> Alignment:
        # Which depths does not matter for speed, only how many.
        depths = [*DEFAULT_HYPOTHESES, *range(2, 2 + student.config.hypotheses)][: student.config.hypotheses]
        return align(self.rig, self.sensor, tile=self.tile, hypotheses=depths, lidar_height=self.lidar_height)

    def model(self, name: str) -> Alignment:
        """Begins the entry of a model with the work that a frame is."""
        student = self.student(name)
        aligned = self.alignment(student)
        work = self.work(student, aligned)
        work["parameters"] = sum(p.numel() for p in student.parameters())
        self.results["models"][name] = {"work": work, "engines": {}}
        return aligned

    def try_engine(self, engine: str, name: str, aligned: Alignment) -> None:
        """An engine that fails, or has no time left, is a line with its reason."""
        entry = self.results["models"][name]
        result = entry["engines"][engine] = {}
        if time.perf_counter() - self.begun > self.args.seconds:
            result["failed"] = f"not begun: {self.args.seconds:g} s are over"
            return
        print(f"{time.perf_counter() - self.begun:.0f} s: {name} on {engine}", flush=True)
        try:
            self.engine(engine, name, aligned, entry["work"], result)
        except Exception as error:  # noqa: BLE001  whatever goes wrong in a compiler or driver is a result here
            result["failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(json.dumps(result), flush=True)
        self.save()

    def work(self, student: Student, aligned: Alignment) -> dict[str, float]:
        """FLOP of a frame, and the time that its layers would take at the measured rates.

        Each convolution, linear layer and attention takes at least its FLOP at the rate of products and at least its
        inputs, outputs and weights at the rate of copies: the sum over layers is the roofline without fusion.
        """
        half = 2 if self.args.precision != "fp32" else 4
        flop_rate = self.results["rates"][f"matmul_{self.args.precision}_tflop_per_s"] * 1e12
        byte_rate = self.results["rates"]["copy_gb_per_s"] * 1e9
        roofline: list[float] = []

        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            weight = layer.weight
            products = output.numel() * weight[0].numel()
            elements = inputs[0].numel() + output.numel() + weight.numel()
            roofline.append(max(2 * products / flop_rate, half * elements / byte_rate))

        layers = [m for m in student.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        hooks = [layer.register_forward_hook(hook) for layer in layers]
        rows, columns = self.sensor.shape
        pixels = torch.zeros(1, 4 * student.config.hypotheses, rows, columns)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            student.estimate(pixels, torch.from_numpy(aligned.rays)[None])
        for each in hooks:
            each.remove()
        (height, width), (h, w) = self.image_size, self.tile
        views = len(self.images)
        shrink = 2 * 3 * views * (h * height * width + h * width * w)
        return {
            "network_gflop": counter.get_total_flops() / 1e9,
            "pixels_gflop": shrink / 1e9,
            "network_roofline_ms": 1e3 * sum(roofline),
        }

    def open(self, engine: str, name: str) -> Engine:
        args = self.args
        if engine.startswith("onnxruntime"):
            if reason := missing_providers(engine):  # before graphs are exported, which takes a minute
                raise EngineError(reason)
            precision = "as exported" if args.bundle else args.precision
            return OnnxRuntimeEngine(
                self.onnx(name, engine), name=engine, precision=precision, threads=args.threads
            )
        mode, _, graph = engine.partition("+")
        return TorchEngine(
            frame_graphs(self.student(name), self.sensor, precision=args.precision),
            device=args.device,
            mode=mode.partition("-")[2] or "eager",
            precision=args.precision,
            cuda_graph=graph == "graph" and self.cuda,
            packages=self.out / "aoti",
            threads=args.threads,
        )

    def onnx(self, name: str, engine: str) -> dict[str, Path]:
        if self.args.bundle:
            return onnx_graphs(load_bundle(self.args.bundle), engine)
        from export.student import export_graphs

        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        torch.manual_seed(0)
        export_graphs(Student(CONFIGS[name]), folder, self.sensor, self.tile, precision=self.args.precision)
        there = {path.stem: path for path in folder.glob("*.onnx")}
        return {graph: there[graph] for graph in GRAPHS} if engine == "onnxruntime-cpu" else there

    # --- one engine ----------------------------------------------------------------------------------------------

    def engine(
        self, name: str, model: str, aligned: Alignment, work: dict[str, float], result: dict[str, Any]
    ) -> None:
        """Fills ``result`` as it goes, so that what was measured before a failure is kept."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        engine = self.open(name, model)
        pipeline = FramePipeline(engine, self.tile, self.sensor.shape)
        result |= {"precision": engine.precision, "open_s": time.perf_counter() - start}
        limits = Limits(0.5, self.sensor.min_range_m, self.sensor.max_range_m)
        start = time.perf_counter()

        def frame() -> Points:
            return pipeline.points(self.images, aligned, limits, steps=1, seed=0, cloud=True)

        frame()
        result["first_frame_s"] = time.perf_counter() - start
        for _ in range(20):
            frame()
        times = []
        for _ in range(self.args.frames):
            start = time.perf_counter()
            frame()
            times.append(1e3 * (time.perf_counter() - start))
        result["frame_ms"] = {
            **{f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}, "max": max(times)
        }  # fmt: skip
        result["stages_ms"] = self.stages(engine, pipeline, aligned)
        network = result["stages_ms"]["encoder"] + result["stages_ms"]["denoiser"]
        result["network_share_of_roofline"] = work["network_roofline_ms"] / network
        if isinstance(engine, TorchEngine):
            result["peak_mb"] = engine.memory_bytes / 1e6
        if self.cuda:
            result["launches"] = self.launches(frame)
        if getattr(engine, "mode", "eager") == "eager":  # others would first compile each of these

            def other(pictures: Sequence[Picture], steps: int = 1) -> float:
                return 1e3 * self.seconds(
                    lambda: pipeline.points(pictures, aligned, limits, steps=steps, seed=0, cloud=True), 50
                )

            if "sample4" in engine.graphs:
                result["sample_4_steps_ms"] = other(self.images, steps=4)
            raw = {name: made for name, made in self.raw.items() if name in pipeline.raw_encodings}
            result["raw_ms"] = {name: other(pictures) for name, pictures in raw.items()}
        pipeline.close()

    def stages(self, engine: Engine, pipeline: FramePipeline, aligned: Alignment) -> dict[str, float]:
        """Each stage alone, the device idle before and after: their sum is more than a frame, which overlaps."""
        stages = [s for s in STAGES if s in engine.graphs]
        repeats = min(self.args.frames, 50)
        if "pixels" in stages:
            sent: dict[str, Any] = {"images": self.images}
            weights = zip(("row_weights", "column_weights"), self.image_size, self.tile, strict=True)
            engine.write({name: area_weights(size, target) for name, size, target in weights})
        else:
            sent = {"atlas": np.zeros((len(self.images) * self.tile[0], self.tile[1], 3), np.uint8)}
        times = {"write": self.seconds(lambda: engine.write(sent), repeats)}
        for stage in stages:
            outputs = tuple(engine.graphs[stage].outputs)
            times[stage] = self.seconds(lambda s=stage, o=outputs: engine.run((s,), o), repeats)
        wanted = Points._fields if "points" in stages else ("range_m", "probability", "intensity")
        times["read"] = self.seconds(lambda: engine.read(wanted), repeats)
        return {name: 1e3 * seconds for name, seconds in times.items()}

    def launches(self, frame: Callable[[], Any]) -> dict[str, int]:
        """Kernels and copies on the device, and calls of the host that start them, in one frame."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            frame()
            self.wait()
        names = [(event.name, event.device_type) for event in profiler.events()]
        device = [n for n, kind in names if kind == torch.autograd.DeviceType.CUDA]
        copies = sum(n.startswith(("Memcpy", "Memset")) for n in device)
        starts = (
            "cudaLaunchKernel",
            "cuLaunchKernel",
            "cudaGraphLaunch",
            "cudaMemcpyAsync",
            "cudaMemsetAsync",
        )
        return {
            "kernels": len(device) - copies,
            "copies": copies,
            "host_calls": sum(n.startswith(starts) for n, _ in names),
        }

    # --- results -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.results["seconds"] = time.perf_counter() - self.begun
        (self.out / "bench_student.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.out / "bench_student.md").write_text(self.table())

    def table(self) -> str:
        stages = ("write", *STAGES, "read")
        lines = [f"{self.results['machine']}", "", f"{self.results['rates']}", ""]
        for model, entry in self.results["models"].items():
            work = {key: round(value, 3) for key, value in entry["work"].items()}
            heads = [
                "engine",
                "first, s",
                "p50",
                "p95",
                "p99",
                *stages,
                "kernels",
                "host calls",
                "of roofline",
            ]
            lines += [f"{model}: {work}, ms", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
            for name, r in entry["engines"].items():
                if "network_share_of_roofline" not in r:
                    lines.append(f"| {name} | {r.get('failed', 'under way')} |")
                    continue
                cells = [
                    f"{r['first_frame_s']:.1f}",
                    *(f"{r['frame_ms'][q]:.2f}" for q in ("p50", "p95", "p99")),
                ]
                cells += [f"{r['stages_ms'].get(s, 0):.2f}" for s in stages]
                launches = r.get("launches", {})
                cells += [str(launches.get(k, "")) for k in ("kernels", "host_calls")]
                cells.append(f"{r['network_share_of_roofline']:.0%}")
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
        return "\n".join(lines)

    def run(self) -> None:
        self.results["rates"] = self.rates()
        print(json.dumps(self.results), flush=True)
        aligned = {name: self.model(name) for name in self.args.models}
        # Those that compile for minutes come last, for every model: time that runs out then costs the fewest figures.
        for engine in self.args.engines:
            for name in self.args.models:
                self.try_engine(engine, name, aligned[name])
        self.save()
        print(self.table())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda s: s.split(","), default=["nano", "base"])
    parser.add_argument("--bundle", help="time this bundle instead (needs student.safetensors)")
    parser.add_argument("--engines", type=lambda s: s.split(","), default=list(ENGINES[:-1]))
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp16")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=270, help="no engine is begun after this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, help="on the CPU")
    parser.add_argument("--tiny", action="store_true", help="toy size, to check the script")
    args = parser.parse_args()
    if args.bundle:
        args.models = [Path(args.bundle).name]
    elif args.tiny:
        args.models = ["tiny"]
    Bench(args).run()


if __name__ == "__main__":
    main()
