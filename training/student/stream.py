# SPDX-License-Identifier: Apache-2.0
"""An endless stream of procedural scenes, rendered on the training device and never written to a disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidargen_ros.models.student_graphs import look_up
from lidargen_ros.sensors import Sensor

from ..scenes.hashing import uniforms
from ..scenes.render import Ego, Worlds, advance, make_worlds, render_cameras, render_lidar, sample_ego
from .objective import Target
from .rigs import Bank

AHEAD = 8
# Seconds between a sweep and the one that is known before it, evenly on a logarithmic scale: what the cameras beside see now is
# what they saw a moment ago, and what stands beside the vehicle now stood before it seconds ago.
BEFORE_S = (0.1, 2.0)
RIG_DRAWS = 1 << 40  # keeps draws of rigs apart from those of the worlds, which no seed of a world reaches


@dataclass
class Before:
    """A moment ``BEFORE_S`` earlier: ``pixels [B, 4 K, R, C]``, ``directions [B, R, C, 3]`` of the rays, and ``motion
    [B, 4, 4]``, coordinates in the LiDAR frame then -> now."""

    pixels: Tensor
    directions: Tensor
    motion: Tensor


@dataclass
class Batch:
    """Network inputs ``pixels [B, 4 K, R, C]``, ``rays [B, F, R, C]``, the target, and the rays some camera sees."""

    pixels: Tensor
    rays: Tensor
    target: Target
    seen: Tensor
    before: Before | None = None


def rig_entries(draws: Tensor, rigs: int, exact: float) -> Tensor:
    """Entry of the bank for each scene, from two uniform draws ``[B, 2 or more]``: entry 0 in a share ``exact`` of them."""
    return torch.where(draws[:, 0] < exact, 0, (draws[:, 1] * rigs).long())


class SceneStream:
    """``stream(seeds)`` renders one scene per seed; entry of the rig bank and dropped cameras are drawn from the seed.

    Args:
        sensor: of entry 0; range limits hold for all entries.
        exact: share of scenes that use the exact base rig (entry 0); the others draw from the bank.
        drop: probability that one camera of a scene is missing.
        stride: from the first seed of a training batch to that of the next; None: they follow one another.
    """

    def __init__(
        self, bank: Bank, sensor: Sensor, *, exact: float = 0.5, drop: float = 0.05, stride: int | None = None
    ) -> None:
        self.bank, self.sensor, self.exact, self.drop, self.stride = bank, sensor, exact, drop, stride
        self._worlds: Worlds | None = None
        self._first, self._step = 0, 1

    @property
    def device(self) -> torch.device:
        return self.bank.grid.device

    def name(self, seed: int) -> str:
        return f"scene {seed}"

    @torch.no_grad()
    def __call__(
        self, seeds: Tensor, *, exact_only: bool = False, noise: bool = True, before: bool = False
    ) -> Batch:
        """``before``: with the pictures of the moment before."""
        seeds = seeds.to(self.device)
        draws = uniforms(seeds + RIG_DRAWS, 5)
        entries = rig_entries(draws, len(self.bank), 1.0 if exact_only else self.exact)
        worlds = self._make_worlds(seeds, None if exact_only else self.stride)
        ego = sample_ego(worlds, seeds)
        images = self._cameras(worlds, ego, entries, noise)
        v = images.shape[1]
        lidar = self._lidar(worlds, ego, entries, noise)
        mask = self.bank.mask[entries]
        if not exact_only and self.drop:
            gone = torch.where(draws[:, 2] < self.drop, (draws[:, 3] * v).long(), -2)
            mask = mask * (self.bank.view[entries] != gone[:, None, None, None])
        grid = self.bank.grid[entries]
        earlier = None
        if before:
            time = -BEFORE_S[0] * (BEFORE_S[1] / BEFORE_S[0]) ** draws[:, 4]
            there = advance(worlds, ego, time)
            then = self._cameras(worlds.at(time), there, entries, noise, seed=1)
            motion = torch.linalg.inv(ego.matrix()) @ there.matrix()
            earlier = Before(look_up(then.flatten(1, 2), grid, mask), self.bank.directions[entries], motion)
        return Batch(
            look_up(images.flatten(1, 2), grid, mask),
            self.bank.rays[entries],
            Target(lidar["range"], lidar["intensity"]),
            mask[:, -1] > 0,
            earlier,
        )

    def _make_worlds(self, seeds: Tensor, stride: int | None) -> Worlds:
        """Worlds of this batch and the next, ``AHEAD`` batches at a time: hundreds take as long as a few."""
        b, first = len(seeds), int(seeds[0])
        numbers = torch.arange(b, device=seeds.device)
        if not torch.equal(seeds, first + numbers):
            return make_worlds(seeds)
        step = b if stride is None else stride
        turn, rest = divmod(first - self._first, step)
        ready = self._worlds
        if ready is None or step != self._step or len(ready) != AHEAD * b or rest or not 0 <= turn < AHEAD:
            self._first, self._step, turn = first, step, 0
            starts = first + step * torch.arange(AHEAD, device=seeds.device)
            ready = self._worlds = make_worlds((starts[:, None] + numbers).flatten())
        return ready[turn * b : (turn + 1) * b]

    def _cameras(self, worlds: Worlds, ego: Ego, entries: Tensor, noise: bool, seed: int = 0) -> Tensor:
        origins, rays = self.bank.camera_origins[entries], self.bank.camera_rays[entries]
        return render_cameras(worlds, origins, rays, ego, noise=noise, seed=seed)

    def _lidar(self, worlds: Worlds, ego: Ego, entries: Tensor, noise: bool) -> dict[str, Tensor]:
        return render_lidar(
            worlds, self.bank.directions[entries], ego, max_range=self.sensor.max_range_m, noise=noise
        )
