# SPDX-License-Identifier: Apache-2.0
"""How fast the scene generator is: scenes per second, with the time of each part, and agreement of kernel and plain twin.

    python tools/bench_scenes.py --out out/scenes.json          # full size: 3 x 704 x 1280 and 128 x 1800
    python tools/bench_scenes.py --height 352 --width 640 --batch 64

Eagerly first, with few scenes; then compiled, whose first calls take minutes. Results are written after each part.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.sensors import load_sensor
from training.scenes import cast
from training.scenes.render import make_worlds, render_cameras, render_lidar, rig_rays, sample_ego
from training.scenes.seeds import EVALUATION_SEEDS

EAGER_SCENES = 2
"""Scenes of the eager batch: its pieces are of one scene, so that more only take longer."""


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Seconds of the first call of ``work``, and of the later ones in the mean."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times = []
    for count in (1, repeats):
        wait()
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        times.append((time.perf_counter() - start) / count)
    return times[0], times[1]


def compare_with_twin(device: torch.device) -> dict[str, float]:
    """Largest difference of distance, and share of rays that hit something else, against the plain twin."""
    from training.scenes import cast_kernel

    worlds = make_worlds(torch.arange(4, device=device) + EVALUATION_SEEDS.start)
    ego = sample_ego(worlds, worlds.seeds)
    directions = torch.nn.functional.normalize(torch.randn(4, 8, 500, 3, device=device), dim=-1)
    d = tuple(directions[..., i] * torch.tensor([1.0, 1.0, 0.3], device=device)[i] for i in range(3))
    o = tuple(ego.position[:, i, None, None] for i in range(3))
    t = torch.linspace(0.0, 0.1, 500, device=device)[None, None]
    plain, index = cast.nearest(worlds.prims, o, d, t)
    fast, fast_index = cast_kernel.nearest(worlds.prims, o, d, t)
    hit = plain < cast.FAR
    return {
        "rays_that_hit": float(hit.float().mean()),
        "share_of_other_hits": float(((index != fast_index) & hit).float().mean() + (hit != (fast < cast.FAR)).float().mean()),
        "largest_difference_m": float((plain - fast).abs()[hit & (index == fast_index)].max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--columns", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-shadows", action="store_true")
    parser.add_argument("--modes", default="eager,compiled", help="on the CPU eager is what there is")
    parser.add_argument("--seconds", type=float, default=600.0, help="no part is begun after this")
    parser.add_argument("--out", type=Path, help="write the JSON here as well, after each part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    begun, device = time.perf_counter(), torch.device(args.device)
    facts = {name: value for name, value in vars(args).items() if name != "out"}
    result: dict[str, Any] = facts | {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }

    def keep(place: dict[str, Any], name: str, value: Any) -> None:
        place[name] = value
        print(f"{time.perf_counter() - begun:.0f} s: {name} {json.dumps(value)}", flush=True)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    if device.type == "cuda":
        keep(result, "kernel_against_twin", compare_with_twin(device))
    for mode in args.modes.split(","):
        batch = min(args.batch, EAGER_SCENES) if mode == "eager" else args.batch
        found = result[mode] = {"batch": batch}
        total = 0.0
        for name, work in parts(args, device, batch, compiled=mode == "compiled").items():
            if time.perf_counter() - begun > args.seconds:
                keep(found, name, f"not begun: {args.seconds:g} s are over")
                continue
            print(f"{time.perf_counter() - begun:.0f} s: {mode} {name}, {batch} scenes", flush=True)
            first, later = timed(work, device, args.repeats if mode == "compiled" else 1)
            keep(found, name, {"first_call_s": round(first, 2), "ms_per_batch": round(1e3 * later, 2)})
            total += later
        if not any(isinstance(value, str) for value in found.values()):
            keep(found, "scenes_per_s", round(batch / total, 2))
        if device.type == "cuda":
            keep(found, "peak_memory_gb", round(torch.cuda.max_memory_allocated() / 1e9, 2))
            torch.cuda.reset_peak_memory_stats()


def parts(
    args: argparse.Namespace, device: torch.device, batch: int, compiled: bool
) -> dict[str, Callable[[], object]]:
    """What makes a batch of scenes, part by part."""
    sensor = load_sensor("pandar128").with_columns(args.columns)
    directions = torch.tensor(sensor.directions(), device=device)
    times = torch.tensor(sensor.column_times(), device=device)
    origins, rays = rig_rays(load_rig("published"), args.height, args.width, device)
    seeds = torch.arange(batch, device=device) + EVALUATION_SEEDS.start
    worlds = make_worlds(seeds)
    ego = sample_ego(worlds, seeds)
    return {
        "worlds": lambda: sample_ego(make_worlds(seeds), seeds),
        "lidar": lambda: render_lidar(worlds, directions, ego, column_times=times, compiled=compiled),
        "cameras": lambda: render_cameras(
            worlds, origins, rays, ego, shadows=not args.no_shadows, compiled=compiled
        ),
    }


if __name__ == "__main__":
    main()
