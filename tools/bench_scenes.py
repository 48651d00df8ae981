# SPDX-License-Identifier: Apache-2.0
"""How fast the scene generator is: scenes per second, with the time of each part, and agreement of kernel and plain twin.

python tools/bench_scenes.py                        # full size: 3 x 704 x 1280 and 128 x 1800
python tools/bench_scenes.py --height 352 --width 640 --batch 64
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.sensors import load_sensor
from training.scenes import cast
from training.scenes.render import make_worlds, render_cameras, render_lidar, rig_rays, sample_ego
from training.scenes.seeds import EVALUATION_SEEDS


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean seconds of ``work`` after one warm-up."""
    work()
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - start) / repeats


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
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--columns", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-shadows", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    sensor = load_sensor("pandar128").with_columns(args.columns)
    directions = torch.tensor(sensor.directions(), device=device)
    times = torch.tensor(sensor.column_times(), device=device)
    origins, rays = rig_rays(load_rig("published"), args.height, args.width, device)
    seeds = torch.arange(args.batch, device=device) + EVALUATION_SEEDS.start
    worlds = make_worlds(seeds)
    ego = sample_ego(worlds, seeds)

    parts = {
        "worlds": lambda: sample_ego(make_worlds(seeds), seeds),
        "lidar": lambda: render_lidar(worlds, directions, ego, column_times=times),
        "cameras": lambda: render_cameras(worlds, origins, rays, ego, shadows=not args.no_shadows),
    }
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **vars(args),
    }
    if device.type == "cuda":
        result["kernel_against_twin"] = compare_with_twin(device)
    total = 0.0
    for name, work in parts.items():
        start = time.perf_counter()
        work()
        result[f"{name}_first_call_s"] = round(time.perf_counter() - start, 2)
        seconds = timed(work, device, args.repeats)
        result[f"{name}_ms_per_batch"] = round(1e3 * seconds, 2)
        total += seconds
    result["scenes_per_s"] = round(args.batch / total, 1)
    if device.type == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
