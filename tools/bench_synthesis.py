# SPDX-License-Identifier: Apache-2.0
"""What `lidargen synthesize` costs beside the model itself, on this machine, as JSON.

    python tools/bench_synthesis.py nano [--bag samples/sample_drive] [--rig samples/sample_drive/rig.yaml] [--threads 0]

Three passes over the same frames: inference alone (pictures decoded before), inference again (its own spread), and
the whole pipeline from the bag to finished parts. `cpu_ms` is processor time of all threads per frame; where cores are
the limit and others share them, its ratio says more than that of `wall_ms`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.synthesis.matching import moments
from lidargen_ros.bags.synthesis.models import StudentModel, make_sweep
from lidargen_ros.bags.synthesis.options import Options
from lidargen_ros.bags.synthesis.plan import Job, Plan, jobs, make_plan
from lidargen_ros.bags.synthesis.worker import Worker
from lidargen_ros.ros.messages import picture_to_rgb
from lidargen_ros.ros.parameters import Settings

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "sample_drive"


def measured(call: Callable[[], int]) -> dict[str, float]:
    """Milliseconds per frame; ``call`` returns the number of frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_ms": round(1e3 * wall / frames, 2), "cpu_ms": round(1e3 * cpu / frames, 2)}


def decoded(plan: Plan, model: StudentModel) -> list[tuple[int, list[Any]]]:
    """Stamp and prepared images of every frame."""
    settings = plan.options
    with BagReader(plan.bag) as bag:
        found = moments(
            bag.messages(list(plan.cameras)),
            plan.cameras,
            tolerance_ns=settings.tolerance_ns,
            wait_ns=settings.wait_ns,
        )
        sets = []
        for moment in found:
            rgb = [picture_to_rgb(p.message.decode()) for p in moment.pictures if p]
            if rgb:
                sets.append((moment.stamp_ns or 0, [model.prepare(image) for image in rgb]))
        return sets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--bag", type=Path, default=SAMPLE)
    parser.add_argument("--rig", default=str(SAMPLE / "rig.yaml"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--merge", action="store_true")
    arguments = parser.parse_args()
    settings = Settings().changed(
        {"bundle": arguments.bundle, "rig": arguments.rig, "threads": arguments.threads}
    )
    options = Options(settings=settings, merge=arguments.merge)
    model = StudentModel(options)
    plan = make_plan(arguments.bag, options, model.info())
    sets = decoded(plan, model)

    def inference() -> int:
        for stamp, images in sets:
            make_sweep(model, images, plan.rig, stamp, options)
        return len(sets)

    make_sweep(model, sets[0][1], plan.rig, 0, options)  # engines warm up with their first frame
    passes = [measured(inference)]
    with tempfile.TemporaryDirectory() as out, closing(Worker(options)) as worker:
        place = Path(out) / f".{plan.name}.work"
        place.mkdir()
        first = Job(plan, jobs(plan, ())[0].slices)
        worker.run(first, Path(out))

        def pipeline() -> int:
            done = [worker.run(job, Path(out)) for job in jobs(plan, ())]
            return sum(report.frames for reports in done for _, report in reports)

        whole = measured(pipeline)
        size = sum(p.stat().st_size for p in place.glob("*.mcap"))
    passes.append(measured(inference))
    alone = {key: min(p[key] for p in passes) for key in whole}
    result = {
        "frames": len(sets),
        "inference": passes,
        "pipeline": whole,
        **{f"overhead_{key[:-3]}": round(whole[key] / alone[key] - 1, 4) for key in whole},
        "written_mb_per_frame": round(size / 1e6 / len(sets), 3),
        "model": plan.info.about,
        "machine": plan.info.machine,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
