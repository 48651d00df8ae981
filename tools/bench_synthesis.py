# SPDX-License-Identifier: Apache-2.0
"""How many frames per second `lidargen synthesize` makes on this machine, and which of its stages limits them, as JSON.

    python tools/bench_synthesis.py nano [--bag samples/sample_drive] [--rig samples/sample_drive/rig.yaml] [--threads 0]
    python tools/bench_synthesis.py nano --repeat 14 --size 1280x704 --workers 1,2,4 --out out/synthesis.json     # a GPU

Passes over the same frames, pictures decoded before where they are not the subject: reading and matching alone, decoding
alone and packing alone (all threads), inference alone (twice, which shows its own spread), and the whole pipeline from the
bag to finished parts, once for each number of workers. `cpu_ms` is processor time of all threads of this process per frame:
where cores are the limit and others share them, its ratio says more than that of `wall_ms`. `cpu` compares that of the whole
with the sum of its parts: far above 1, cores are busy with nothing. Frames that open engines are not counted.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.synthesis.encode import Encoder
from lidargen_ros.bags.synthesis.host import settle_in
from lidargen_ros.bags.synthesis.local import local_crew
from lidargen_ros.bags.synthesis.matching import Moment, moments
from lidargen_ros.bags.synthesis.models import StudentModel, make_sweep
from lidargen_ros.bags.synthesis.options import Options
from lidargen_ros.bags.synthesis.plan import Plan, jobs, make_plan
from lidargen_ros.bags.writer import BagWriter
from lidargen_ros.errors import LidargenError
from lidargen_ros.files import replacing
from lidargen_ros.ros.messages import picture_to_rgb
from lidargen_ros.ros.parameters import Settings

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "sample_drive"


def measured(call: Callable[[], int]) -> dict[str, float]:
    """Milliseconds per frame, and frames per second; ``call`` returns the number of frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_ms": round(1e3 * wall / frames, 2),
        "cpu_ms": round(1e3 * cpu / frames, 2),
        "frames_per_second": round(frames / wall, 1),
    }


def longer(plan: Plan, times: int, size: tuple[int, int] | None, out: Path) -> Path:
    """A bag of the plan's pictures, over and over, stamps going on; JPEGs resized to ``size``: width, height."""
    with BagReader(plan.bag) as bag, BagWriter(out) as longer_bag:
        pictures = [(m, m.decode()) for m in bag.messages(list(plan.cameras))]
        for _, picture in pictures:
            if size is not None:
                resized = cv2.resize(picture_to_rgb(picture), size)[..., ::-1]
                picture.data = cv2.imencode(".jpg", resized)[1]
        step = round((plan.end_ns - plan.start_ns) * (1 + 1 / (plan.frames - 1)))
        for turn in range(times):
            for m, picture in pictures:
                cdr = np.frombuffer(longer_bag.serialize(picture), np.uint8).copy()
                # A message begins as its header does: after the four bytes of encapsulation, the stamp.
                seconds, nanoseconds = cdr[4:12].view("<u4")
                stamp = int(seconds) * 10**9 + int(nanoseconds) + turn * step
                cdr[4:12].view("<u4")[:] = divmod(stamp, 10**9)
                longer_bag.write(m.topic, m.msgtype, m.time_ns + turn * step, cdr.tobytes())
    return out


def found_moments(plan: Plan, bag: BagReader) -> list[Moment]:
    """The sets of pictures of the bag, not decoded yet."""
    options = plan.options
    found = moments(
        bag.messages(list(plan.cameras)),
        plan.cameras,
        tolerance_ns=options.tolerance_ns,
        wait_ns=options.wait_ns,
    )
    return [moment for moment in found if moment.pictures]


