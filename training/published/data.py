# SPDX-License-Identifier: Apache-2.0
"""Clips as the published denoiser trains on them: the joint latent of one frame per sample.

A sample number means a clip (shuffled anew in each pass) and one of its frames, drawn at random, as published.
Latents come from the pipeline that also generates, so training and use cannot differ; they are the same every time
and may be kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.models.dit_denoiser import AUGMENT_MEAN, AUGMENT_STD, Corruption
from lidargen_ros.models.dit_latents import join
from lidargen_ros.models.latents import LatentStats
from lidargen_ros.models.published import PublishedPipeline
from lidargen_ros.models.tokenizer_codec import Tokenizer
from lidargen_ros.preconditioning import lognormal_sigma

from ..data.cache import TensorCache
from ..data.dataset import ClipFrame, FrameDataset, readable
from ..data.order import Shuffled
from ..draws import normal, sample_rng
from ..published_loss import training_sigma

FRAME, LEVELS, NOISE, CAMERA_NOISE = range(4)  # purposes of the draws of a sample


class LatentFrames:
    """Joint latents ``[C, V, H, W]`` of the frames of clips, float32 on the CPU.

    Args:
        cache: folder that keeps them; None encodes a frame each time it is met.
    """

    def __init__(
        self,
        frames: FrameDataset,
        pipeline: PublishedPipeline,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.frames, self.pipeline, self._seed = frames, pipeline, seed
        names = frames.clips.names
        counts = [len(frames.clips.frames[name]) for name in names]
        self._first, self._counts = np.concatenate([[0], np.cumsum(counts)[:-1]]), counts
        self._order = Shuffled(len(names), seed)
        folder = Path(cache) / fingerprint(pipeline) if cache else None
        self._cache = TensorCache(folder)
        self._reading = RLock()  # readers and networks serve one thread at a time

    def index_of(self, number: int) -> int:
        """Item of ``frames`` that sample ``number`` means."""
        clip = self._order[number]
        drawn = sample_rng(self._seed, number, purpose=FRAME).integers(self._counts[clip])
        return int(self._first[clip] + drawn)

    def latent(self, index: int) -> Tensor:
        """Joint latent of an item; raises DataError where its frame cannot be read."""
        clip, frame = self.frames.items[index]
        with self._reading:
            return self._cache(f"{clip}_{frame}", lambda: {"latent": self._encoded(index)})["latent"]

    def frame(self, index: int) -> ClipFrame:
        """The frame itself; raises DataError where it cannot be read."""
        with self._reading:
            return readable(self.frames, index)

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """``[B, C, V, H, W]`` of these sample numbers."""
        return torch.stack([self.latent(self.index_of(number)) for number in numbers])

    def _encoded(self, index: int) -> Tensor:
        frame = self.frame(index)
        lidar, cameras = (
            self.pipeline.encode_lidar(frame.range_map),
            self.pipeline.encode_cameras(frame.images),
        )
        return join(lidar.float(), cameras.float())[0].cpu()


def fingerprint(pipeline: PublishedPipeline) -> str:
    """Name for latents that only equal tokenizers and sizes share."""
    digest = hashlib.sha256(repr((pipeline.sizes, pipeline.resize_hw, pipeline.sensor.to_dict())).encode())
    for tokenizer in (pipeline.camera_tokenizer, pipeline.lidar_tokenizer):
        for name, value in tokenizer.state_dict().items():
            digest.update(
                name.encode()
                + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:16]


@torch.no_grad()
def measure_statistics(pipeline: PublishedPipeline, frames: FrameDataset, chosen: Sequence[int]) -> None:
    """Give tokenizers without statistics those of some frames, so that their latents have unit scale."""
    makers: dict[str, Callable[[ClipFrame], Tensor]] = {
        "camera_tokenizer": lambda frame: pipeline.encode_cameras(frame.images),
        "lidar_tokenizer": lambda frame: pipeline.encode_lidar(frame.range_map),
    }
    for name, encode in makers.items():
        tokenizer: Tokenizer = getattr(pipeline, name)
        if tokenizer.stats is None:
            one = torch.ones(tokenizer.config.latent_channels, 1, device=pipeline.device)
            tokenizer.stats = LatentStats(torch.zeros_like(one), one)
            measured = LatentStats.measure(encode(readable(frames, index)).cpu() for index in chosen)
            tokenizer.stats = measured.to(device=pipeline.device, dtype=tokenizer.network.dtype)


@dataclass(frozen=True)
class Batch:
    """Clean joint latents ``[B, C, V, H, W]``, and what chance decides: noise levels, noise, corruption of the cameras."""

    clean: Tensor
    sigma: Tensor  # [B]
    noise: Tensor
    corruption: Corruption


def noised(clean: Tensor, numbers: Sequence[int], seed: int) -> Batch:
    """The batch of these sample numbers: all draws depend on the seed and the number alone."""
    levels = []
    for number in numbers:
        rng = sample_rng(seed, number, purpose=LEVELS)
        corruption = lognormal_sigma(rng.uniform(size=1), AUGMENT_MEAN, AUGMENT_STD)[0]
        levels.append((training_sigma(1, rng.uniform)[0], corruption))
    sigma, corruption = torch.tensor(levels, dtype=torch.float32, device=clean.device).unbind(1)
    noise, camera_noise = (
        normal(seed, numbers, clean.shape[1:], clean.device, purpose) for purpose in (NOISE, CAMERA_NOISE)
    )
    return Batch(clean, sigma, noise, Corruption(corruption, camera_noise))
