# SPDX-License-Identifier: Apache-2.0
"""Batches for a student from recorded clips, in place of rendered scenes: same call, same :class:`Batch`.

Each frame is aligned with its own rig, the cameras as they stood to the LiDAR when their pictures were taken. That and
the decoding of videos take seconds per frame at full size; with a cache folder they are paid once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidargen_ros.cameras.align import align, atlas, ray_features
from lidargen_ros.cameras.rig import Rig
from lidargen_ros.errors import ConfigError, DataError
from lidargen_ros.models.student import COLUMN_MULTIPLE, ROW_MULTIPLE
from lidargen_ros.models.student_graphs import look_up
from lidargen_ros.projection import downsample, points_to_range_map, range_map_to_points
from lidargen_ros.sensors import Sensor

from ..data.cache import TensorCache
from ..data.dataset import ClipFrame, Clips, Failure, FrameDataset
from ..data.order import Shuffled
from ..data.splits import OF_CLIPS, open_splits, sensor_of
from ..scenes.seeds import EVALUATION_SEEDS
from .config import Data
from .objective import Target
from .stream import Batch

log = logging.getLogger(__name__)

_SAME_BEAMS_DEG = 0.1  # a calibrated beam table against the nominal one of its sensor


def clip_stream(
    data: Data, seed: int, device: torch.device, teach: Callable[[FrameDataset], Frames] | None = None
) -> ClipStream:
    """The stream that ``data.clips=FOLDER`` asks for; ``teach`` changes the frames that are trained on."""
    training, validation = open_splits(data)
    sensor = sensor_of(data.sensor, training)
    if data.sensor == OF_CLIPS:
        sensor = sensor.with_columns(sensor.columns - sensor.columns % COLUMN_MULTIPLE)
    return ClipStream(
        teach(training) if teach else training, validation, sensor, tile=data.tile, hypotheses=data.hypotheses,
        lidar_height=data.lidar_height_m, drop=data.drop_camera, first_seed=data.first_seed, seed=seed,
        cache=data.cache, device=device,
    )  # fmt: skip


class Frames(Protocol):
    """A :class:`FrameDataset`, or one with other sweeps than the measured ones.

    ``source`` tells the sweeps of one from those of another, by a name that a folder can have.
    """

    clips: Clips
    items: list[tuple[str, str]]
    source: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> ClipFrame | Failure: ...


class ClipStream:
    """``stream(seeds)`` gives one frame per seed. Evaluation seeds mean validation frames, others training frames.

    Frames that cannot be read are left out of their batch (and logged).

    Args:
        sensor: grid of the student; clips of a finer LiDAR are brought onto it.
        drop: probability that one camera of a training frame is missing.
        first_seed: seed of training sample 0.
        cache: folder that keeps aligned frames, apart for settings that differ.

    Raises:
        ConfigError: the sensor does not suit the network or the clips. DataError: no clip can be read.
    """

    def __init__(
        self,
        training: Frames,
        validation: FrameDataset,
        sensor: Sensor,
        *,
        tile: tuple[int, int],
        hypotheses: tuple[float | str, ...],
        lidar_height: float,
        drop: float = 0.0,
        first_seed: int = 0,
        seed: int = 0,
        cache: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if sensor.rows % ROW_MULTIPLE or sensor.columns % COLUMN_MULTIPLE:
            raise ConfigError(
                f"sensor {sensor.name} has {sensor.rows} x {sensor.columns} rays; a student needs rows in multiples of "
                f"{ROW_MULTIPLE} and columns of {COLUMN_MULTIPLE}: name such a sensor with data.sensor=FILE.yaml"
            )
        self.training, self.validation, self.sensor = training, validation, sensor
        self.tile, self.hypotheses, self.lidar_height = tile, hypotheses, lidar_height
        self.drop, self.first_seed, self.device = drop, first_seed, torch.device(device)
        self._rays = torch.from_numpy(ray_features(sensor, lidar_height))
        self._order, self._shown = Shuffled(len(training), seed), Shuffled(len(validation))
        self._reading = Lock()  # readers serve one thread at a time
        settings = repr((tile, hypotheses, lidar_height, sensor.to_dict(), training.clips.cameras))
        folder = Path(cache) / hashlib.sha256(settings.encode()).hexdigest()[:16] if cache else None
        self._caches = {
            frames.source: TensorCache(folder and folder / frames.source) for frames in (training, validation)
        }

    @torch.no_grad()
    def __call__(self, seeds: Tensor, *, exact_only: bool = False, noise: bool = True) -> Batch:
        """``exact_only`` keeps every camera; ``noise`` is for rendered scenes and changes nothing here."""
        items = [self._item(int(seed), exact_only) for seed in seeds]
        frames = [item for item in items if item is not None]
        if not frames:
            raise DataError(f"all {len(items)} frames of a batch failed; run python -m training.data.check")
        pixels, rays, ranges, intensity, seen = (
            torch.stack(part).to(self.device) for part in zip(*frames, strict=True)
        )
        return Batch(pixels, rays, Target(ranges, intensity), seen)

    def before(self, seed: int) -> NDArray | None:
        """True range map, on the student's grid, of the frame before that of a validation seed."""
        index = self._shown[seed - EVALUATION_SEEDS.start]
        range_map = self.validation.range_map_before(index)
        clip = self.validation.items[index][0]
        sensor = self.validation.clips.reader(clip).sensor
        return None if range_map is None else on_grid(range_map, None, sensor, self.sensor)[0]

    @property
    def rig(self) -> Rig:
        """The cameras at the first training frame, for the bundle that a run becomes."""
        clip, frame = self.training.items[0]
        return self.training.clips.reader(clip).rig(frame)

    def name(self, seed: int) -> str:
        data, index = self._at(seed)
        clip, frame = data.items[index]
        return f"clip {clip}, frame {frame}"

    def _at(self, seed: int) -> tuple[Frames, int]:
        if seed in EVALUATION_SEEDS:
            return self.validation, self._shown[seed - EVALUATION_SEEDS.start]
        return self.training, self._order[seed - self.first_seed]

    def _item(self, seed: int, exact_only: bool) -> tuple[Tensor, ...] | None:
        data, index = self._at(seed)
        clip, frame = data.items[index]
        try:
            with self._reading:
                found = self._caches[data.source](f"{clip}_{frame}", lambda: self._made(data[index]))
        except DataError as error:
            log.warning("frame left out: clip %s, frame %s: %s", clip, frame, error)
            return None
        mask = (found["view"] >= 0).float()
        rng = np.random.default_rng(seed)
        if not exact_only and rng.random() < self.drop:
            mask = mask * (found["view"] != int(rng.integers(int(found["views"]))))
        colours = (found["colours"].float() / 127.5 - 1) * mask[:, None]
        pixels = torch.cat([colours, mask[:, None]], 1).flatten(0, 1)
        return pixels, self._rays, found["range_m"], found["intensity"], mask[-1] > 0

    def _made(self, frame: ClipFrame | Failure) -> dict[str, Tensor]:
        """What the network reads and shall say of a frame; colours rounded to 8 bit, cached or not."""
        if isinstance(frame, Failure):
            raise DataError(frame.reason)
        assert frame.rig is not None
        maps = align(
            frame.rig, self.sensor, tile=self.tile, hypotheses=self.hypotheses, lidar_height=self.lidar_height
        )
        pictures, grid, mask = (
            torch.from_numpy(a)[None] for a in (atlas(frame.images, self.tile), maps.grid, maps.mask)
        )
        pixels = look_up(pictures, grid, mask)[0].unflatten(0, (-1, 4))[:, :3]
        ranges, intensity = on_grid(frame.range_map, frame.intensity, frame.sensor, self.sensor)
        return {
            "colours": ((pixels + 1) * 127.5).round().to(torch.uint8),
            "view": torch.from_numpy(maps.view),
            "views": torch.tensor(len(frame.rig)),
            "range_m": torch.from_numpy(ranges),
            "intensity": torch.from_numpy(intensity),
        }