class Bench:
    """Passes over one bag with one model; ``result`` is written after each."""

    def __init__(self, plan: Plan, model: StudentModel, threads: int, out: Path | None) -> None:
        self.plan, self.model, self.out = plan, model, out
        self.pool = ThreadPoolExecutor(threads)
        self.result: dict[str, Any] = {
            "threads": threads,
            "model": plan.info.about,
            "machine": plan.info.machine,
        }

    def keep(self, name: str, value: Any) -> None:
        """Takes a figure into the result and tells it."""
        self.result[name] = value
        print(f"{name:14s} {json.dumps(value)}", file=sys.stderr, flush=True)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.out) as temporary:
                temporary.write_text(json.dumps(self.result, indent=1) + "\n")

    def read(self) -> int:
        with BagReader(self.plan.bag) as bag:
            self.moments = found_moments(self.plan, bag)
        return len(self.moments)

    def decode(self) -> int:
        def images(moment: Moment) -> list[Any]:
            rgb = [p and picture_to_rgb(p.message.decode()) for p in moment.pictures]
            return [None if image is None else self.model.prepare(image) for image in rgb]

        self.sets = list(self.pool.map(images, self.moments))
        return len(self.sets)

    def inference(self) -> int:
        for moment, images in zip(self.moments, self.sets, strict=True):
            self.sweep = make_sweep(
                self.model, images, self.plan.rig, moment.stamp_ns or 0, self.plan.options
            )
        return len(self.sets)

    def encode(self) -> int:
        """The same sweep for each frame: those of all would not fit into memory."""
        encoder = Encoder(self.plan.info, self.plan.rig, self.plan.options, self.plan.channels)
        sizes = self.pool.map(lambda m: sum(c.packed for c in encoder(self.sweep, m.time_ns)), self.moments)
        self.result["written_mb_per_frame"] = round(sum(sizes) / 1e6 / len(self.moments), 3)
        return len(self.moments)

    def pipeline(self, workers: int, warm_up_slices: int | None) -> dict[str, Any]:
        """From the bag to finished parts with several workers, after a pass that opens their engines."""
        work = jobs(self.plan, ())
        with tempfile.TemporaryDirectory() as out:
            (Path(out) / f".{self.plan.name}.work").mkdir()
            with closing(local_crew(self.plan.options, workers, lambda _: None)) as crew:
                slices: list[float] = []

                def run(part: list[Any]) -> int:
                    frames = 0
                    slices.clear()
                    for _, outcome in crew.run(part, Path(out)):
                        if isinstance(outcome, LidargenError):
                            raise outcome
                        frames += sum(report.sweeps for _, report in outcome)
                        slices.extend(report.seconds for _, report in outcome)
                    return frames

                run(work[:warm_up_slices])
                found: dict[str, Any] = measured(lambda: run(work))
        if workers > 1:
            del found["cpu_ms"]  # is in other processes
        # A worker that opens its engine only now shows as a slice that took many times longer than the others.
        return found | {
            "slice_s": {"median": round(float(np.median(slices)), 3), "max": round(max(slices), 3)}
        }


def numbers(separator: str) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(int(part) for part in text.split(separator))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--bag", type=Path, default=SAMPLE)
    parser.add_argument("--rig", default=str(SAMPLE / "rig.yaml"))
    parser.add_argument(
        "--threads", type=int, default=0, help="of each worker; 0 shares all cores among them"
    )
    parser.add_argument("--merge", action="store_true")
    parser.add_argument(
        "--repeat", type=int, default=1, help="make a bag of the pictures, this many times over"
    )
    parser.add_argument("--size", type=numbers("x"), help="WxH: resize its JPEGs")
    parser.add_argument("--workers", type=numbers(","), default=(1,), help="numbers of workers to try")
    parser.add_argument(
        "--slice", type=float, default=10.0, help="seconds of recording time of one piece of work"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no pass is begun after this")
    parser.add_argument("--out", type=Path, help="write the JSON here as well, after each pass")
    arguments = parser.parse_args()
    begun = time.monotonic()
    settle_in()  # as workers do, so that parts and whole are measured alike
    chosen = {
        "bundle": arguments.bundle,
        "engine": arguments.engine,
        "rig": arguments.rig,
        "threads": arguments.threads,
    }
    options = Options(settings=Settings().changed(chosen), merge=arguments.merge, slice_s=arguments.slice)
    model = StudentModel(options)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(arguments.bag, options, model.info())
        if arguments.repeat > 1 or arguments.size:
            bag = longer(plan, arguments.repeat, arguments.size, Path(folder) / "longer")
            plan = make_plan(bag, options, model.info())
        bench = Bench(plan, model, arguments.threads or os.cpu_count() or 1, arguments.out)
        bench.keep("read", measured(bench.read))
        bench.keep("frames", len(bench.moments))
        bench.keep("decode", measured(bench.decode))
        make_sweep(model, bench.sets[0], plan.rig, 0, options)  # engines warm up with their first frame
        passes = [measured(bench.inference)]
        bench.keep("inference", passes)
        bench.keep("encode", measured(bench.encode))
        whole: dict[str, Any] = {}
        for workers in arguments.workers:
            if time.monotonic() - begun > arguments.seconds:
                whole[str(workers)] = {"failed": f"not begun: {arguments.seconds:g} s are over"}
            else:
                whole[str(workers)] = bench.pipeline(workers, 1 if workers == 1 else None)
            bench.keep("pipeline", whole)
        passes.append(measured(bench.inference))
        bench.keep("inference", passes)
    alone = {key: min(p[key] for p in passes) for key in ("wall_ms", "cpu_ms")}
    if "cpu_ms" in (one := whole.get("1", {})):
        bench.keep("overhead", {key[:-3]: round(one[key] / alone[key] - 1, 4) for key in alone})
        parts = alone["cpu_ms"] + sum(bench.result[part]["cpu_ms"] for part in ("read", "decode", "encode"))
        bench.keep("cpu", {"parts_ms": round(parts, 2), "whole_to_parts": round(one["cpu_ms"] / parts, 3)})
    # Decoding and packing share the cores, so that a frame takes the time of both.
    host = 1e3 / (bench.result["decode"]["wall_ms"] + bench.result["encode"]["wall_ms"])
    bounds = {"inference": 1e3 / alone["wall_ms"], "decode and encode": host}
    bench.keep("bounds", {name: round(rate, 1) for name, rate in bounds.items()})
    bench.keep("limited_by", min(bounds, key=lambda name: bounds[name]))
    print(json.dumps(bench.result, indent=1))


if __name__ == "__main__":
    main()
