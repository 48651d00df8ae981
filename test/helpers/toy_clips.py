# SPDX-License-Identifier: Apache-2.0
"""Two small clips of the toy world with a training and a validation list, and experiments small enough for them."""

import numpy as np
from toy_clip import CLIP, write_clip
from toy_world import ToyWorld

from lidargen_ros.sensors import Sensor
from training.config import build, merge, parse_overrides, read_yaml
from training.config import experiment_path as path_of
from training.kinds import experiment_class

HELD_OUT = CLIP.replace("da1b2c3d", "1a1b2c3d")
LIDAR = Sensor("toy", np.linspace(8, -20, 16), 144, spin_time_s=0.1, max_range_m=80.0)
TOKENIZER = (
    "{channels: 32, channels_mult: [1, 1], num_res_blocks: 1, encoder_attention: [false, false], "
    "decoder_attention: [false, false], down: [space, none], up: [none, space]}"
)
PUBLISHED = [
    "random.model={width: 48, heads: 2, blocks: 2, adaln_width: 8, text_width: 8}", "sizes.lidar_latent=[8, 18]",
    "batch=2", "validation={frames: 1, pictures: 1, steps: 2, ladder_frames: 2, statistics_frames: 2}",
]  # fmt: skip
LIDAR_TOKENIZER = [
    "start.tokenizer=null", f"layout={TOKENIZER}", "data.columns=72", "data.window=40", "data.frames=2", "batch=2",
    "validation={clips: 1, frames: 2, statistics_frames: 2}", "optimiser.warmup_steps=5", "optimiser.lr=2e-3",
    "device=cpu", "precision=fp32",
]  # fmt: skip


def write_clips(root, spins=3):
    world = ToyWorld(sensor=LIDAR)
    for name, clip in (("train", CLIP), ("val", HELD_OUT)):
        write_clip(root, clip, spins=spins, world=world)
        (root / f"{name}.lst").write_text(f"{clip}\n")
    return root


def toy_experiment(name, clips, *more):
    small = {"published_tiny": PUBLISHED, "tokenizer_lidar": LIDAR_TOKENIZER}[name]
    values = merge(read_yaml(path_of(name)), parse_overrides([f"data.clips={clips}", *small]))
    values = merge(values, parse_overrides(more))
    return build(experiment_class(values["kind"], name), values)