def on_grid(
    range_map: NDArray, intensity: NDArray | None, sensor: Sensor, grid: Sensor
) -> tuple[NDArray, NDArray]:
    """A measured sweep on the rays of another sensor that is not finer: ranges and intensities, float32.

    Beams of the same LiDAR keep their rows, and of several columns the nearest return stays; otherwise points go to
    the ray of their direction. Ranges outside the limits of ``grid`` become no return. Intensity is 0 where unknown.

    Raises:
        ConfigError: ``grid`` has more rows or columns, whose rays would be empty and teach that nothing returns.
    """
    intensity = np.zeros_like(range_map) if intensity is None else intensity
    factor, rest = divmod(sensor.columns, grid.columns)
    if sensor.rows < grid.rows or factor < 1:
        raise ConfigError(
            f"clips have {sensor.rows} x {sensor.columns} rays, data.sensor {grid.name} has {grid.rows} x {grid.columns}: "
            "name a sensor that is not finer: data.sensor=clips takes theirs, data.sensor=FILE.yaml your own"
        )
    same_turn = (
        sensor.clockwise == grid.clockwise
        and sensor.azimuth_span_deg == grid.azimuth_span_deg
        and abs(sensor.azimuth_start_deg - grid.azimuth_start_deg) < 0.5 * np.rad2deg(sensor.column_step_rad)
    )
    same_rows = sensor.rows == grid.rows and bool(
        (np.abs(sensor.elevations_deg - grid.elevations_deg) < _SAME_BEAMS_DEG).all()
    )
    if same_turn and same_rows and not rest:
        ranges, (values,) = downsample(range_map, 1, factor, extras=[intensity])
    else:
        points, returned = range_map_to_points(range_map, sensor), range_map > 0
        ranges, values = points_to_range_map(points, grid, intensity[returned])
    inside = (ranges >= grid.min_range_m) & (ranges <= grid.max_range_m)
    return np.where(inside, ranges, 0).astype(np.float32), np.where(inside, values, 0).astype(np.float32)
