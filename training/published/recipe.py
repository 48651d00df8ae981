# SPDX-License-Identifier: Apache-2.0
"""How the published denoiser is trained further: its own data layout, loss, noise levels, optimiser and averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lidargen_ros.cameras.align import align
from lidargen_ros.metrics.ladder import constant_map
from lidargen_ros.models.checkpoints import load_diffusion
from lidargen_ros.models.dit_denoiser import Condition, DiffusionModel
from lidargen_ros.models.published import (
    CAMERA_TOKENIZERS,
    LIDAR_TOKENIZER,
    SIZES_FILE,
    read_sizes,
    write_sizes,
)
from lidargen_ros.models.published_sampling import sample_latent
from lidargen_ros.models.tokenizer_io import CONVERTED, save_tokenizer
from lidargen_ros.sensors import Sensor

from ..data.dataset import ClipFrame
from ..data.splits import open_splits, sensor_of, spread
from ..pairs import Pair, figures
from ..pictures import true_made_error
from ..published_loss import (
    clean_and_clip_gradients,
    ema_beta,
    ema_exponent,
    learning_rate_factor,
    published_loss,
)
from ..recipe import Kind, Position
from .config import PublishedExperiment
from .data import Batch, LatentFrames, measure_statistics, noised
from .start import build_model, build_pipeline, diffusion_config

FAR_AWAY_M = 1000.0  # a point there is in the picture where the camera looks along the ray
_VALIDATION_SEED = 1_000_003  # of the noise of validation losses, whatever the seed of the run


class PublishedRecipe:
    """See ``training/recipe.py``; ``experiment.precision`` bf16 computes the network in bfloat16 around float32 weights."""

    ahead = 2

    def __init__(self, experiment: PublishedExperiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        width = experiment.optimiser.ema_width
        self._ema_exponent = None if width is None else ema_exponent(width)
        data = experiment.data
        training, held_out = open_splits(data)
        sensor = sensor_of(experiment.sizes.sensor, training)
        self.pipeline = build_pipeline(experiment, sensor, device)
        measure_statistics(
            self.pipeline, training, spread(len(training), experiment.validation.statistics_frames)
        )
        self.training = LatentFrames(training, self.pipeline, experiment.seed, data.cache)
        self.held_out = LatentFrames(held_out, self.pipeline, cache=data.cache)

    def build_model(self) -> DiffusionModel:
        return build_model(self.experiment)

    def optimiser(self, model: DiffusionModel) -> torch.optim.Optimizer:
        o = self.experiment.optimiser
        trainable = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, o.lr, o.betas, o.eps, o.weight_decay)

    def learning_rate(self, at: Position) -> float:
        o = self.experiment.optimiser
        return o.lr * learning_rate_factor(at.step, o.warmup_steps)

    def clip_gradients(self, model: DiffusionModel) -> Tensor:
        return clean_and_clip_gradients(model.parameters(), self.experiment.optimiser.clip_norm)

    def ema_beta(self, step: int) -> float:
        return 0.0 if self._ema_exponent is None else ema_beta(step, self._ema_exponent)

    def batch(self, first: int, count: int) -> Batch:
        numbers = range(first, first + count)
        return noised(self.training.batch(numbers).to(self.device), numbers, self.experiment.seed)

    def losses(self, model: DiffusionModel, batch: Batch) -> dict[str, Tensor]:
        noisy = batch.clean + batch.sigma.reshape(-1, 1, 1, 1, 1) * batch.noise
        made = model.denoise(noisy, batch.sigma, Condition(batch.clean), batch.corruption)
        log_variance = model.log_variance(made.noise_level).float()
        terms = published_loss(batch.clean, made.x0, log_variance, batch.sigma)
        return {
            "loss": terms.loss,
            "weighted_error": terms.weighted_error,
            "log_variance": terms.log_variance.mean(),
        }

    def names(self, first: int, count: int) -> list[str]:
        items = (self.training.frames.items[self.training.index_of(n)] for n in range(first, first + count))
        return [f"{clip} frame {frame}" for clip, frame in items]

    def validate(self, model: DiffusionModel) -> dict[str, float]:
        """Losses at fixed noise, figures of sampled sweeps, and of what the tokenizer alone makes of the truth (``floor_``)."""
        v = self.experiment.validation
        shown = self._shown(v.frames)
        losses = []
        for k, index in enumerate(shown):
            clean = self.held_out.latent(index)[None].to(self.device)
            draws = range(k * v.noise_levels, (k + 1) * v.noise_levels)
            losses += [self.losses(model, noised(clean, [number], _VALIDATION_SEED)) for number in draws]
        means = {name: float(torch.stack([terms[name] for terms in losses]).mean()) for name in losses[0]}
        return means | figures(list(self.pairs(model, len(shown))), self.sensor)

    def ladder(self) -> dict[str, dict[str, float]]:
        """The best constant map of some training frames, on the frames of ``validate``."""
        maps = list(self.training_maps(self.experiment.validation.ladder_frames))
        constant = constant_map(maps)
        true = (
            self.pipeline.truth(self.held_out.frame(i).range_map).range_map
            for i in self._shown(self.experiment.validation.frames)
        )
        pairs = [Pair("", constant.range_map, t, constant.return_share) for t in true]
        return {"best constant map": figures(pairs, self.sensor)}

    def pictures(self, model: DiffusionModel) -> dict[str, NDArray]:
        pairs = self.pairs(model, self.experiment.validation.pictures)
        return {pair.name: true_made_error(pair.true, pair.generated) for pair in pairs}

    def shard_blocks(self, model: DiffusionModel) -> list[nn.Module]:
        return list(model.net.blocks.values())

    def layout(self, weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
        """As published: flat, ``reg`` in bfloat16, ``ema`` in float32."""
        return {k: v.bfloat16() if kind == "reg" else v for k, v in weights.items()}

    def export(self, folder: Path, weights: Mapping[str, Tensor], samples: int) -> None:
        """What ``lidargen generate --checkpoint RUN/checkpoints`` needs beside the weights: sizes and tokenizers."""
        folder = folder / "checkpoints"
        write_sizes(folder / SIZES_FILE, self.pipeline, diffusion_config(self.experiment)[1])
        for name, tokenizer in (
            (CAMERA_TOKENIZERS[0], self.pipeline.camera_tokenizer),
            (LIDAR_TOKENIZER, self.pipeline.lidar_tokenizer),
        ):
            target = folder / name / CONVERTED
            if not target.is_file():  # they do not change
                save_tokenizer(tokenizer, target)

    @property
    def sensor(self) -> Sensor:
        return self.pipeline.sensor

    def _seen(self, frame: ClipFrame) -> NDArray:
        assert frame.rig is not None
        return align(frame.rig, self.sensor, tile=self.pipeline.resize_hw, hypotheses=(FAR_AWAY_M,)).seen

    def _shown(self, limit: int) -> Sequence[int]:
        return spread(len(self.held_out.frames), limit)

    def trained(self, run: Path) -> DiffusionModel:
        """The averaged model that a run has written."""
        folder = run / "checkpoints"
        rounded = read_sizes(folder / SIZES_FILE).get("rounded_positions")
        return load_diffusion(folder, self.device, rounded_positions=rounded)

    @torch.no_grad()
    def pairs(self, model: DiffusionModel, limit: int) -> Iterator[Pair]:
        """Sampled sweeps of at most ``limit`` held-out frames, evenly spread; their noise depends on the frame alone."""
        pipeline = self.pipeline
        options = replace(pipeline.options, steps=self.experiment.validation.steps)
        seen = None
        for index in self._shown(limit):
            frame = self.held_out.frame(index)
            seen = self._seen(frame) if seen is None else seen  # the rig hardly differs between frames
            name = f"{frame.clip}_{frame.frame}"
            cameras = pipeline.encode_cameras(frame.images)
            latent = sample_latent(model, cameras, options, name, pipeline.sizes)
            before = self.held_out.frames.range_map_before(index)
            yield Pair(
                name,
                pipeline.decode(latent).range_map,
                pipeline.truth(frame.range_map).range_map,
                tokenizer=pipeline.decode(pipeline.encode_lidar(frame.range_map)).range_map,
                previous=None if before is None else pipeline.truth(before).range_map,
                seen=seen,
            )

    def training_maps(self, limit: int) -> Iterator[NDArray]:
        """True maps of at most ``limit`` training frames, for the ladder."""
        for index in spread(len(self.training.frames), limit):
            yield self.pipeline.truth(self.training.frame(index).range_map).range_map
