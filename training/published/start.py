# SPDX-License-Identifier: Apache-2.0
"""What a run with the published denoiser begins with: network and tokenizers, from files or with random weights."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lidargen_ros.models.checkpoints import config_of, find_checkpoint, load_diffusion, open_weights
from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_denoiser import DiffusionModel, log_variance_head
from lidargen_ros.models.published import SIZES_FILE, PublishedPipeline, read_sizes
from lidargen_ros.models.published_options import PublishedOptions
from lidargen_ros.models.published_sampling import LatentSizes
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network
from lidargen_ros.models.tokenizer_config import TokenizerConfig
from lidargen_ros.models.tokenizer_io import load_tokenizer
from lidargen_ros.sensors import Sensor

from .config import PublishedExperiment, Start

log = logging.getLogger(__name__)


def diffusion_config(config: PublishedExperiment) -> tuple[DiTConfig, bool]:
    """Size of the network, and whether its position tables are rounded to bfloat16, as those of bfloat16 weights were."""
    if config.start.checkpoint is None:
        return config.random.model, False
    file = find_checkpoint(config.start.checkpoint, config.start.kind)
    with open_weights(file) as weights:
        size = config_of(weights)
        half = weights.get("net.x_embedder.proj.1.weight").dtype is torch.bfloat16
        return size, read_sizes(file.parent / SIZES_FILE).get("rounded_positions", half)


def build_model(config: PublishedExperiment) -> DiffusionModel:
    """The network on the CPU in float32: loaded, or as a fresh model is drawn from the seed.

    Cross-attention is frozen: the text is zero, so it is a no-op without gradient, and only weight decay would move it.
    """
    size, rounded = diffusion_config(config)
    if config.start.checkpoint is not None:
        model = load_diffusion(
            config.start.checkpoint, "cpu", torch.float32, rounded_positions=rounded, kind=config.start.kind
        )
    else:
        log.warning("the denoiser begins with random weights (start.checkpoint is not given)")
        with torch.device("meta"):
            model = DiffusionModel(size, rounded)
        model = model.to_empty(device="cpu")
        model.net.init_weights(torch.Generator().manual_seed(config.seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model.logvar = log_variance_head()
    model.requires_grad_(True)
    for block in model.net.blocks.values():
        block.blocks[1].requires_grad_(False)
    return model


def build_pipeline(config: PublishedExperiment, sensor: Sensor, device: torch.device) -> PublishedPipeline:
    """Everything of the published pipeline but the weights of the denoiser, which the loop holds."""
    with torch.device("meta"):
        shape_only = DiffusionModel(*diffusion_config(config))
    start, sizes = config.start, config.sizes
    return PublishedPipeline(
        shape_only,
        _tokenizer(
            start.camera_tokenizer, config.random.camera_tokenizer, "camera_tokenizer", start, config.seed
        ),
        _tokenizer(
            start.lidar_tokenizer, config.random.lidar_tokenizer, "lidar_tokenizer", start, config.seed
        ),
        PublishedOptions.corrected(),
        LatentSizes(sizes.lidar_latent, sizes.camera_latent),
        sizes.resize_hw,
        sensor,
        device,
    )


def _tokenizer(path: str | None, layout: TokenizerConfig, name: str, start: Start, seed: int) -> Tokenizer:
    if path is not None:
        return load_tokenizer(Path(path), trust=start.trust)
    log.warning("the %s has random weights (start.%s is not given)", name.replace("_", " "), name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tokenizer(build_network(layout).eval().requires_grad_(False))
