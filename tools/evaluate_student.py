# SPDX-License-Identifier: Apache-2.0
"""Measures a student bundle on the fixed held-out synthetic scenes, through the engine that ships it.

    python tools/evaluate_student.py nano --scenes 64 --out docs/benchmarks/nano.json

Beside the constant map and the nearest training sweep: errors on seen and unseen rays, Chamfer, returns; then cameras that
stop arriving, rigs and sensors never trained on, coverage of drawn samples, and flicker. Scenes are rendered on the GPU if
there is one; on a CPU each takes seconds. 0 leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from lidargen_ros.errors import LidargenError
from lidargen_ros.evaluate import ladder_table
from lidargen_ros.generator import LidarGenerator
from tools.run_student import commit
from training.scenes.seeds import TRAINING_SEED_START
from training.student import bundle_report as measure
from training.student.held_out import (
    OTHER_RIG_SEEDS,
    OTHER_SENSOR_SEEDS,
    SEEDS,
    STILL_SEEDS,
    SceneMaker,
    other_rigs,
    other_sensors,
)  # fmt: skip

HEADLINE = ("abs_rel_seen", "abs_rel_unseen", "mae_m_seen", "mae_m_unseen", "return_accuracy", "return_auroc")


def evaluate(arguments: argparse.Namespace, say) -> dict[str, Any]:
    """Every part that was asked for."""
    generator = LidarGenerator.from_bundle(arguments.bundle, engine=arguments.engine)
    rig, own = generator.rig, generator.sensor
    device, compiled = arguments.device, True if arguments.compile else None
    baseline = measure.on_sensor(*measure.constant_of(arguments.baseline), own)
    maker = SceneMaker(rig, own, generator.tile, device, compiled)
    say(f"rendering {arguments.scenes} held-out scenes")
    scenes = list(maker.scenes(SEEDS[: arguments.scenes]))
    training = range(TRAINING_SEED_START, TRAINING_SEED_START + arguments.training_scenes)
    say(f"rendering {len(training)} training sweeps for the ladder")
    training_maps = list(maker.sweeps(training))
    say("comparing")
    result: dict[str, Any] = {
        "name": generator.bundle.name, "made_by": generator.describe(), "baseline": arguments.baseline,
        "command": " ".join(sys.argv), "commit": commit(), "seeds": [SEEDS.start, SEEDS.start + arguments.scenes - 1],
        "rendered_on": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        **measure.with_ladder(generator, scenes, baseline, training_maps),
    }  # fmt: skip
    if arguments.drop_scenes:
        say("without one camera each")
        result["dropped_cameras"] = measure.dropped_cameras(generator, scenes[: arguments.drop_scenes])
    others = [(other, own, OTHER_RIG_SEEDS, k) for k, other in enumerate(other_rigs(rig, arguments.rigs))]
    others += [
        (rig, sensor, OTHER_SENSOR_SEEDS, k) for k, sensor in enumerate(other_sensors(own, arguments.sensors))
    ]
    result["never_seen"] = []
    for other, sensor, seeds, k in others:
        say(f"rig {other.name}, sensor {sensor.name}")
        seeds = seeds[k * arguments.rig_scenes : (k + 1) * arguments.rig_scenes]
        result["never_seen"].append(
            measure.other_rig(generator, other, sensor, seeds, baseline, device=device, compiled=compiled)
        )
    if arguments.sample_scenes and generator.draws:
        say(f"drawing {arguments.samples} samples of {arguments.steps} steps")
        result["drawn_samples"] = measure.drawn_samples(
            generator, scenes[: arguments.sample_scenes], samples=arguments.samples, steps=arguments.steps
        )
    if arguments.frames:
        say("a world where nothing moves")
        still, driving = (
            maker.still_world(STILL_SEEDS.start, arguments.frames, moving=moving) for moving in (False, True)
        )
        result["flicker"] = measure.flickering(generator, still, driving)
    if arguments.drives and generator.reads_previous:
        say("what it remembers")
        seeds = STILL_SEEDS[1 : arguments.drives + 1]
        drives = [maker.still_world(seed, arguments.drive_frames, moving=True) for seed in seeds]
        result["memory"] = measure.remembering(generator, drives)
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Tables of the figures that people ask for; the JSON holds all."""
    table = Table(
        title=f"{result['name']} on {result['scenes']} held-out synthetic scenes, true returns in 5-65 m"
    )
    for title in ("", *HEADLINE):
        table.add_column(title, justify="right")
    lines = [("constant", result["constant map"]), (result["name"], result["model"])]
    for other in result["never_seen"]:
        name = f"{other['rig']} / {other['sensor']}"
        lines += [(f"constant, {name}", other["constant map"]), (name, other["model"])]
    for name, figures in lines:
        table.add_row(name, *(f"{figures[k]:.4f}" if k in figures else "-" for k in HEADLINE))
    console.print(ladder_table(result["report"], result["name"]))
    console.print(table)
    for camera, figures in result.get("dropped_cameras", {}).items():
        changes = ", ".join(
            f"{where} {figures['with'][key]:.4f} -> {figures['without'][key]:.4f}"
            for where in ("looked", "elsewhere")
            if (key := f"abs_rel_{where}") in figures["with"]
        )
        console.print(f"without {camera}: AbsRel {changes}")
    for part in ("unseen", "seen"):
        if "drawn_samples" in result:
            console.print(f"coverage of drawn samples, {part}: {result['drawn_samples'][part]['coverage']}")
    if "flicker" in result:
        console.print(f"flicker, all still: {result['flicker']['still']}")
    if "memory" in result:
        for name in ("generated", "knowing before"):
            figures = {key: round(result["memory"][name][key], 4) for key in HEADLINE}
            console.print(f"last frame of drives, {name}: {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="folder, or the name of a shipped one")
    parser.add_argument("--baseline", default="constant", help="bundle that ignores its pictures")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument(
        "--training-scenes", type=int, default=64, help="searched for the nearest training sweep"
    )
    parser.add_argument("--drop-scenes", type=int, default=16)
    parser.add_argument(
        "--rigs", type=int, default=4, help="never trained on; the first is a ring of six cameras"
    )
    parser.add_argument("--sensors", type=int, default=3, help="never trained on")
    parser.add_argument("--rig-scenes", type=int, default=8, help="for each of these")
    parser.add_argument("--sample-scenes", type=int, default=8)
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8, help="of the world where nothing moves")
    parser.add_argument("--drives", type=int, default=4, help="whose last frame knows the ones before")
    parser.add_argument("--drive-frames", type=int, default=20, help="of these, at 10 Hz")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="renders")
    parser.add_argument(
        "--compile", action="store_true", help="compile the renderer on a CPU: pays from 50 scenes on"
    )
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"))
    arguments = parser.parse_args()
    console, started = Console(), time.perf_counter()
    try:
        with console.status("loading") as status:
            result = evaluate(arguments, status.update)
    except LidargenError as error:
        raise SystemExit(f"error: {error}") from error
    result["seconds"] = round(time.perf_counter() - started, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    show(result, console)
    console.print(f"{arguments.out}: every figure; {result['seconds']} s")


if __name__ == "__main__":
    main()
