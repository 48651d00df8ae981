# SPDX-License-Identifier: Apache-2.0
"""Makes a checkpoint of the published model's layout with random weights: its sweeps mean nothing.

    python tools/random_checkpoint.py --out /tmp/random          # 7.2 billion parameters in bfloat16, 15 GB
    python tools/random_checkpoint.py --out /tmp/tiny --tiny     # the same layout in under 1 MB

With it, loading, exporting and serving can be tried at full size where the published weights are not to be had. Each
tensor is drawn and written when its turn comes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.cameras.preprocess import RESIZE_HW
from lidargen_ros.errors import ConfigError, LidargenError
from lidargen_ros.files import replacing
from lidargen_ros.models.checkpoints import POSITION_KEY, module_bytes
from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_denoiser import DiffusionModel
from lidargen_ros.models.download import require_space
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
from lidargen_ros.models.tokenizer_io import CONVERTED, save_tokenizer
from lidargen_ros.sensors import Sensor, load_sensor

WEIGHTS = "model.safetensors"
BYTES = 2  # of a bfloat16


@dataclass(frozen=True)
class Layout:
    """Sizes of everything that a checkpoint holds."""

    denoiser: DiTConfig
    camera: TokenizerConfig
    lidar: TokenizerConfig
    latents: LatentSizes
    resize_hw: tuple[int, int]
    sensor: Sensor


def tiny_tokenizer(kind: str, step: str) -> TokenizerConfig:
    return TokenizerConfig(
        kind=kind, channels=8, channels_mult=(1, 1), num_res_blocks=1, num_groups=4 if kind == "image" else 1,
        encoder_attention=(False, False), decoder_attention=(False, False), down=(step, NO), up=(NO, step),
    )  # fmt: skip


PUBLISHED = Layout(
    denoiser=DiTConfig(),
    camera=TokenizerConfig(
        kind="video", num_groups=1, decoder_attention=(False, False, False),
        down=(SPACE_TIME, NO, NO), up=(NO, SPACE_TIME, NO),
    ),
    lidar=TokenizerConfig(),
    latents=LatentSizes(),
    resize_hw=RESIZE_HW,
    sensor=load_sensor("pandar128"),
)  # fmt: skip
TINY = Layout(
    denoiser=DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8),
    camera=tiny_tokenizer("video", SPACE_TIME),
    lidar=tiny_tokenizer("image", SPACE),
    latents=LatentSizes((4, 6), (6, 4)),
    resize_hw=(50, 32),
    sensor=Sensor("test8", np.linspace(5, -20, 8), 52),
)


def write_checkpoint(folder: Path, layout: Layout) -> Path:
    """Writes denoiser, tokenizers and sizes as ``lidargen download`` lays them out, all or nothing; the same ones every time.

    Raises:
        ConfigError: the folder has something in it, or too little space.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; give a new folder with --out")
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DiffusionModel(layout.denoiser, rounded_positions=True).bfloat16()
    camera, lidar = random_tokenizer(layout.camera).bfloat16(), random_tokenizer(layout.lidar)  # as published
    parts = {WEIGHTS: model, CAMERA_TOKENIZERS[0]: camera, LIDAR_TOKENIZER: lidar}
    require_space(folder, {name: module_bytes(part) for name, part in parts.items()})
    try:
        save_tokenizer(camera, folder / CAMERA_TOKENIZERS[0] / CONVERTED)
        save_tokenizer(lidar, folder / LIDAR_TOKENIZER / CONVERTED)
        pipeline = PublishedPipeline(
            model, camera, lidar, sizes=layout.latents, resize_hw=layout.resize_hw, sensor=layout.sensor,
            device=torch.device("cpu"),
        )  # fmt: skip
        write_sizes(folder / SIZES_FILE, pipeline, rounded_positions=True)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        write_random(folder / WEIGHTS, shapes)
    finally:
        if not (folder / WEIGHTS).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def random_tokenizer(config: TokenizerConfig) -> Tokenizer:
    channels = config.latent_channels
    stats = LatentStats(torch.zeros(channels, 1), torch.full((channels, 1), 0.5))
    return Tokenizer(build_network(config), stats)


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of random bfloat16 tensors, one in memory at a time.

    The library's own writer wants all of them at once. The format is the length of a header in eight bytes, the header
    in JSON, padded to a multiple of eight, and the tensors one after another.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(random_weight(name, shape, generator).view(torch.uint8).numpy())


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Maps keep the size of what they map, gains are 1, positions count."""
    if name == POSITION_KEY:
        return torch.arange(shape[0]).bfloat16()
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5, generator=generator)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that is not there yet")
    parser.add_argument("--tiny", action="store_true", help="a network of toy size, for tests")
    given = parser.parse_args(arguments)
    try:
        write_checkpoint(given.out, TINY if given.tiny else PUBLISHED)
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {given.out}: {error.strerror}; free some space or give another --out", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; nothing is left in {given.out}", file=sys.stderr)
        return 130
    print(f"{given.out}: {sum(f.stat().st_size for f in given.out.rglob('*') if f.is_file()) / 1e9:.3g} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
