# SPDX-License-Identifier: Apache-2.0
"""Renders ``docs/images/scenes.jpg``: a few worlds of every layout, three cameras and the range map of each.

python tools/contact_sheet.py [--out docs/images/scenes.jpg] [--worlds 2]
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.colour import depth_colours, to_uint8
from lidargen_ros.sensors import load_sensor
from training.scenes.render import LAYOUTS, make_worlds, render_cameras, render_lidar, rig_rays, sample_ego
from training.scenes.seeds import EVALUATION_SEEDS

HEIGHT, WIDTH, BAND = 176, 320, 84  # pixels of a camera view; height of the range map


def scene(seed: int, layout: int, device: str) -> np.ndarray:
    """One tile: three views side by side above the range map, uint8 RGB."""
    worlds = make_worlds(torch.tensor([seed], device=device), torch.tensor([layout], device=device))
    ego = sample_ego(worlds, worlds.seeds)
    views = (
        render_cameras(worlds, *rig_rays(load_rig("published"), HEIGHT, WIDTH, device), ego)[0].cpu().numpy()
    )
    directions = torch.tensor(load_sensor("pandar128").with_columns(3 * WIDTH).directions(), device=device)
    ranges = render_lidar(worlds, directions, ego)["range"][0].cpu().numpy()
    coloured = to_uint8(depth_colours(ranges, 3.0, 100.0))
    band = cv2.resize(coloured, (3 * WIDTH, BAND), interpolation=cv2.INTER_AREA)
    tile = np.concatenate([np.concatenate(list(views), 1), band])
    tile = np.pad(tile, ((0, 6), (0, 6), (0, 0)), constant_values=255)
    label = f"{LAYOUTS[layout]}, seed {seed}"
    cv2.putText(tile, label, (6, HEIGHT - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images/scenes.jpg"))
    parser.add_argument("--worlds", type=int, default=2, help="per layout")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    rows = []
    for layout in range(len(LAYOUTS)):
        seeds = [EVALUATION_SEEDS.start + layout * args.worlds + i for i in range(args.worlds)]
        rows.append(np.concatenate([scene(seed, layout, args.device) for seed in seeds], 1))
    sheet = np.concatenate(rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    print(f"{args.out}: {sheet.shape[1]} x {sheet.shape[0]}")


if __name__ == "__main__":
    main()
