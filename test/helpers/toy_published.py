# SPDX-License-Identifier: Apache-2.0
"""A published model of toy size on disk: random denoiser, two tokenizers, and the sizes beside them."""

import numpy as np
import torch
from safetensors.torch import save_file

from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_denoiser import DiffusionModel
from lidargen_ros.models.latents import LatentStats
from lidargen_ros.models.published import (
    CAMERA_TOKENIZERS,
    LIDAR_TOKENIZER,
    SIZES_FILE,
    PublishedPipeline,
    write_sizes,
)
from lidargen_ros.models.published_sampling import LatentSizes
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network
from lidargen_ros.models.tokenizer_config import NO, SPACE, SPACE_TIME, TokenizerConfig
from lidargen_ros.models.tokenizer_io import save_tokenizer
from lidargen_ros.sensors import Sensor


def tokenizer(kind):
    step = SPACE if kind == "image" else SPACE_TIME
    config = TokenizerConfig(
        kind=kind, channels=8, channels_mult=(1, 1), num_res_blocks=1, num_groups=4 if kind == "image" else 1,
        encoder_attention=(False, False), decoder_attention=(False, False), down=(step, NO), up=(NO, step),
    )  # fmt: skip
    stats = LatentStats(torch.zeros(16, 1), torch.full((16, 1), 0.5))
    return Tokenizer(build_network(config), stats).eval().requires_grad_(False)


def write_checkpoint(folder):
    """The folder, as ``lidargen download`` lays it out."""
    torch.manual_seed(0)
    model = DiffusionModel(DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8), True)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.05)
    model.bfloat16()
    camera, lidar = tokenizer("video"), tokenizer("image")
    sensor = Sensor("test8", np.linspace(5, -20, 8), 52)
    pipeline = PublishedPipeline(
        model, camera, lidar, sizes=LatentSizes((4, 6), (6, 4)), resize_hw=(50, 32), sensor=sensor
    )
    for name, part in ((CAMERA_TOKENIZERS[0], camera), (LIDAR_TOKENIZER, lidar)):
        (folder / name).mkdir(parents=True)
        save_tokenizer(part, folder / name / "tokenizer.safetensors")
    save_file(model.state_dict(), folder / "model.safetensors")
    write_sizes(folder / SIZES_FILE, pipeline, rounded_positions=True)
    return folder
