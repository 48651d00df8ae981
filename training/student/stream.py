# SPDX-License-Identifier: Apache-2.0
"""An endless stream of procedural scenes, rendered on the training device and never written to a disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidargen_ros.models.student_graphs import look_up
from lidargen_ros.sensors import Sensor

from ..scenes.render import Ego, Worlds, make_worlds, render_cameras, render_lidar, sample_ego
from .objective import Target
from .rigs import Bank

AHEAD = 8


@dataclass
class Batch:
    """Network inputs ``pixels [B, 4 K, R, C]``, ``rays [B, F, R, C]``, the target, and the rays some camera sees."""

    pixels: Tensor
    rays: Tensor
    target: Target
    seen: Tensor


class SceneStream:
    """``stream(seeds)`` renders one scene per seed; entry of the rig bank and dropped cameras are drawn from the seed.

    Args:
        sensor: of entry 0; range limits hold for all entries.
        exact: share of scenes that use the exact base rig (entry 0); the others draw from the bank.
        drop: probability that one camera of a scene is missing.
    """

    def __init__(self, bank: Bank, sensor: Sensor, *, exact: float = 0.5, drop: float = 0.05) -> None:
        self.bank, self.sensor, self.exact, self.drop = bank, sensor, exact, drop
        self._worlds: Worlds | None = None
        self._first = 0

    @property
    def device(self) -> torch.device:
        return self.bank.grid.device

    @torch.no_grad()
    def __call__(self, seeds: Tensor, *, exact_only: bool = False, noise: bool = True) -> Batch:
        seeds = seeds.to(self.device)
        generator = torch.Generator().manual_seed(int(seeds[0].item()) & 0x7FFFFFFF)
        entries = self._entries(len(seeds), generator, exact_only)
        worlds = self._make_worlds(seeds)
        ego = sample_ego(worlds, seeds)
        images = self._cameras(worlds, ego, entries, noise)
        b, v, h, w, _ = images.shape
        lidar = self._lidar(worlds, ego, entries, noise)
        mask = self.bank.mask[entries]
        if not exact_only and self.drop:
            gone = torch.where(
                torch.rand(b, generator=generator) < self.drop,
                torch.randint(v, (b,), generator=generator),
                -2,
            )
            mask = mask * (self.bank.view[entries] != gone.to(self.device)[:, None, None, None])
        pixels = look_up(images.reshape(b, v * h, w, 3), self.bank.grid[entries], mask)
        return Batch(
            pixels, self.bank.rays[entries], Target(lidar["range"], lidar["intensity"]), mask[:, -1] > 0
        )

    def _make_worlds(self, seeds: Tensor) -> Worlds:
        """Worlds of consecutive seeds are made ``AHEAD`` batches at a time: hundreds take as long as a few."""
        b, first = len(seeds), int(seeds[0])
        if not torch.equal(seeds, torch.arange(first, first + b, device=seeds.device)):
            return make_worlds(seeds)
        ready = self._worlds
        if ready is None or not self._first <= first <= self._first + len(ready) - b:
            self._first = first
            ready = self._worlds = make_worlds(torch.arange(first, first + AHEAD * b, device=self.device))
        return ready[first - self._first : first - self._first + b]

    def _entries(self, count: int, generator: torch.Generator, exact_only: bool) -> Tensor:
        drawn = torch.randint(len(self.bank), (count,), generator=generator)
        exact = torch.rand(count, generator=generator) < self.exact
        return torch.where(exact | exact_only, 0, drawn).to(self.device)

    def _cameras(self, worlds, ego: Ego, entries: Tensor, noise: bool) -> Tensor:
        return render_cameras(
            worlds, self.bank.camera_origins[entries], self.bank.camera_rays[entries], ego, noise=noise
        )

    def _lidar(self, worlds, ego: Ego, entries: Tensor, noise: bool) -> dict[str, Tensor]:
        return render_lidar(
            worlds, self.bank.directions[entries], ego, max_range=self.sensor.max_range_m, noise=noise
        )
