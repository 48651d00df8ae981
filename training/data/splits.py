# SPDX-License-Identifier: Apache-2.0
"""``data:`` of every experiment that learns from clips: where they lie, and which are for training and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lidargen_ros.bags.clips import PUBLISHED_VIEWS
from lidargen_ros.errors import ConfigError
from lidargen_ros.sensors import Sensor, load_sensor

from .dataset import FrameDataset

EVERY_CLIP, OF_CLIPS = "all", "clips"


@dataclass(frozen=True)
class ClipData:
    """Splits are names of lists in the data set (``train`` is ``CLIPS/train.lst``), files, or ``all``."""

    clips: str = ""  # root folder of the data set, see docs/data.md
    split: str = "train"
    val_split: str = "val"
    cameras: tuple[str, ...] = PUBLISHED_VIEWS  # in the order in which the network knows them
    cache: str | None = None  # folder for what is slow to make and the same every time

    def root(self) -> Path:
        """Raises ConfigError if no folder was named, or it is absent."""
        if not self.clips or not Path(self.clips).is_dir():
            raise ConfigError(
                f"data.clips is {self.clips!r}, which is no folder; name a data set of clips: docs/data.md makes one from a "
                "bag, python -m training.data.synthesize a synthetic one"
            )
        return Path(self.clips)

    def list_of(self, split: str) -> Path | None:
        """The file that lists a split; None for every clip.

        Raises:
            ConfigError: no such list, or nothing in it.
        """
        if split == EVERY_CLIP:
            return None
        path = Path(split) if "/" in split or split.endswith(".lst") else self.root() / f"{split}.lst"
        if not path.is_file() or not path.read_text().split():
            what = "is empty" if path.is_file() else "does not exist"
            raise ConfigError(
                f"split list {path} {what}; name another with data.split or data.val_split (all: every clip)"
            )
        return path


def open_splits(data: ClipData) -> tuple[FrameDataset, FrameDataset]:
    """Frames for training and for validation."""
    training, held_out = (
        FrameDataset(data.root(), data.list_of(split), data.cameras) for split in (data.split, data.val_split)
    )
    return training, held_out


def sensor_of(name: str, frames: FrameDataset) -> Sensor:
    """A sensor by name or file, or with ``clips`` that of the (first of the) clips."""
    return frames.clips.reader(frames.clips.names[0]).sensor if name == OF_CLIPS else load_sensor(name)


def spread(count: int, wanted: int) -> Sequence[int]:
    """``wanted`` of ``count`` items (all, if there are fewer), evenly spread."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
