# SPDX-License-Identifier: Apache-2.0
"""Clips as torch data sets: whole frames for students, and the samples that the published model trains on.

Nothing is ever put in the place of an item that fails. A clip that cannot be opened is named, counted and left
out when the data set is made; an item that cannot be read becomes a :class:`Failure`, which :func:`collate` takes
out of the batch and reports. ``strict`` raises instead in both cases.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lidargen_ros.bags.clips import PUBLISHED_VIEWS, ClipFiles, ClipReader, list_clips
from lidargen_ros.cameras.preprocess import CROP_HW, preprocess
from lidargen_ros.cameras.rig import Rig
from lidargen_ros.errors import DataError, LidargenError
from lidargen_ros.projection import crop_columns, downsample, repeat_rows
from lidargen_ros.range_coding import encode_linear
from lidargen_ros.sensors import Sensor

log = logging.getLogger(__name__)

_TEXT_TOKENS, _TEXT_WIDTH = 512, 1024
_CENTRE_CROP_ABOVE = 1600  # wider crops are taken from the middle, smaller ones anywhere (as published)
_FPS = 24  # a constant of the published samples, whatever the video's rate


@dataclass(frozen=True)
class Failure:
    """An item that could not be read, and why."""

    clip: str
    reason: str


@dataclass(frozen=True)
class ClipFrame:
    """One frame as recorded.

    Attributes:
        range_map: [rows, columns] float32 metres, rays at their own time; intensity: the same shape, or None.
        images: uint8 RGB [height, width, 3] of each view of the rig, in its order.
        rig: cameras at the time of their pictures, relative to the LiDAR at the start of the spin.
        motion: [4, 4] float32, coordinates at the start of the spin -> at its end.
        times_us: start and end of the spin.
    """

    clip: str
    frame: str
    range_map: NDArray
    intensity: NDArray | None
    sensor: Sensor
    images: list[NDArray]
    rig: Rig | None
    motion: NDArray
    times_us: tuple[int, int]


class Clips:
    """The readable clips of a data set, opened when needed; at most ``keep_open`` stay open.

    Attributes:
        names: clips that can be opened.
        failed: clips that cannot, with the reason.

    Raises:
        DataError: none can be opened; with ``strict``, any cannot.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path | None = None,
        cameras: Sequence[str] = PUBLISHED_VIEWS,
        strict: bool = False,
        keep_open: int = 8,
    ) -> None:
        self.root, self.cameras, self._keep = Path(root), tuple(cameras), keep_open
        self._files = ClipFiles()
        self._readers: OrderedDict[str, ClipReader] = OrderedDict()
        self.failed: dict[str, str] = {}
        self.names: list[str] = []
        self.frames: dict[str, tuple[str, ...]] = {}
        for name in list_clips(self.root, Path(split) if split else None):
            try:
                self.frames[name] = self.reader(name).frames
                self.names.append(name)
            except LidargenError as error:
                if strict:
                    raise
                self.failed[name] = str(error)
                log.warning("clip left out: %s", error)
        if not self.names:
            first = next(iter(self.failed.values()), "the list is empty")
            raise DataError(f"{self.root}: none of {len(self.failed)} clips can be read; the first: {first}")

    def reader(self, clip: str) -> ClipReader:
        """Open clip, from memory where it was used lately."""
        if clip not in self._readers:
            self._readers[clip] = ClipReader(self.root, clip, self.cameras, self._files)
            if len(self._readers) > self._keep:
                self._readers.popitem(last=False)
        self._readers.move_to_end(clip)
        return self._readers[clip]


class FrameDataset(Dataset):
    """Every frame of every clip, in order, as :class:`ClipFrame` (or :class:`Failure`)."""

    source = "measured"

    def __init__(
        self,
        root: str | Path,
        split: str | Path | None = None,
        cameras: Sequence[str] = PUBLISHED_VIEWS,
        strict: bool = False,
    ) -> None:
        self.clips, self._strict = Clips(root, split, cameras, strict), strict
        self.items = [(name, frame) for name in self.clips.names for frame in self.clips.frames[name]]

    def __len__(self) -> int:
        return len(self.items)

    def range_map_before(self, index: int) -> NDArray | None:
        """True map of the frame before in the same clip, where there is one; DataError if it cannot be read."""
        clip = self.items[index][0]
        if index == 0 or self.items[index - 1][0] != clip:
            return None
        return self.clips.reader(clip).range_map(self.items[index - 1][1])

    def __getitem__(self, index: int) -> ClipFrame | Failure:
        clip, frame = self.items[index]
        try:
            reader = self.clips.reader(clip)
            return ClipFrame(
                clip,
                frame,
                reader.range_map(frame),
                reader.intensity(frame),
                reader.sensor,
                [reader.image(frame, camera) for camera in reader.cameras],
                reader.rig(frame) if reader.cameras else None,
                reader.motion(frame),
                reader.times_us(frame),
            )
        except LidargenError as error:
            return _failed(clip, error, self._strict)


