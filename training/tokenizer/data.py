# SPDX-License-Identifier: Apache-2.0
"""Range maps of clips as the images that the LiDAR tokenizer sees, and back to metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidargen_ros.errors import ConfigError
from lidargen_ros.projection import crop_columns, pad_columns, pick_rows, repeat_rows
from lidargen_ros.range_coding import decode_linear, encode_linear
from lidargen_ros.sensors import Sensor

from ..data.dataset import ClipFrame, FrameDataset, PublishedDataset, readable
from ..data.order import Shuffled
from .config import RangeImages

NEAR_M, FAR_M = 0.5, 0.5  # inside the range window that published validation leaves out at either end


@dataclass(frozen=True)
class Images:
    """``pixels [N, 3, height, width]`` in [-1, 1], and the optimiser step that they are for."""

    pixels: Tensor
    step: int


class RangeClips:
    """Training samples by number: a clip (shuffled anew in each pass), some of its frames, one window of columns."""

    def __init__(self, data: RangeImages, sensor: Sensor, multiple: int, seed: int) -> None:
        factor, rest = divmod(sensor.columns, data.columns)
        if rest or not factor:
            raise ConfigError(
                f"clips have {sensor.columns} columns, no multiple of data.columns={data.columns}; set data.columns"
            )
        width = data.columns if data.window < 0 else data.window
        if width % multiple or width > data.columns or sensor.rows * data.row_repeat % multiple:
            raise ConfigError(
                f"images of {sensor.rows} x {data.row_repeat} rows and {width} columns: the tokenizer needs multiples of "
                f"{multiple} from at most {data.columns} columns; set data.window and data.row_repeat"
            )
        self._clips = PublishedDataset(
            data.root(), data.list_of(data.split), cameras=(), frames=data.frames, column_factor=factor,
            crop_width=data.window, row_repeat=data.row_repeat, seed=seed, strict=False,
        )  # fmt: skip
        self._order = Shuffled(len(self._clips), seed)
        self._reading = Lock()  # readers serve one thread at a time

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """``[B * frames, 3, height, width]``; raises DataError where a clip cannot be read."""
        with self._reading:
            return torch.cat([self._images(number) for number in numbers])

    def names(self, numbers: Sequence[int]) -> list[str]:
        return [self._clips.clips.names[self._order[number]] for number in numbers]

    def _images(self, number: int) -> Tensor:
        self._clips.set_epoch(number // len(self._clips))
        return readable(self._clips, self._order[number])["video"].transpose(0, 1)


def frames_of(frames: FrameDataset, clips: int, per_clip: int) -> list[ClipFrame]:
    """The first ``per_clip`` frames of the first ``clips`` clips."""
    taken: dict[str, int] = {}
    found = []
    for index, (clip, _) in enumerate(frames.items):
        if len(taken) == clips and clip not in taken:
            break
        if taken.setdefault(clip, 0) < per_clip:
            taken[clip] += 1
            found.append(readable(frames, index))
    return found


def whole_image(range_map: NDArray, row_repeat: int, multiple: int) -> Tensor:
    """``[1, 3, height, width]`` of a whole map, but for columns at both ends that the network cannot take."""
    width = range_map.shape[1] - range_map.shape[1] % multiple
    codes = repeat_rows(crop_columns(encode_linear(range_map), width), row_repeat)
    return torch.from_numpy(codes).expand(1, 3, *codes.shape)


def metres(image: Tensor, row_repeat: int, columns: int) -> NDArray:
    """Network image ``[1, 3, height, width]`` -> range map ``[rows, columns]``; 0 where published validation counts nothing."""
    codes = pick_rows(image[0].float().cpu().numpy(), row_repeat).mean(0)
    return pad_columns(decode_linear(np.clip(codes, -1, 1), near_m=NEAR_M, far_m=FAR_M), columns)
