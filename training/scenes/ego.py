# SPDX-License-Identifier: Apache-2.0
"""Where the vehicle is: the pose and motion of the LiDAR in the world."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .hashing import uniforms
from .world import Worlds, ground_value, height, road_centre


@dataclass(frozen=True)
class Ego:
    """Pose and motion of the LiDAR in world axes (REP-103: x forward, y left, z up), one per scene.

    Attributes:
        position: ``[B, 3]`` metres.
        yaw, pitch, roll: ``[B]`` radians, rotation ``Rz(yaw) Ry(pitch) Rx(roll)``; positive pitch looks down.
        velocity: ``[B, 3]`` m/s.
        yaw_rate: ``[B]`` rad/s.
    """

    position: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    velocity: Tensor
    yaw_rate: Tensor

    def to(self, device: torch.device | str) -> Ego:
        return Ego(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: slice | Tensor) -> Ego:
        return Ego(*(getattr(self, f.name)[index] for f in fields(self)))

    def rotation(self) -> Tensor:
        """``[B, 3, 3]``, LiDAR axes to world axes."""
        return rotation(self.yaw, self.pitch, self.roll)

    def at(self, time: Tensor | float) -> Ego:
        """The same vehicle ``time`` seconds later (a number or ``[B]``), by straight motion as within a spin."""
        t = torch.as_tensor(time, dtype=torch.float32, device=self.yaw.device)
        position = self.position + self.velocity * t.reshape(-1, 1)
        return replace(self, position=position, yaw=self.yaw + self.yaw_rate * t)

    def matrix(self) -> Tensor:
        """``[B, 4, 4]``, LiDAR to world."""
        m = torch.eye(4, device=self.yaw.device).repeat(len(self.yaw), 1, 1)
        m[:, :3, :3], m[:, :3, 3] = self.rotation(), self.position
        return m


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """``[..., 3, 3]`` matrices of ``Rz(yaw) Ry(pitch) Rx(roll)``."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (torch.cos, torch.sin))
    rows = (
        torch.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], -1),
        torch.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], -1),
        torch.stack([-sp, cp * sr, cp * cr], -1),
    )
    return torch.stack(rows, -2)


def _settle(
    worlds: Worlds, x: Tensor, lateral: Tensor, mount: Tensor, heading: Tensor, sway: Tensor, speed: Tensor
) -> Ego:
    """A vehicle standing on the ground ``lateral`` metres left of the centre line; ``sway`` is extra pitch and roll."""
    ground = worlds.ground
    centre, slope = road_centre(ground, x)
    stretch = torch.sqrt(1.0 + slope * slope)
    y = centre + lateral * stretch
    yaw = torch.atan(slope) + heading
    c, s = torch.cos(yaw), torch.sin(yaw)
    reach = 1.4  # metres to the axles: the body follows the mean slope under it
    rise = (height(ground, x + reach * c, y + reach * s) - height(ground, x - reach * c, y - reach * s)) / (
        2 * reach
    )
    lean = (height(ground, x - reach * s, y + reach * c) - height(ground, x + reach * s, y - reach * c)) / (
        2 * reach
    )
    position = torch.stack([x, y, height(ground, x, y) + mount], 1)
    velocity = torch.stack([speed * c, speed * s, speed * rise], 1)
    curve = torch.where(x.abs() < 60.0, 2.0 * ground_value(ground, "curve", x), 0.0) / stretch**3
    return Ego(
        position, yaw, sway[:, 0] - torch.atan(rise), sway[:, 1] + torch.atan(lean), velocity, speed * curve
    )


def sample_ego(worlds: Worlds, seeds: Tensor) -> Ego:
    """A vehicle in a lane of the main road near x = 0, driving with the traffic; ``seeds`` is ``[B]`` int64.

    The LiDAR sits 1.6 to 2.2 m above the ground; one vehicle in eight stands still.
    """
    u = uniforms(seeds.to(worlds.seeds.device) + 0x5EED, 9).unbind(1)
    x = 6.0 * (u[0] - 0.5)
    lane, lanes = ground_value(worlds.ground, "lane_width", x), ground_value(worlds.ground, "lanes", x)
    lateral = -lane * (torch.floor(u[1] * lanes) + 0.5) + 0.6 * (u[2] - 0.5)
    speed = torch.where(u[3] < 0.125, 0.0, ground_value(worlds.ground, "speed", x) * (0.95 + 0.1 * u[4]))
    heading = 0.07 * (u[5] - 0.5) + 0.07 * (u[6] - 0.5)
    sway = torch.stack([0.02 * (u[7] - 0.5), 0.02 * (u[8] - 0.5)], 1)
    mount = 1.6 + 0.6 * (u[5] * 7.0 - torch.floor(u[5] * 7.0))
    return _settle(worlds, x, lateral, mount, heading, sway, speed)


def advance(worlds: Worlds, ego: Ego, time: float | Tensor) -> Ego:
    """The same vehicle ``time`` seconds later (a number, or ``[B]``), keeping its lane along the curve of the road."""
    time = torch.as_tensor(time, dtype=torch.float32, device=ego.yaw.device)
    x, y = ego.position[:, 0], ego.position[:, 1]
    centre, slope = road_centre(worlds.ground, x)
    lateral = (y - centre) / torch.sqrt(1.0 + slope * slope)
    speed = torch.linalg.vector_norm(ego.velocity[:, :2], dim=1)
    middle = road_centre(worlds.ground, x + 0.5 * speed * time)[1]
    new_x = x + speed * time / torch.sqrt(1.0 + middle * middle)
    mount = ego.position[:, 2] - height(worlds.ground, x, y)
    heading = ego.yaw - torch.atan(slope)
    plain = _settle(worlds, x, lateral, mount, heading, torch.zeros(len(x), 2, device=x.device), speed)
    sway = torch.stack([ego.pitch - plain.pitch, ego.roll - plain.roll], 1)
    return _settle(worlds, new_x, lateral, mount, heading, sway, speed)
