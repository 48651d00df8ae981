# SPDX-License-Identifier: Apache-2.0
"""What a world is: padded arrays of primitives, a ground and a sky, all batched over scenes.

World axes: the main road runs along x (gently curved), y left, z up, metres; the ego vehicle starts near x = 0.
Nothing loops over scenes: every layout fills the same fixed slots, and what it does not need is switched off.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

BOXES, CYLINDERS, ELLIPSOIDS = 128, 64, 64
PRIMITIVES = BOXES + CYLINDERS + ELLIPSOIDS

# Channels of ``Worlds.prims``. Cylinders and ellipsoids are round in plan: HX == HY is their radius.
CX, CY, CZ, HX, HY, HZ, COS, SIN, VX, VY, MATERIAL, RED, GREEN, BLUE, SEED, A0, A1, FOLLOW, KIND = range(19)
CHANNELS = 19

# Materials of primitives (channel MATERIAL).
BUILDING, ROOF, BODY, CABIN, CARGO, PLATE, FENCE, WALL, HEDGE, FURNITURE = range(10)
POST, TRUNK, PERSON, BOLLARD, CROWN, BUSH, HEAD = range(10, 17)

# What a ray may hit: labels of ``render_lidar(...)["kind"]``.
KINDS = (
    "none", "road", "pavement", "terrain", "building", "vehicle", "pedestrian", "pole", "sign",
    "vegetation", "fence", "furniture", "kerb", "glass",
)  # fmt: skip
NONE, ROAD, PAVEMENT, TERRAIN, K_BUILDING, VEHICLE = range(6)
PEDESTRIAN, POLE, SIGN, VEGETATION, K_FENCE, K_FURNITURE, KERB, GLASS = range(6, 14)
KIND_OF_MATERIAL = (
    K_BUILDING, K_BUILDING, VEHICLE, VEHICLE, VEHICLE, SIGN, K_FENCE, K_FENCE, VEGETATION, K_FURNITURE,
    POLE, VEGETATION, PEDESTRIAN, POLE, VEGETATION, VEGETATION, PEDESTRIAN,
)  # fmt: skip

# Parameters of the ground (``Worlds.ground``).
GROUND = (
    "slope_x", "slope_y", "amp1", "kx1", "ky1", "phase1", "amp2", "kx2", "ky2", "phase2",
    "curve", "half_width", "pavement", "kerb", "cross", "cross_x", "cross_half",
    "lane_width", "lanes", "parking", "surface", "plaza", "seed", "speed",
)  # fmt: skip
# Parameters of the light (``Worlds.light``).
LIGHT = (
    "sun_x", "sun_y", "sun_z", "sun_r", "sun_g", "sun_b", "zenith_r", "zenith_g", "zenith_b",
    "horizon_r", "horizon_g", "horizon_b", "clouds", "haze", "wet", "exposure",
)  # fmt: skip

LAYOUTS = ("street", "crossing", "plaza", "rural", "residential")


@dataclass(frozen=True)
class Worlds:
    """A batch of worlds on one device.

    Attributes:
        seeds: ``[B]`` int64.
        layout: ``[B]`` int64, index into ``LAYOUTS``.
        prims: ``[B, CHANNELS, PRIMITIVES]`` float32: boxes, then vertical cylinders, then ellipsoids. Centre and
            half sizes in metres, cosine and sine of yaw, velocity in m/s, material, linear RGB, texture seed,
            two texture parameters, whether the object follows the curve of the road, and its label (``KINDS``).
        ground: ``[B, len(GROUND)]`` float32: height field, road and markings.
        light: ``[B, len(LIGHT)]`` float32: sun, sky, haze, exposure.
    """

    seeds: Tensor
    layout: Tensor
    prims: Tensor
    ground: Tensor
    light: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: slice | Tensor) -> Worlds:
        return Worlds(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Worlds:
        return Worlds(*(getattr(self, f.name).to(device) for f in fields(self)))

    def at(self, time: float | Tensor) -> Worlds:
        """The same worlds ``time`` seconds later (a number, or ``[B]``): traffic keeps its lane along the curve."""
        p = self.prims
        t = torch.as_tensor(time, dtype=p.dtype, device=p.device).reshape(-1, 1)
        x, y, vx, vy, follow = (p[:, c] for c in (CX, CY, VX, VY, FOLLOW))
        before, slope_before = road_centre(self.ground, x)
        new_x = x + vx * t
        after, slope_after = road_centre(self.ground, new_x)
        on_road = follow > 0.5
        new_y = torch.where(on_road, y + after - before, y + vy * t)
        moves = (vx != 0) | (vy != 0)
        rise = height(self.ground, new_x, new_y) - height(self.ground, x, y)
        turn = torch.where(on_road, torch.atan(slope_after) - torch.atan(slope_before), 0.0)
        c, s = torch.cos(turn), torch.sin(turn)
        p = p.clone()
        p[:, CX], p[:, CY] = new_x, new_y
        p[:, CZ] = torch.where(moves, p[:, CZ] + rise, p[:, CZ])
        p[:, COS], p[:, SIN] = (
            self.prims[:, COS] * c - self.prims[:, SIN] * s,
            (self.prims[:, SIN] * c + self.prims[:, COS] * s),
        )
        p[:, VX], p[:, VY] = vx * c - vy * s, vy * c + vx * s
        return replace(self, prims=p)


def ground_value(ground: Tensor, name: str, like: Tensor) -> Tensor:
    """One ground parameter, shaped to broadcast against ``like`` whose first axis is the batch."""
    return ground[:, GROUND.index(name)].reshape(-1, *([1] * (like.dim() - 1)))


def road_centre(ground: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and dy/dx of the centre line at ``x`` (``[B, ...]``): a parabola, straight beyond 60 m."""
    curve = ground_value(ground, "curve", x)
    inner = x.clamp(-60.0, 60.0)
    slope = 2.0 * curve * inner
    return curve * inner * inner + slope * (x - inner), slope


def height(ground: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Height of the smooth ground (the carriageway; the pavement stands a kerb higher) at ``[B, ...]`` points."""
    g = [ground_value(ground, name, x) for name in GROUND[:10]]
    return (
        g[0] * x
        + g[1] * y
        + g[2] * torch.sin(g[3] * x + g[4] * y + g[5])
        + g[6] * torch.sin(g[7] * x + g[8] * y + g[9])
    )


def road_coordinates(ground: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lateral offset from the main road, offset from the crossing road, and signed distance to the kerb (> 0 outside)."""
    centre, slope = road_centre(ground, x)
    u = (y - centre) * torch.rsqrt(1.0 + slope * slope)
    v = x - ground_value(ground, "cross_x", x)
    a = u.abs() - ground_value(ground, "half_width", x)
    b = v.abs() - ground_value(ground, "cross_half", x) + 1e4 * (1.0 - ground_value(ground, "cross", x))
    corner = 4.0  # metres, radius of the kerb at a crossing
    ca, cb = (corner - a).clamp(min=0.0), (corner - b).clamp(min=0.0)
    return u, v, torch.where(b > corner, a, corner - torch.sqrt(ca * ca + cb * cb))
