# SPDX-License-Identifier: Apache-2.0
"""How the LiDAR tokenizer is trained further: reconstruction of range images, no average of weights, new latent statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lidargen_ros.errors import CheckpointError
from lidargen_ros.metrics.range_errors import range_errors
from lidargen_ros.models.latents import LatentStats
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network
from lidargen_ros.models.tokenizer_config import TokenizerConfig
from lidargen_ros.models.tokenizer_io import CONVERTED, load_tokenizer, network_from_state, save_tokenizer
from lidargen_ros.models.tokenizer_network import TokenizerNetwork
from lidargen_ros.projection import downsample
from lidargen_ros.range_coding import MAX_M, MIN_M
from lidargen_ros.sensors import Sensor

from ..data.dataset import ClipFrame, FrameDataset, readable
from ..data.splits import spread
from ..pairs import Pair
from ..pictures import true_made_error
from ..recipe import Kind, Position
from ..tokenizer_loss import TokenizerLoss, Vgg16, psnr, ssim, to_bytes
from .config import TokenizerExperiment
from .data import Images, RangeClips, frames_of, metres, whole_image

log = logging.getLogger(__name__)


class TokenizerRecipe:
    """See ``training/recipe.py``."""

    ahead = 2

    def __init__(self, experiment: TokenizerExperiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        self._network = starting_network(experiment)
        self._multiple = self._network.config.spatial_compression
        if experiment.vgg is None:
            log.warning(
                "without vgg=FILE the loss is the colour term alone, which is not the published objective"
            )
        vgg = None if experiment.vgg is None else Vgg16.from_file(experiment.vgg)
        self.loss = TokenizerLoss(vgg).to(device)
        data = experiment.data
        self._seen = FrameDataset(data.root(), data.list_of(data.split), cameras=())
        self._held_out = FrameDataset(data.root(), data.list_of(data.val_split), cameras=())
        sensor = self._seen.clips.reader(self._seen.clips.names[0]).sensor
        self.training = RangeClips(data, sensor, self._multiple, experiment.seed)
        self.sensor: Sensor = sensor.with_columns(data.columns)

    def build_model(self) -> TokenizerNetwork:
        return self._network

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        o = self.experiment.optimiser
        return torch.optim.AdamW(model.parameters(), o.lr, o.betas, o.eps, o.weight_decay)

    def learning_rate(self, at: Position) -> float:
        o = self.experiment.optimiser
        return o.lr * min((at.step + 1) / o.warmup_steps, 1.0)

    def clip_gradients(self, model: nn.Module) -> Tensor:
        return nn.utils.clip_grad_norm_(model.parameters(), self.experiment.optimiser.clip_norm)

    def ema_beta(self, step: int) -> float:
        return 0.0

    def batch(self, first: int, count: int) -> Images:
        pixels = self.training.batch(range(first, first + count)).to(self.device)
        return Images(pixels, first // self.experiment.batch)

    def losses(self, model: nn.Module, batch: Images) -> dict[str, Tensor]:
        terms = self.loss(batch.pixels, model(batch.pixels), batch.step)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def names(self, first: int, count: int) -> list[str]:
        return self.training.names(range(first, first + count))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Errors as published: over rays inside the range window both in truth and reconstruction; and picture scores."""
        made, true, scores = [], [], []
        v = self.experiment.validation
        for frame in frames_of(self._held_out, v.clips, v.frames):
            range_map = self._reduced(frame.range_map)
            image, pixels = self._reconstructed(model, range_map)
            made.append(self._metres(pixels))
            true.append(self._metres(image))
            a, b = to_bytes(image), to_bytes(pixels)
            scores.append((psnr(a, b), ssim(a, b)))
        both = (np.stack(made) > 0) & (np.stack(true) > 0)
        errors = range_errors(np.stack(made), np.stack(true), both)
        found = {name: errors[name] for name in ("rmse_m", "mae_m", "abs_rel") if errors[name] is not None}
        return {**found, **dict(zip(("psnr", "ssim"), np.mean(scores, axis=0).tolist(), strict=True))}

    def ladder(self) -> dict[str, dict[str, float]]:
        """Empty: what a tokenizer has to beat is the one it began with, the first point of the curve."""
        return {}

    def pictures(self, model: nn.Module) -> dict[str, NDArray]:
        frames = frames_of(self._held_out, self.experiment.validation.clips, 1)
        pairs = (self._pair(model, frame) for frame in frames)
        return {pair.name: true_made_error(pair.true, pair.generated) for pair in pairs}

    def shard_blocks(self, model: TokenizerNetwork) -> list[nn.Module]:
        encoder, decoder = model.encoder, model.decoder
        return [*encoder.down, encoder.mid, decoder.mid, *decoder.up]

    def layout(self, weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
        """As published: prefixed names under ``model``, without the constants of the patchers."""
        return {
            "model": {f"network.{name}": value for name, value in weights.items() if "patcher" not in name}
        }

    def export(self, folder: Path, weights: Mapping[str, Tensor], samples: int) -> None:
        """``tokenizer.safetensors``: weights with the statistics of their latents, for ``load_tokenizer``."""
        network = (
            network_from_state(weights, self._network.config).to(self.device).eval().requires_grad_(False)
        )
        tokenizer = Tokenizer(network)
        chosen = spread(len(self._seen), self.experiment.validation.statistics_frames)
        images = (self._image(self._reduced(readable(self._seen, index).range_map)) for index in chosen)
        stats = LatentStats.measure(tokenizer.encode_raw(image).cpu() for image in images)
        save_tokenizer(Tokenizer(network.cpu(), stats), folder / CONVERTED)

    def trained(self, run: Path) -> nn.Module:
        """The network that a run has written."""
        return load_tokenizer(run / CONVERTED).network.to(self.device)

    @torch.no_grad()
    def pairs(self, model: nn.Module, limit: int) -> Iterator[Pair]:
        """Reconstructions of at most ``limit`` held-out frames, evenly spread."""
        for index in spread(len(self._held_out), limit):
            before = self._held_out.range_map_before(index)
            pair = self._pair(model, readable(self._held_out, index))
            yield pair if before is None else replace(pair, previous=self._true(before))

    def training_maps(self, limit: int) -> Iterator[NDArray]:
        """True maps of at most ``limit`` training frames, for the ladder."""
        for index in spread(len(self._seen), limit):
            yield self._true(readable(self._seen, index).range_map)

    def _pair(self, model: nn.Module, frame: ClipFrame) -> Pair:
        made = self._metres(self._reconstructed(model, self._reduced(frame.range_map))[1])
        return Pair(f"{frame.clip}_{frame.frame}", made, self._true(frame.range_map))

    def _reconstructed(self, model: nn.Module, range_map: NDArray) -> tuple[Tensor, Tensor]:
        image = self._image(range_map)
        return image, model(image).float()

    def _reduced(self, range_map: NDArray) -> NDArray:
        """At the width that the tokenizer sees."""
        return downsample(range_map, 1, range_map.shape[1] // self.experiment.data.columns)[0]

    def _true(self, range_map: NDArray) -> NDArray:
        """The part of it that the tokenizer can hold: returns inside its range window."""
        ranges = self._reduced(range_map)
        return np.where((ranges > MIN_M) & (ranges < MAX_M), ranges, np.float32(0))

    def _image(self, range_map: NDArray) -> Tensor:
        return whole_image(range_map, self.experiment.data.row_repeat, self._multiple).to(self.device)

    def _metres(self, image: Tensor) -> NDArray:
        return metres(image, self.experiment.data.row_repeat, self.experiment.data.columns)


def starting_network(experiment: TokenizerExperiment) -> TokenizerNetwork:
    """The network to begin with, in float32 on the CPU: loaded, or with weights drawn from the seed.

    Raises:
        CheckpointError: the weights are not those of an image tokenizer whose layout is known.
    """
    start = experiment.start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        if start.tokenizer is None:
            log.warning("the tokenizer begins with random weights (start.tokenizer is not given)")
            return build_network(experiment.layout)
        network = load_tokenizer(start.tokenizer, trust=start.trust).network
        if not isinstance(network, TokenizerNetwork) or network.config.kind != "image":
            raise CheckpointError(
                f"{start.tokenizer}: no image tokenizer with a known layout; give the LiDAR tokenizer's files"
            )
        if start.add_decoder_attention:
            network = with_decoder_attention(network)
        return network.float().requires_grad_(True)


def with_decoder_attention(network: TokenizerNetwork) -> TokenizerNetwork:
    """The same with the attention blocks of the LiDAR layout, new ones with random weights.

    Raises:
        CheckpointError: its decoder has other levels than that layout.
    """
    attention = TokenizerConfig().decoder_attention
    if len(network.config.decoder_attention) != len(attention):
        raise CheckpointError(
            f"start.add_decoder_attention: the decoder has {len(network.config.decoder_attention)} levels, not "
            f"{len(attention)}; leave it out"
        )
    extended = build_network(replace(network.config, decoder_attention=attention))
    extended.load_state_dict({**extended.state_dict(), **network.state_dict()})
    return extended