class PublishedDataset(Dataset):
    """Samples as the published model trains on: one item per clip, frames drawn from it.

    Args:
        frames: frames per item. sampling: ``random`` (independent draws), ``sequential`` (random start) or
            ``sequential_from_zero``; step: of the sequential ones.
        column_factor: columns are reduced by this, the nearest return stays.
        crop_width: columns of the sample; -1 keeps all.
        row_repeat: each row becomes this many.
        cameras: empty leaves out everything that the tokenizer does not need.
        seed: draws depend on it, the item and :meth:`set_epoch` alone.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path | None = None,
        *,
        cameras: Sequence[str] = PUBLISHED_VIEWS,
        frames: int = 1,
        sampling: Literal["random", "sequential", "sequential_from_zero"] = "random",
        step: int = 1,
        column_factor: int = 2,
        crop_width: int = 1792,
        row_repeat: int = 4,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        self.clips = Clips(root, split, cameras, strict)
        self._frames, self._sampling, self._step = frames, sampling, step
        self._factor, self._crop, self._repeat = column_factor, crop_width, row_repeat
        self._seed, self._epoch, self._strict = seed, 0, strict

    def __len__(self) -> int:
        return len(self.clips.names)

    def set_epoch(self, epoch: int) -> None:
        """Other draws in each epoch."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any] | Failure:
        clip = self.clips.names[index]
        try:
            return self._sample(self.clips.reader(clip), index)
        except LidargenError as error:
            return _failed(clip, error, self._strict)

    def _drawn(self, reader: ClipReader, rng: np.random.Generator) -> list[str]:
        count, span = len(reader.frames), self._frames * self._step
        if self._sampling == "random":
            return [reader.frames[i] for i in rng.integers(count, size=self._frames)]
        if span - self._step >= count:
            raise DataError(
                f"clip {reader.clip}: {count} frames, {self._frames} in steps of {self._step} asked for"
            )
        start = 0 if self._sampling == "sequential_from_zero" else int(rng.integers(max(1, count - span + 1)))
        return list(reader.frames[start : start + span : self._step])

    def _sample(self, reader: ClipReader, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self._seed, self._epoch, index])
        names = self._drawn(reader, rng)
        video = self._range_images(reader, names, rng)
        views = len(reader.cameras)
        # Text is a dummy in the published data: zeros, marked as one token per view.
        tokens = (views + 1) * _TEXT_TOKENS
        text_mask = torch.zeros(tokens)
        text_mask[::_TEXT_TOKENS] = 1
        sample: dict[str, Any] = {
            "video": video,
            "__key__": reader.clip,
            "clip_name": f"mads_range_map-{reader.clip}-{index}",
            "data_type": "lidar",
            "num_frames": len(names),
            "is_preprocessed": True,
            "image_size": torch.tensor(video.shape[-2:]),
            "padding_mask": torch.zeros(1, *video.shape[-2:]),
            "fps": _FPS,
            "num_views": views,
            "view_indices": torch.arange(views + 1),
            "timestamp_list": np.array([reader.times_us(name) for name in names], np.int64),
            "pose_sensor_start_end": np.stack([reader.motion(name) for name in names]),
            "rgb_frame_indices": names,
            "t5_text_embeddings": torch.zeros(tokens, _TEXT_WIDTH),
            "t5_text_mask": text_mask,
        }
        for i, camera in enumerate(reader.cameras):
            images = np.empty((3, len(names), *CROP_HW), np.float32)
            for n, name in enumerate(names):
                images[:, n] = preprocess(reader.image(name, camera))
            poses = np.stack([reader.camera_to_lidar(name, camera) for name in names])
            sample[f"image_rgb_{i}"] = torch.from_numpy(images)
            sample[f"camera_intrinsics_{i}"] = torch.from_numpy(reader.intrinsics(camera))
            sample[f"camera_c2lidar_transform_{i}"] = torch.from_numpy(poses)
        return sample

    def _range_images(self, reader: ClipReader, names: list[str], rng: np.random.Generator) -> torch.Tensor:
        """[3, n, rows * repeat, width] in [-1, 1]: three equal channels."""
        columns = reader.sensor.columns // self._factor
        width = columns if self._crop < 0 else self._crop
        start = None if width > _CENTRE_CROP_ABOVE else int(rng.integers(max(1, columns - width + 1)))
        images = []
        for name in names:
            reduced, _ = downsample(reader.range_map(name), 1, self._factor)
            images.append(repeat_rows(crop_columns(encode_linear(reduced), width, start), self._repeat))
        return torch.from_numpy(np.stack(images)).expand(3, -1, -1, -1).contiguous()


def readable(data: Dataset, index: int) -> Any:
    """An item, for those who cannot go on without it. Raises DataError where it cannot be read."""
    found = data[index]
    if isinstance(found, Failure):
        raise DataError(f"clip {found.clip}: {found.reason}; leave the clip out of the split list")
    return found


def _failed(clip: str, error: LidargenError, strict: bool) -> Failure:
    if strict:
        raise error
    log.warning("item left out: clip %s: %s", clip, error)
    return Failure(clip, str(error))


def collate(items: Sequence[dict[str, Any] | Failure]) -> dict[str, Any]:
    """Batch of published samples: tensors and arrays stacked, numbers as tensors, text as lists.

    Failures are left out and listed under ``failed``, so a batch may be smaller than asked for.

    Raises:
        DataError: if every item failed.
    """
    samples = [item for item in items if not isinstance(item, Failure)]
    failed = [f"{item.clip}: {item.reason}" for item in items if isinstance(item, Failure)]
    if not samples:
        raise DataError(
            f"all {len(failed)} items of a batch failed; the first: {failed[0] if failed else 'empty'}"
        )
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, torch.Tensor):
            batch[key] = torch.stack(values)
        elif isinstance(first, np.ndarray):
            batch[key] = np.stack(values)
        elif isinstance(first, bool):
            batch[key] = all(values)
        elif isinstance(first, int):
            batch[key] = torch.tensor(values)
        else:
            batch[key] = values
    if failed:
        batch["failed"] = failed
    return batch
