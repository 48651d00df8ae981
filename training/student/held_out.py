# SPDX-License-Identifier: Apache-2.0
"""Held-out scenes for a finished bundle: the same worlds as in training's own evaluation, as images and sweeps on the host.

Seeds are fixed here, so that figures of different bundles belong to the same scenes. Training never sees them
(``training/scenes/seeds.py``), nor any of the rigs and sensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import Rig, View
from lidargen_ros.sensors import Sensor

from ..scenes.render import Ego, Worlds, advance, make_worlds, render_cameras, render_lidar, sample_ego
from ..scenes.seeds import EVALUATION_SEEDS
from .rigs import pixel_rays, random_rig, random_sensor

SEEDS = EVALUATION_SEEDS[:20_000]  # the exact rig; training's own evaluation takes the first of them
OTHER_RIG_SEEDS = EVALUATION_SEEDS[20_000:30_000]
OTHER_SENSOR_SEEDS = EVALUATION_SEEDS[30_000:40_000]
STILL_SEEDS = EVALUATION_SEEDS[40_000:50_000]
RATE_HZ = 10
BATCH = 8  # a compiled renderer is compiled for one size


@dataclass(frozen=True)
class Scene:
    """One moment.

    Attributes:
        images: one RGB uint8 ``[height, width, 3]`` per view of the rig.
        range_map: true range ``[rows, columns]``, metres, 0 = no return.
        pose: ``[4, 4]`` LiDAR to world.
    """

    seed: int
    images: list[NDArray]
    range_map: NDArray
    pose: NDArray


class SceneMaker:
    """Renders what one rig and one sensor see; cameras at the size of the network's tiles (height, width)."""

    def __init__(
        self,
        rig: Rig,
        sensor: Sensor,
        tile: tuple[int, int],
        device: str = "cpu",
        compiled: bool | None = None,
    ) -> None:
        self.device, self.compiled, self.max_range = device, compiled, sensor.max_range_m
        self._origins, self._rays = (torch.tensor(a, device=device) for a in pixel_rays(rig, tile))
        self._directions = torch.tensor(sensor.directions(), device=device)

    def scenes(self, seeds: Sequence[int], batch: int = BATCH) -> Iterator[Scene]:
        """One independent scene per seed."""
        for worlds, ego in self._worlds(seeds, batch):
            yield from self._render(worlds, ego, 0)

    def sweeps(self, seeds: Sequence[int], batch: int = BATCH) -> Iterator[NDArray]:
        """The true range map alone of one independent scene per seed."""
        for worlds, ego in self._worlds(seeds, batch):
            yield from self._lidar(worlds, ego, 0)

    def _worlds(self, seeds: Sequence[int], batch: int) -> Iterator[tuple[Worlds, Ego]]:
        for first in range(0, len(seeds), batch):
            part = torch.tensor(seeds[first : first + batch], device=self.device)
            worlds = make_worlds(part)
            yield worlds, sample_ego(worlds, part)

    def still_world(self, seed: int, frames: int, *, moving: bool) -> list[Scene]:
        """Frames at 10 Hz of a world in which nothing moves but, where asked, the vehicle itself; noise differs by frame."""
        numbers = torch.arange(frames, device=self.device)
        worlds = make_worlds(torch.full_like(numbers, seed))
        ego = sample_ego(worlds, worlds.seeds)
        there = advance(worlds, ego, numbers / RATE_HZ) if moving else ego
        return self._render(worlds, there, numbers)

    def _render(self, worlds: Worlds, ego: Ego, noise_seed: int | Tensor) -> list[Scene]:
        images = render_cameras(
            worlds, self._origins, self._rays, ego, seed=noise_seed, compiled=self.compiled
        )
        views_of, poses = images.cpu().numpy(), ego.matrix().cpu().numpy().astype(np.float64)
        maps = self._lidar(worlds, ego, noise_seed)
        return [
            Scene(int(seed), list(views), range_map, pose)
            for seed, views, range_map, pose in zip(worlds.seeds.tolist(), views_of, maps, poses, strict=True)
        ]

    def _lidar(self, worlds: Worlds, ego: Ego, noise_seed: int | Tensor) -> NDArray:
        lidar = render_lidar(
            worlds, self._directions, ego, max_range=self.max_range, seed=noise_seed, compiled=self.compiled
        )
        return lidar["range"].cpu().numpy()


def other_rigs(base: Rig, count: int) -> list[Rig]:
    """Rigs that no training run has drawn: a ring of six pinhole cameras, then random ones as in training."""
    drawn = [
        replace(random_rig(base, np.random.default_rng([OTHER_RIG_SEEDS.start, k])), name=f"random {k}")
        for k in range(1, count)
    ]
    return [ring(6), *drawn][:count]


def ring(count: int, field_of_view_deg: float = 70.0) -> Rig:
    """``count`` equal pinhole cameras of 1280 x 720 around a mast at the LiDAR."""
    focal = 640 / np.tan(np.deg2rad(field_of_view_deg) / 2)
    camera = PinholeCamera(1280, 720, focal, focal, 639.5, 359.5)
    views = []
    for k in range(count):
        yaw = 2 * np.pi * k / count
        pose = np.eye(4)
        forward, right = (np.cos(yaw), np.sin(yaw), 0.0), (np.sin(yaw), -np.cos(yaw), 0.0)
        pose[:3, :3] = np.stack([right, (0.0, 0.0, -1.0), forward], axis=1)
        pose[:3, 3] = 0.3 * np.array(forward)
        views.append(View(f"camera_{round(np.rad2deg(yaw))}deg", camera, pose))
    return Rig(tuple(views), name=f"ring of {count}")


def other_sensors(base: Sensor, count: int) -> list[Sensor]:
    """Beam tables that no training run has drawn, with the rows and columns of ``base``."""
    return [
        replace(random_sensor(base, np.random.default_rng([OTHER_SENSOR_SEEDS.start, k])), name=f"random {k}")
        for k in range(count)
    ]
