# SPDX-License-Identifier: Apache-2.0
"""Layout of a published tokenizer: from its option table, or read off the names and shapes of its weights.

Three layouts of the 8x8 image tokenizer go by almost the same name and do not fit each other, so the layout is
never assumed. Only the number of norm groups leaves no trace in the weights: 32 for images, 1 (per frame) for
video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, ConfigError

NO, SPACE, TIME, SPACE_TIME = "none", "space", "time", "space+time"
COLOURS = 3


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that decides the shape of the network; tuples over levels go from the finest level on."""

    kind: str = "image"  # "image" or "video"
    patch_size: int = 4
    patch_method: str = "haar"  # or "rearrange", which no published file uses
    channels: int = 128
    channels_mult: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2  # per encoder level; decoder levels have one more
    z_channels: int = 16
    latent_channels: int = 16
    z_factor: int = 1  # 2: the encoder gives mean and log-variance (VAE)
    num_groups: int = 32
    encoder_attention: tuple[bool, ...] = (False, False, False)
    decoder_attention: tuple[bool, ...] = (False, False, True)
    down: tuple[str, ...] = (SPACE, NO, NO)  # what a level of the encoder halves at its end
    up: tuple[str, ...] = (NO, NO, SPACE)  # what a level of the decoder doubles at its end

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent position along height and along width."""
        return self.patch_size * 2 ** sum(SPACE in step for step in self.down)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame after the first; 1 for images."""
        return 1 if self.kind == "image" else self.patch_size * 2 ** sum(TIME in step for step in self.down)

    @property
    def patched_channels(self) -> int:
        """Channels after patching."""
        return COLOURS * self.patch_size ** (2 if self.kind == "image" else 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """Inverse of :meth:`to_dict`; ``ConfigError`` on an unknown key."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"tokenizer config: unknown {', '.join(unknown)}; written by a newer version?")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> TokenizerConfig:
        """Layout that the option table of the published training code stands for.

        ``resolution`` looks like an input size but only places attention: a level has it if its nominal size is
        in ``attn_resolutions``. ``temporal_compression`` makes it a video tokenizer.
        """
        if options.get("dropout"):
            raise ConfigError(
                f"tokenizer option dropout={options['dropout']}: only 0 is supported; set it to 0"
            )
        video = "temporal_compression" in options
        mult = tuple(options["channels_mult"])
        levels, patch = len(mult), options["patch_size"]
        halvings = _halvings(options["spatial_compression"], patch)
        if video:
            time = _halvings(options["temporal_compression"], patch)
            down, up = _video_resampling(levels, halvings, time, bool(options.get("legacy_mode")))
        else:
            down = [SPACE if i < halvings else NO for i in range(levels)]
            # The decoder starts at the last level and doubles after the first `halvings` that it visits.
            up = [SPACE if i >= levels - halvings else NO for i in range(levels)]
        encoder_attention, decoder_attention = _attention_levels(options, down, up, video)
        config = cls(
            kind="video" if video else "image",
            patch_size=patch,
            patch_method=options.get("patch_method", "haar"),
            channels=options["channels"],
            channels_mult=mult,
            num_res_blocks=options["num_res_blocks"],
            z_channels=options["z_channels"],
            latent_channels=options["latent_channels"],
            z_factor=options.get("z_factor", 1),
            num_groups=1 if video else options.get("num_groups", 32),
            encoder_attention=encoder_attention,
            decoder_attention=decoder_attention,
            down=tuple(down),
            up=tuple(up),
        )
        wanted = (options["spatial_compression"], options.get("temporal_compression", 1))
        if (config.spatial_compression, config.temporal_compression) != wanted:
            raise ConfigError(
                f"tokenizer options: {levels} levels and patch_size {patch} cannot compress space and time by "
                f"{wanted}; each must be patch_size times a power of two that the levels can hold"
            )
        return config


def _halvings(compression: int, patch: int) -> int:
    return max(int(math.log2(compression / patch)), 0)


def _step(space: bool, time: bool) -> str:
    return {(False, False): NO, (True, False): SPACE, (False, True): TIME, (True, True): SPACE_TIME}[
        space, time
    ]


def _video_resampling(levels: int, space: int, time: int, legacy: bool) -> tuple[list[str], list[str]]:
    """Steps of encoder and decoder levels; the video decoder does not mirror the image decoder."""
    down = [_step(i < space, i < time) if i < levels - 1 else NO for i in range(levels)]
    up = [NO]
    for i in range(1, levels):
        visited = levels - 1 - i
        in_time = visited < time if legacy else 0 < visited < time + 1
        up.append(_step(in_time or (time < space and visited < space), in_time))
    return down, up


def _attention_levels(
    options: Mapping[str, Any], down: list[str], up: list[str], video: bool
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which levels have attention. Video sizes change at every level, image sizes where a level resamples."""
    sizes = options["attn_resolutions"]
    levels = len(down)
    size = options["resolution"] // options["patch_size"]
    encoder = []
    for step in down:
        encoder.append(size in sizes)
        size = size // 2 if video or step != NO else size
    size = options["resolution"] // options["patch_size"] // 2 ** (levels - 1)
    decoder = []
    for step in reversed(up):
        decoder.append(size in sizes)
        size = size * 2 if video or step != NO else size
    return tuple(encoder), tuple(reversed(decoder))


def infer_config(state: Mapping[str, Tensor], num_groups: int | None = None) -> TokenizerConfig:
    """Layout of the network whose state dict this is (encoder and decoder together, no name prefix).

    ``num_groups`` is the one thing weights do not tell; ``None`` is that of the published files (32, video 1).
    Raises ``CheckpointError`` if the names are not those of a tokenizer of this family.
    """
    video = "encoder.conv_in.0.conv3d.weight" in state
    conv_in, conv_out = ("{}.0.conv3d", "{}.0.conv3d") if video else ("{}", "{}")
    point = "{}.conv3d" if video else "{}"

    def shape(name: str) -> tuple[int, ...]:
        key = f"{name}.weight"
        if key not in state:
            half = [half for half in ("encoder", "decoder") if any(k.startswith(f"{half}.") for k in state)]
            found = f"only the {half[0]} is there" if len(half) == 1 else f"{len(state)} other keys are there"
            raise CheckpointError(
                f"tokenizer weights: {key} is missing ({found}); give encoder and decoder files of one tokenizer"
            )
        return tuple(state[key].shape)

    def members(pattern: str) -> int:
        """How many numbers stand where the pattern has its group."""
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    def has(prefix: str) -> bool:
        return any(key.startswith(f"{prefix}.") for key in state)

    def resampler(name: str, first: str, second: str) -> str:
        """Image resamplers have one conv; hybrid ones name a conv for space and one for time."""
        return _step(has(f"{name}.{first}"), has(f"{name}.{second}")) if video else _step(has(name), False)

    first = shape(conv_in.format("encoder.conv_in"))
    patch = round((first[1] / COLOURS) ** (1 / (3 if video else 2)))
    levels = members(r"encoder\.down\.(\d+)\.")
    block = "encoder.down.{}.block.0.conv1" + (".0.conv3d" if video else "")
    z_channels = shape(point.format("post_quant_conv"))[0]
    config = TokenizerConfig(
        kind="video" if video else "image",
        patch_size=patch,
        patch_method="haar",
        channels=first[0],
        channels_mult=tuple(shape(block.format(i))[0] // first[0] for i in range(levels)),
        num_res_blocks=members(r"encoder\.down\.0\.block\.(\d+)\."),
        z_channels=z_channels,
        latent_channels=shape(point.format("post_quant_conv"))[1],
        z_factor=shape(conv_out.format("encoder.conv_out"))[0] // z_channels,
        num_groups=num_groups or (1 if video else 32),
        encoder_attention=tuple(has(f"encoder.down.{i}.attn") for i in range(levels)),
        decoder_attention=tuple(has(f"decoder.up.{i}.attn") for i in range(levels)),
        down=tuple(resampler(f"encoder.down.{i}.downsample", "conv1", "conv2") for i in range(levels)),
        up=tuple(resampler(f"decoder.up.{i}.upsample", "conv2", "conv1") for i in range(levels)),
    )
    if patch < 1 or config.patched_channels != first[1]:
        raise CheckpointError(
            f"tokenizer weights: the first convolution takes {first[1]} channels, which is not 3 colours times a "
            "patch; these are not the weights of a published tokenizer"
        )
    return config
