# SPDX-License-Identifier: Apache-2.0
"""Scenes rendered once and kept on the training device, so that every variant learns from the same pictures and sweeps.

Rays may reach higher than the sensor: the calibration maps cover ``EXTRA_ROWS`` more rows above the top beam, which only
the variant with extra image context reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.models.student import NANO, ROW_MULTIPLE, StudentConfig
from lidargen_ros.sensors import Sensor, load_sensor
from training.scenes.hashing import uniforms
from training.scenes.render import make_worlds, render_cameras, render_lidar, sample_ego
from training.scenes.seeds import EVALUATION_SEEDS, TRAINING_SEED_START
from training.student.objective import Target
from training.student.rigs import Bank, build_bank
from training.student.stream import AHEAD, RIG_DRAWS, rig_entries

EXTRA_ROWS, EXTRA_STEP_DEG = ROW_MULTIPLE, 1.0


@dataclass(frozen=True)
class Setup:
    """What all variants share: sizes, number of scenes, and the student they change one thing of."""

    row_step: int = 2  # every second beam of the sensor
    columns: int = 900
    tile: tuple[int, int] = (176, 320)
    rigs: int = 16
    exact: float = 0.5  # share of training scenes with the exact rig
    scenes: int = 24_576
    held_out: int = 256
    checked: int = 64  # of these, looked at while training
    drawn: int = 8  # of these, for drawn samples
    render_batch: int = 64  # divides both numbers of scenes: a compiled renderer is compiled for one size
    batch: int = 32
    samples: int | None = None  # per variant; None: as many as fit into the time
    student: StudentConfig = NANO
    compiled: bool | None = None  # the renderer; None: on a GPU

    def sensor(self) -> Sensor:
        full = load_sensor("pandar128")
        rows = slice(None, None, self.row_step)
        return replace(
            full,
            name=f"{full.name}, every {self.row_step}th row, {self.columns} columns",
            elevations_deg=full.elevations_deg[rows],
            azimuth_offsets_deg=full.azimuth_offsets_deg[rows],
            columns=self.columns,
        )


TINY = Setup(
    row_step=8, columns=72, tile=(44, 80), rigs=2, scenes=8, held_out=4, checked=4, drawn=1, render_batch=4, batch=4,
    samples=20, compiled=False,
    student=StudentConfig(full=8, fine=8, patch=16, mid=16, coarse=16, head_width=8, spread=True),
)  # fmt: skip


class Frames(NamedTuple):
    """Pictures of a batch: atlases ``[B, views * height, width, 3]`` uint8, and each one's entry in the bank of rigs."""

    atlas: Tensor
    entry: Tensor


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes on one device: ``Frames`` of all, ``range_m [N, R, C]`` float16 and ``intensity [N, R, C]`` uint8."""

    bank: Bank
    sensor: Sensor
    atlas: Tensor
    entry: Tensor
    range_m: Tensor
    intensity: Tensor

    def __len__(self) -> int:
        return len(self.entry)

    def frames(self, index: Tensor) -> Frames:
        return Frames(self.atlas[index], self.entry[index])

    def target(self, index: Tensor) -> Target:
        return Target(self.range_m[index].float(), self.intensity[index].float() / 255)

    def seen(self, index: Tensor) -> Tensor:
        """``[B, R, C]`` bool: some camera looks along the ray (at the farthest supposed depth)."""
        return self.bank.mask[self.entry[index], -1, EXTRA_ROWS:] > 0


def reaching_higher(sensor: Sensor) -> Sensor:
    """The sensor with ``EXTRA_ROWS`` rows of rays above its top beam."""
    above = sensor.elevations_deg[0] + EXTRA_STEP_DEG * np.arange(EXTRA_ROWS, 0, -1)
    return replace(
        sensor,
        elevations_deg=np.concatenate([above, sensor.elevations_deg]),
        azimuth_offsets_deg=np.concatenate([np.zeros(EXTRA_ROWS), sensor.azimuth_offsets_deg]),
    )


def make_bank(setup: Setup, device: torch.device) -> Bank:
    """Calibration maps of ``setup.rigs`` rigs (entry 0 is the exact one) and one sensor."""
    return build_bank(
        load_rig("published"), reaching_higher(setup.sensor()), size=setup.rigs, tile=setup.tile,
        hypotheses=DEFAULT_HYPOTHESES, lidar_height=1.9, other_sensors=0.0, device=device,
    )  # fmt: skip


def training_scenes(setup: Setup, bank: Bank) -> Scenes:
    seeds = TRAINING_SEED_START + torch.arange(setup.scenes)
    draws = uniforms(seeds + RIG_DRAWS, 2)
    return render(setup, bank, seeds, rig_entries(draws, len(bank), setup.exact))


def held_out_scenes(setup: Setup, bank: Bank) -> Scenes:
    """With the exact rig, from seeds that no training takes."""
    seeds = EVALUATION_SEEDS.start + torch.arange(setup.held_out)
    return render(setup, bank, seeds, torch.zeros_like(seeds))


@torch.no_grad()
def render(setup: Setup, bank: Bank, seeds: Tensor, entry: Tensor) -> Scenes:
    """One scene per seed, seen with the rig of that entry."""
    sensor, device, batch = setup.sensor(), bank.grid.device, setup.render_batch
    seeds, entry = seeds.to(device), entry.to(device)
    directions = bank.directions[:, EXTRA_ROWS:]
    (height, width), views, count = setup.tile, bank.camera_origins.shape[1], len(seeds)
    atlas = torch.empty(count, views * height, width, 3, dtype=torch.uint8, device=device)
    range_m = torch.empty(count, *sensor.shape, dtype=torch.float16, device=device)
    intensity = torch.empty(count, *sensor.shape, dtype=torch.uint8, device=device)
    for first in range(0, count, batch * AHEAD):
        together = make_worlds(seeds[first : first + batch * AHEAD])
        for start in range(0, len(together), batch):
            worlds = together[start : start + batch]
            here = slice(first + start, first + start + len(worlds))
            ego, rigs = sample_ego(worlds, worlds.seeds), entry[here]
            images = render_cameras(
                worlds, bank.camera_origins[rigs], bank.camera_rays[rigs], ego, compiled=setup.compiled
            )
            lidar = render_lidar(
                worlds, directions[rigs], ego, max_range=sensor.max_range_m, compiled=setup.compiled
            )
            atlas[here] = images.flatten(1, 2)
            range_m[here] = lidar["range"].half()
            intensity[here] = (lidar["intensity"] * 255).round().to(torch.uint8)
    return Scenes(bank, sensor, atlas, entry, range_m, intensity)
