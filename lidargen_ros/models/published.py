# SPDX-License-Identifier: Apache-2.0
"""The published pipeline put together: three pictures in, one sweep out.

    pictures -> crop -> camera tokenizer -> latents -> diffusion model -> LiDAR latent -> LiDAR tokenizer -> ranges

``PublishedOptions`` says what is done as published and what is corrected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cameras.preprocess import RESIZE_HW, preprocess
from ..errors import CheckpointError, ConfigError, InputError
from ..files import replacing
from ..projection import crop_columns, downsample, pad_columns, pick_rows, repeat_rows
from ..range_coding import MAX_M, MIN_M, decode_linear, encode_linear
from ..sampling import Progress
from ..sensors import Sensor, load_sensor
from ..sweep import Sweep
from .checkpoints import Kind, find_checkpoint, load_diffusion
from .dit_denoiser import DiffusionModel
from .dit_graph import GraphedCall
from .dit_latents import encode_views
from .published_options import PublishedOptions
from .published_sampling import LatentSizes, sample_latent
from .tokenizer_codec import Tokenizer
from .tokenizer_io import load_tokenizer

ROW_REPEAT = 4  # copies of each beam that make a picture of usual proportions for the LiDAR tokenizer
CAMERA_TOKENIZERS = ("Cosmos-Tokenize1-CV8x8x8-720p-image", "Cosmos-Tokenize1-CV8x8x8-720p")
SIZES_FILE = "pipeline.json"
LIDAR_TOKENIZER = "Cosmos-Tokenizer-CI8x8-Lidar"


@dataclass(frozen=True)
class Generated:
    """A sweep and the normalised LiDAR latent ``[1, C, 1, h, w]`` it was decoded from."""

    sweep: Sweep
    latent: Tensor


class PublishedPipeline:
    """Generates sweeps with the published model, one frame at a time.

    Args:
        model: diffusion model, on the device to use.
        camera_tokenizer, lidar_tokenizer: loaded tokenizers; they are moved to that device.
        options: mode and its changes.
        sizes: latent sizes; other than the published ones for small test networks only.
        resize_hw: size to which pictures are resized before the centre crop.
        sensor: LiDAR that is imitated, one full turn at the width before cropping.
        device: where to encode and decode; by default where the model is.
    """

    def __init__(
        self,
        model: DiffusionModel,
        camera_tokenizer: Tokenizer,
        lidar_tokenizer: Tokenizer,
        options: PublishedOptions | None = None,
        sizes: LatentSizes | None = None,
        resize_hw: tuple[int, int] = RESIZE_HW,
        sensor: Sensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self.device = device or model.net.view_embeddings.weight.device
        self.camera_tokenizer = camera_tokenizer.to(self.device)
        self.lidar_tokenizer = lidar_tokenizer.to(self.device)
        self.options = options or PublishedOptions.corrected()
        self.sizes = sizes or LatentSizes()
        self.resize_hw = resize_hw
        self.sensor = sensor or load_sensor("pandar128")
        camera, lidar = (t.config.spatial_compression for t in (camera_tokenizer, lidar_tokenizer))
        self.crop_hw = (self.sizes.camera[0] * camera, self.sizes.camera[1] * camera)
        self.map_shape = (self.sizes.lidar[0] * lidar // ROW_REPEAT, self.sizes.lidar[1] * lidar)
        if self.map_shape[0] != self.sensor.rows or self.map_shape[1] > self.sensor.columns:
            raise ConfigError(
                f"range maps of {self.map_shape} do not fit sensor {self.sensor.name!r} of {self.sensor.shape}: "
                "choose the sensor that the model was trained for"
            )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "cuda",
        options: PublishedOptions | None = None,
        camera_tokenizer: str | Path | None = None,
        lidar_tokenizer: str | Path | None = None,
        kind: Kind = "ema",
        trust: bool = False,
        compile_blocks: bool = False,
        cuda_graph: bool = False,
    ) -> PublishedPipeline:
        """From files. Tokenizers are looked for where ``lidargen download`` puts them, unless given.

        A model of other than the published picture sizes says so in ``pipeline.json`` beside its weights
        (``write_sizes``).

        Raises:
            CheckpointError: a file is absent, damaged or does not fit. ConfigError: not enough memory.
        """
        options = options or PublishedOptions.corrected()
        weights = find_checkpoint(checkpoint, kind)
        folder = weights.parent
        as_published = options.mode == "reference"
        tokenizers = load_tokenizers(
            folder, camera_tokenizer, lidar_tokenizer, trust=trust, reference=as_published
        )
        sizes = read_sizes(folder / SIZES_FILE)
        model = load_diffusion(
            weights, device, kind=kind, rounded_positions=sizes.pop("rounded_positions", None)
        )
        pipeline = cls(model, tokenizers[0], tokenizers[1], options, **sizes)
        if compile_blocks:
            model.net.compile_blocks(dynamic=False)
        if cuda_graph:
            model.call = GraphedCall(model.net)
        return pipeline

    @property
    def views(self) -> int:
        """Number of cameras."""
        return self.model.net.config.views - 1

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray], frame: str = "", stamp_ns: int = 0, progress: Progress | None = None
    ) -> Generated:
        """Generate one sweep.

        Args:
            images: RGB uint8 ``[h, w, 3]`` of front, rear left and rear right camera, any size.
            frame: name of the frame; in corrected mode the noise depends on it and on the seed alone.
            stamp_ns: stamp of the sweep.

        Raises:
            InputError: wrong number or type of images.
        """
        latent = sample_latent(
            self.model, self.encode_cameras(images), self.options, frame, self.sizes, progress=progress
        )
        return Generated(self.decode(latent, stamp_ns), latent)

    def encode_cameras(self, images: Sequence[NDArray]) -> Tensor:
        """Normalised camera latents ``[1, C, views, h, w]``."""
        if len(images) != self.views:
            raise InputError(
                f"{len(images)} images given, the model takes {self.views}: front, rear left, rear right"
            )
        dtype = self.model.dtype if self.options.model_arithmetic else torch.float32
        pixels = [torch.from_numpy(preprocess(image, self.resize_hw, self.crop_hw)) for image in images]
        views = [p[None, :, None].to(self.device, dtype) for p in pixels]
        return encode_views(self.camera_tokenizer.encode, views)

    def decode(self, latent: Tensor, stamp_ns: int = 0) -> Sweep:
        """LiDAR latent ``[1, C, 1, h, w]`` to a sweep."""
        codes = self.lidar_tokenizer.decode(latent)[0, :, 0].float()
        ranges = decode_linear(
            pick_rows(codes, ROW_REPEAT).mean(0),
            near_m=self.options.near_buffer,
            far_m=self.options.far_buffer,
        )
        return self._sweep(ranges.cpu().numpy(), stamp_ns)

    def _sweep(self, ranges: NDArray, stamp_ns: int) -> Sweep:
        if not self.options.stretched_azimuth:
            return Sweep(pad_columns(ranges, self.sensor.columns), self.sensor, stamp_ns)
        # As published: the crop spread over the whole turn, rays on left bin edges, half a bin before the centre.
        columns = ranges.shape[1]
        half_bin = 0.5 * np.rad2deg(self.sensor.with_columns(columns).column_step_rad)
        start = self.sensor.azimuth_start_deg - half_bin
        stretched = replace(
            self.sensor, name=f"{self.sensor.name}_stretched", columns=columns, azimuth_start_deg=start
        )
        return Sweep(ranges, stretched, stamp_ns)

    def encode_lidar(self, range_map: NDArray) -> Tensor:
        """Normalised latent ``[1, C, 1, h, w]`` of a measured map ``[rows, columns]`` at full or half width."""
        factor, rest = divmod(range_map.shape[1], self.sensor.columns)
        if range_map.shape[0] != self.sensor.rows or rest or factor < 1:
            raise InputError(
                f"range map is {range_map.shape}; expected {self.sensor.rows} rows and a multiple of "
                f"{self.sensor.columns} columns"
            )
        ranges, _ = downsample(
            range_map.astype(np.float32), 1, factor, reference=self.options.mode == "reference"
        )
        codes = torch.from_numpy(
            repeat_rows(crop_columns(encode_linear(ranges), self.map_shape[1]), ROW_REPEAT)
        )
        return self.lidar_tokenizer.encode(codes.expand(1, 3, 1, *codes.shape).to(self.device))

    @torch.no_grad()
    def truth(self, range_map: NDArray, stamp_ns: int = 0) -> Sweep:
        """The measured sweep to show beside a generated one.

        In reference mode after a round trip through the LiDAR tokenizer, as the published program shows it;
        otherwise the measurement itself, cut to the model's range window.
        """
        if self.options.mode == "reference":
            latent = self.encode_lidar(range_map)
            dtype = self.model.dtype if self.options.model_arithmetic else latent.dtype
            return self.decode(latent.to(dtype), stamp_ns)
        ranges, _ = downsample(range_map.astype(np.float32), 1, range_map.shape[1] // self.sensor.columns)
        inside = (ranges > MIN_M) & (ranges < MAX_M)
        return Sweep(np.where(inside, ranges, 0), self.sensor, stamp_ns)


def write_sizes(path: Path, pipeline: PublishedPipeline, rounded_positions: bool) -> None:
    """Write ``pipeline.json``: sizes and sensor, and with which position tables the weights were trained, because a
    float32 average of bfloat16 weights does not tell."""
    content = {
        "lidar_latent": pipeline.sizes.lidar,
        "camera_latent": pipeline.sizes.camera,
        "resize_hw": pipeline.resize_hw,
        "sensor": pipeline.sensor.to_dict(),
        "rounded_positions": rounded_positions,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read_sizes(path: Path) -> dict[str, Any]:
    """Arguments for ``PublishedPipeline`` from ``pipeline.json``; none if there is no such file.

    Keys: ``lidar_latent``, ``camera_latent``, ``resize_hw`` (two numbers each), ``sensor`` (see ``Sensor.from_dict``);
    ``rounded_positions`` (for ``load_diffusion``) where the file has it.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        lidar, camera, resize_hw = (
            (int(a), int(b)) for a, b in (content[k] for k in ("lidar_latent", "camera_latent", "resize_hw"))
        )
        sensor = Sensor.from_dict(content["sensor"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: needs lidar_latent, camera_latent, resize_hw (two numbers each) and sensor ({error!r})"
        ) from error
    found = {"sizes": LatentSizes(lidar, camera), "resize_hw": resize_hw, "sensor": sensor}
    if "rounded_positions" in content:
        found["rounded_positions"] = bool(content["rounded_positions"])
    return found


def load_tokenizers(
    folder: Path,
    camera: str | Path | None = None,
    lidar: str | Path | None = None,
    *,
    trust: bool = False,
    reference: bool = False,
) -> tuple[Tokenizer, Tokenizer]:
    """Camera and LiDAR tokenizer with their statistics; see ``find_tokenizers`` and ``load_tokenizer``.

    Raises:
        CheckpointError: one is absent, damaged, of the other's family or without statistics.
    """
    loaded = []
    for path, family in zip(find_tokenizers(folder, camera, lidar), ("video", "image"), strict=True):
        tokenizer = load_tokenizer(path, trust=trust, reference=reference)
        if tokenizer.config.kind != family:
            raise CheckpointError(
                f"{path}: is of the {tokenizer.config.kind} family; cameras need a video tokenizer (CV8x8x8), the LiDAR "
                "an image tokenizer (CI8x8)"
            )
        if tokenizer.stats is None:
            raise CheckpointError(f"{path}: lacks mean_std.pt; put the tokenizer's own beside its weights")
        loaded.append(tokenizer)
    return loaded[0], loaded[1]


def find_tokenizers(
    folder: Path, camera: str | Path | None = None, lidar: str | Path | None = None
) -> tuple[str | Path, str | Path]:
    """Camera and LiDAR tokenizer: those given, else where ``lidargen download`` puts them around the weights.

    Raises:
        CheckpointError: one is not there.
    """
    return (
        camera or _first([folder / name for name in CAMERA_TOKENIZERS], "camera_tokenizer"),
        lidar or _first([folder / LIDAR_TOKENIZER, folder.parent / LIDAR_TOKENIZER], "lidar_tokenizer"),
    )


def _first(folders: Sequence[Path], option: str) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"{folders[0]}: no such tokenizer; get it with `lidargen download` or name it with --{option}"
    )
