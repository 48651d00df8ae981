# SPDX-License-Identifier: Apache-2.0
"""Random worlds from seeds: padded arrays of primitives, a ground and a sky, all batched over scenes.

World axes: the main road runs along x (gently curved), y left, z up, metres; the ego vehicle starts near x = 0.
Nothing loops over scenes: every layout fills the same fixed slots, and what it does not need is switched off.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .hashing import uniforms

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
(
    NONE,
    ROAD,
    PAVEMENT,
    TERRAIN,
    K_BUILDING,
    VEHICLE,
    PEDESTRIAN,
    POLE,
    SIGN,
    VEGETATION,
    K_FENCE,
    K_FURNITURE,
) = range(12)
KERB, GLASS = 12, 13
_KIND_OF_MATERIAL = (
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
# One row per layout: (low, high) or a probability.
_RULES = {
    "lanes": [(1, 2.99), (1, 2.99), (1, 1.99), (1, 1.99), (1, 1.99)],
    "parking": [(0.0, 2.4), (0.0, 1.2), (6.5, 14.0), (0.0, 0.6), (0.0, 2.4)],
    "pavement": [(1.8, 5.0), (2.0, 6.0), (2.0, 8.0), (0.4, 1.0), (1.2, 2.5)],
    "kerb": [(0.08, 0.16), (0.06, 0.16), (0.04, 0.12), (0.0, 0.0), (0.05, 0.14)],
    "setback": [(0.0, 4.0), (0.0, 5.0), (2.0, 16.0), (8.0, 40.0), (3.0, 9.0)],
    "height": [(8, 26), (8, 30), (6, 28), (3.5, 8), (4, 9)],
    "width": [(12, 30), (12, 30), (16, 40), (8, 20), (8, 15)],
    "gap": [(0.0, 3.0), (0.0, 5.0), (2.0, 20.0), (10.0, 50.0), (3.0, 12.0)],
    "slope": [(-0.03, 0.03), (-0.025, 0.025), (-0.015, 0.015), (-0.06, 0.06), (-0.05, 0.05)],
    "swell": [(0.0, 0.25), (0.0, 0.2), (0.0, 0.1), (0.2, 1.3), (0.0, 0.5)],
    "curve": [(-0.003, 0.003), (-0.001, 0.001), (-0.001, 0.001), (-0.004, 0.004), (-0.004, 0.004)],
}
_CHANCE = {
    "cross": (0.15, 1.0, 0.3, 0.08, 0.35),
    "building": (0.95, 0.9, 0.7, 0.35, 0.92),
    "tree": (0.5, 0.4, 0.45, 0.85, 0.65),
    "bush": (0.2, 0.2, 0.3, 0.8, 0.8),
    "fence": (0.2, 0.2, 0.25, 0.35, 0.75),
    "parked": (0.65, 0.35, 0.75, 0.04, 0.5),
    "moving": (0.65, 0.7, 0.35, 0.4, 0.35),
    "person": (0.7, 0.75, 0.6, 0.08, 0.4),
    "lamp": (0.9, 0.9, 0.7, 0.2, 0.8),
    "sign": (0.6, 0.8, 0.5, 0.4, 0.4),
    "furniture": (0.5, 0.5, 0.4, 0.12, 0.4),
    "grass": (0.25, 0.2, 0.3, 1.0, 0.9),
}

# Vehicle classes car, estate, van, truck, bus: length, width, then per box (body, cabin) bottom, top,
# share of the length, offset (share of the length), share of the width. Metres.
_VEHICLES = torch.tensor(
    [
        [4.20, 1.78, 0.14, 0.86, 1.00, 0.00, 1.00, 0.86, 1.45, 0.54, -0.07, 0.88],
        [4.70, 1.86, 0.16, 0.98, 1.00, 0.00, 1.00, 0.98, 1.68, 0.66, -0.12, 0.90],
        [5.40, 2.00, 0.18, 1.15, 1.00, 0.00, 1.00, 1.15, 2.25, 0.84, -0.08, 0.95],
        [8.00, 2.50, 0.55, 3.40, 0.74, -0.13, 1.00, 0.30, 2.75, 0.23, 0.385, 0.96],
        [11.5, 2.55, 0.22, 1.15, 1.00, 0.00, 1.00, 1.15, 3.10, 0.995, 0.00, 0.99],
    ]
)
_CAR_COLOURS = torch.tensor(
    [
        [0.80, 0.80, 0.80], [0.80, 0.80, 0.80], [0.45, 0.46, 0.48], [0.22, 0.23, 0.25], [0.02, 0.02, 0.02],
        [0.02, 0.02, 0.02], [0.55, 0.05, 0.05], [0.05, 0.12, 0.42], [0.15, 0.25, 0.18], [0.75, 0.62, 0.25],
    ]
)  # fmt: skip
_FACADES = torch.tensor(
    [
        [0.55, 0.28, 0.20], [0.68, 0.60, 0.48], [0.75, 0.74, 0.70], [0.45, 0.44, 0.43], [0.62, 0.45, 0.30],
        [0.38, 0.22, 0.17], [0.70, 0.66, 0.42], [0.52, 0.56, 0.58], [0.78, 0.70, 0.60], [0.30, 0.31, 0.33],
    ]
)  # fmt: skip
_SIGNS = torch.tensor([[0.75, 0.05, 0.05], [0.05, 0.18, 0.6], [0.85, 0.65, 0.05], [0.8, 0.8, 0.8]])


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


def _g(ground: Tensor, name: str, like: Tensor) -> Tensor:
    """One ground parameter, shaped to broadcast against ``like`` whose first axis is the batch."""
    return ground[:, GROUND.index(name)].reshape(-1, *([1] * (like.dim() - 1)))


def road_centre(ground: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and dy/dx of the centre line at ``x`` (``[B, ...]``): a parabola, straight beyond 60 m."""
    curve = _g(ground, "curve", x)
    inner = x.clamp(-60.0, 60.0)
    slope = 2.0 * curve * inner
    return curve * inner * inner + slope * (x - inner), slope


def height(ground: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Height of the smooth ground (the carriageway; the pavement stands a kerb higher) at ``[B, ...]`` points."""
    g = [_g(ground, name, x) for name in GROUND[:10]]
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
    v = x - _g(ground, "cross_x", x)
    a = u.abs() - _g(ground, "half_width", x)
    b = v.abs() - _g(ground, "cross_half", x) + 1e4 * (1.0 - _g(ground, "cross", x))
    corner = 4.0  # metres, radius of the kerb at a crossing
    ca, cb = (corner - a).clamp(min=0.0), (corner - b).clamp(min=0.0)
    return u, v, torch.where(b > corner, a, corner - torch.sqrt(ca * ca + cb * cb))


class _Draw:
    """Hands out slices of one table of uniforms, so that a world costs a single hash."""

    def __init__(self, seeds: Tensor, layout: Tensor | None):
        self.table = uniforms(seeds, 4096)
        self.next = 0
        drawn = (self(1)[:, 0] * len(LAYOUTS)).long()
        self.layout = drawn if layout is None else layout.to(seeds.device)
        device = seeds.device
        rules = torch.tensor(list(_RULES.values()), dtype=torch.float32).to(device)[
            :, self.layout
        ]  # rule, B, 2
        self._rules = dict(zip(_RULES, rules, strict=True))
        chances = torch.tensor(list(_CHANCE.values()), dtype=torch.float32).to(device)[:, self.layout]
        self._chances = dict(zip(_CHANCE, chances, strict=True))

    def __call__(self, count: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        part = self.table[:, self.next : self.next + count]
        self.next += count
        return low + (high - low) * part

    def rule(self, name: str, count: int = 1) -> Tensor:
        bounds = self._rules[name]
        return self(count, bounds[:, :1], bounds[:, 1:])

    def chance(self, name: str, count: int = 1) -> Tensor:
        """Boolean ``[B, count]``, true with the layout's probability."""
        return self(count) < self._chances[name][:, None]

    def pick(self, table: Tensor, count: int) -> Tensor:
        """``[B, count, K]``: random rows of ``table [N, K]``."""
        return table.to(self.table.device)[(self(count) * len(table)).long()]


def make_worlds(seeds: Tensor, layout: Tensor | None = None) -> Worlds:
    """Worlds for ``seeds`` (``[B]`` int64), on the device of ``seeds``.

    ``layout`` (``[B]`` int64, index into ``LAYOUTS``) overrides the drawn kind of place. The same seed gives the same
    world on any device up to float rounding.
    """
    draw = _Draw(seeds, layout)
    ground = _make_ground(draw)
    parts = [*_boxes(draw, ground)]
    posts, plates = _signs(draw, ground)
    people, heads = _people(draw, ground)
    trunks, crowns = _trees(draw, ground)
    parts += [plates, _furniture(draw, ground)]
    parts += [_lamps(draw, ground), posts, trunks, people, _bollards(draw, ground)]
    parts += [crowns, _bushes(draw, ground), heads]
    prims = torch.cat(parts, dim=2)
    if prims.shape[2] != PRIMITIVES or draw.next > draw.table.shape[1]:
        raise AssertionError(
            f"slots or random numbers miscounted: {prims.shape[2]} slots, {draw.next} numbers"
        )
    return Worlds(seeds, draw.layout, prims.contiguous(), ground, _make_light(draw))


def _make_ground(draw: _Draw) -> Tensor:
    lane = draw(1, 2.8, 3.7)
    lanes = torch.floor(draw.rule("lanes"))
    parking = draw.rule("parking")
    plaza = (draw.layout == 2).float()[:, None]
    parking = torch.where((parking < 1.9) & (plaza < 0.5), 0.3, parking)  # narrower than a car: only a margin
    swell = draw.rule("swell")
    angle1, angle2 = draw(1, 0.0, 6.2832), draw(1, 0.0, 6.2832)
    k1, k2 = 6.2832 / draw(1, 50.0, 140.0), 6.2832 / draw(1, 30.0, 70.0)
    cross = draw.chance("cross").float()
    columns = [
        draw.rule("slope"), 0.4 * draw.rule("slope"),
        swell, k1 * torch.cos(angle1), k1 * torch.sin(angle1), draw(1, 0.0, 6.2832),
        0.25 * swell, k2 * torch.cos(angle2), k2 * torch.sin(angle2), draw(1, 0.0, 6.2832),
        draw.rule("curve") * (1.0 - cross), lanes * lane + parking, draw.rule("pavement"), draw.rule("kerb"),
        cross, draw(1, -30.0, 45.0), draw(1, 3.0, 7.0),
        lane, lanes, parking, draw.chance("grass").float(), plaza, draw(1), draw(1, 2.0, 15.0),
    ]  # fmt: skip
    return torch.cat(columns, dim=1)


def _make_light(draw: _Draw) -> Tensor:
    elevation, azimuth = draw(1, 0.2, 1.2), draw(1, 0.0, 6.2832)
    overcast = draw(1).square()  # most days are fairly clear
    low = (0.6 - elevation).clamp(min=0.0) / 0.4  # 1 = sun near the horizon: warmer, dimmer
    sun = 3.0 * (1.0 - 0.93 * overcast) * (1.0 - 0.4 * low)
    grey, blue = draw(1, 0.55, 0.8), draw(1, 0.7, 1.0)
    zenith = [torch.lerp(blue * c, grey, overcast) for c in (0.22, 0.42, 0.85)]
    horizon = [torch.lerp(torch.full_like(grey, c), grey * 1.1, overcast) for c in (0.72, 0.80, 0.90)]
    columns = [
        torch.cos(elevation) * torch.cos(azimuth), torch.cos(elevation) * torch.sin(azimuth), torch.sin(elevation),
        sun, sun * (0.95 - 0.25 * low), sun * (0.86 - 0.42 * low),
        *zenith, *horizon,
        draw(1) * (1.0 - overcast), 1.0 / draw(1, 250.0, 2500.0), (draw(1) < 0.12).float(), draw(1, -0.5, 0.5),
    ]  # fmt: skip
    return torch.cat(columns, dim=1)


def _pack(ground, x, y, z, hx, hy, hz, yaw, material, colour, seed, active, *, vx=None, vy=None, a0=None, a1=None,
          follow=None, on_ground=True):  # fmt: skip
    """``[B, CHANNELS, n]`` from ``[B, n]`` arrays; ``z`` is the centre above the ground unless ``on_ground`` is false."""
    zero = torch.zeros_like(x)
    z = z + height(ground, x, y) if on_ground else z
    material = zero + material
    optional = [zero if a is None else a + zero for a in (vx, vy, a0, a1, follow)]
    vx, vy, a0, a1, follow = optional
    shown = [torch.where(active, a + zero, 1e-3) for a in (hx, hy, hz)]
    z = torch.where(active, z, -1000.0)
    yaw = yaw + zero
    kinds = torch.tensor(_KIND_OF_MATERIAL, dtype=torch.float32).to(x.device)
    columns = [
        x, y, z, *shown, torch.cos(yaw), torch.sin(yaw), vx, vy, material, *(colour[..., i] + zero for i in range(3)),
        seed, a0, a1, follow, kinds[material.long()],
    ]  # fmt: skip
    return torch.stack(columns, dim=1)


def _on_road(ground: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """World y and road heading for a position ``x`` along and ``u`` across the main road."""
    centre, slope = road_centre(ground, x)
    return centre + u * torch.sqrt(1.0 + slope * slope), torch.atan(slope)


def _off_crossing(ground: Tensor, x: Tensor, margin: Tensor | float) -> Tensor:
    """True where ``x`` keeps ``margin`` clear of the crossing road and its pavement."""
    clear = (x - _g(ground, "cross_x", x)).abs() > _g(ground, "cross_half", x) + margin
    return clear | (_g(ground, "cross", x) < 0.5)


def _sides(count: int, like: Tensor) -> Tensor:
    """``[1, count]`` of +1 (left) for the first half and -1 (right) for the second."""
    return torch.where(torch.arange(count, device=like.device) < count // 2, 1.0, -1.0)[None]


def _row(draw: _Draw, count: int, lengths: Tensor, gaps: Tensor, start: Tensor) -> Tensor:
    """Centres along x of ``count`` things put end to end on either side: ``[B, count]``."""
    half = count // 2
    pieces = []
    for part in (slice(0, half), slice(half, count)):
        step = lengths[:, part] + gaps[:, part]
        pieces.append(torch.cumsum(step, dim=1) - 0.5 * lengths[:, part])
    return torch.cat(pieces, dim=1) + start


def _boxes(draw: _Draw, ground: Tensor) -> list[Tensor]:
    buildings, roofs = _buildings(draw, ground)
    bodies, cabins = _vehicles(draw, ground)
    return [buildings, roofs, bodies, cabins, _fences(draw, ground)]


def _buildings(draw: _Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """20 along the main road, 12 along the crossing road or far behind, and 12 roof tops."""
    n, far = 20, 12
    side = _sides(n, ground)
    length, depth, tall = draw.rule("width", n), draw(n, 9.0, 16.0), draw.rule("height", n)
    x = _row(draw, n, length, draw.rule("gap", n), draw(1, -115.0, -85.0))
    edge = _g(ground, "half_width", x) + _g(ground, "pavement", x)
    base = draw.rule("setback")  # one building line a street, with some standing back further
    setback = base + draw(n).square() * draw(n, 0.0, 3.0)
    u = side * (edge + setback + 0.5 * depth)
    y, yaw = _on_road(ground, x, u)
    active = draw.chance("building", n) & _off_crossing(ground, x, 0.5 * length + _g(ground, "pavement", x))
    cross = _g(ground, "cross", x) > 0.5

    j = torch.arange(far, device=ground.device)
    sign_x, sign_y = (1.0 - 2.0 * (j % 2))[None], (1.0 - 2.0 * ((j // 2) % 2))[None]
    f_depth, f_length, f_tall = draw(far, 10.0, 18.0), draw.rule("width", far), draw.rule("height", far)
    out = _g(ground, "half_width", f_depth) + 16.0
    fx = torch.where(
        cross[:, :1],
        _g(ground, "cross_x", out) + sign_x * (_g(ground, "cross_half", out) + _g(ground, "pavement", out) + 0.5 * f_depth + 1.0),
        draw(far, -110.0, 110.0),
    )  # fmt: skip
    f_u = sign_y * (out + torch.where(cross[:, :1], 10.0 + 26.0 * (j // 4)[None], draw(far, 15.0, 60.0)))
    fy, f_yaw = _on_road(ground, fx, f_u)
    f_yaw = torch.where(cross[:, :1], f_yaw + 0.5 * torch.pi, f_yaw + draw(far, -0.3, 0.3))
    f_active = draw.chance("building", far)

    x, y, yaw = torch.cat([x, fx], 1), torch.cat([y, fy], 1), torch.cat([yaw, f_yaw], 1)
    length, depth, tall = (
        torch.cat([length, f_length], 1),
        torch.cat([depth, f_depth], 1),
        torch.cat([tall, f_tall], 1),
    )
    active = torch.cat([active, f_active], 1)
    total = n + far
    colour = (draw.pick(_FACADES, total) * draw(total, 0.8, 1.15)[..., None]).clamp(0.02, 0.9)
    # The base goes 3 m into the ground, so that no slope shows a gap.
    top, below = tall, 3.0
    buildings = _pack(
        ground, x, y, 0.5 * (top - below), 0.5 * length, 0.5 * depth, 0.5 * (top + below), yaw, BUILDING, colour,
        draw(total), active, a0=draw(total, 1.9, 4.2), a1=draw(total, 2.7, 3.6),
    )  # fmt: skip
    m = 12
    rise = draw(m, 0.8, 3.2)
    share = draw(m, 0.3, 0.92)
    base_z = height(ground, x[:, :m], y[:, :m])
    roofs = _pack(
        ground, x[:, :m], y[:, :m], base_z + top[:, :m] + 0.5 * rise, 0.5 * length[:, :m] * share,
        0.5 * depth[:, :m] * share, 0.5 * rise, yaw[:, :m], ROOF, colour[:, :m] * 0.6, draw(m),
        active[:, :m] & (draw(m) < 0.6), on_ground=False,
    )  # fmt: skip
    return buildings, roofs


def _vehicles(draw: _Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """12 parked (6 a side), 8 moving on the main road (4 each way), 4 on the crossing road."""
    parked, moving, crossing = 12, 8, 4
    plaza = _g(ground, "plaza", ground) > 0.5
    lane, lanes = _g(ground, "lane_width", ground), _g(ground, "lanes", ground)
    parking, speed = _g(ground, "parking", ground), _g(ground, "speed", ground)
    total = parked + moving + crossing
    # Classes: parked vehicles are cars and vans only.
    pick = draw(total)
    kind = torch.bucketize(pick, torch.tensor([0.45, 0.7, 0.84, 0.93], device=ground.device))
    kind = torch.cat([kind[:, :parked].clamp(max=2), kind[:, parked:]], dim=1)
    dims = _VEHICLES.to(ground.device)[kind]  # B, n, 12
    scale = draw(total, 0.93, 1.07)
    long, wide = dims[..., 0] * scale, dims[..., 1] * draw(total, 0.96, 1.04)

    slot = torch.arange(parked, device=ground.device) % (parked // 2)
    pitch = torch.where(plaza, draw(1, 2.6, 3.0), draw(1, 6.2, 8.5))
    px = (slot[None] - 2.5) * pitch + draw(1, -14.0, 14.0) + torch.where(plaza, 0.0, draw(parked, -0.4, 0.4))
    wall = _g(ground, "half_width", ground)
    pu = _sides(parked, ground) * torch.where(plaza, wall - 2.9, wall - 0.5 * parking.clamp(max=2.4))
    py, pyaw = _on_road(ground, px, pu)
    pyaw = pyaw + torch.where(plaza, 0.5 * torch.pi, 0.0) + draw(parked, -0.04, 0.04)
    pyaw = pyaw + torch.pi * (draw(parked) < 0.35)
    p_active = draw.chance("parked", parked) & (parking > 1.9) & _off_crossing(ground, px, 6.0)

    low = torch.tensor([-62.0, -30.0, 10.0, 30.0, -70.0, -34.0, 2.0, 38.0], device=ground.device)
    high = torch.tensor([-34.0, -11.0, 25.0, 68.0, -40.0, -4.0, 32.0, 75.0], device=ground.device)
    mx = draw(moving, low, high)
    way = torch.where(torch.arange(moving, device=ground.device) < 4, 1.0, -1.0)[None]
    my, myaw = _on_road(
        ground, mx, -way * lane * (torch.floor(draw(moving) * lanes) + 0.5) + draw(moving, -0.25, 0.25)
    )
    # Same direction: nearly the speed of the ego vehicle, so that nobody runs into anybody for some seconds.
    m_speed = speed * torch.where(way > 0, draw(moving, 0.95, 1.05), draw(moving, 0.3, 1.2))
    m_active = draw.chance("moving", moving)
    m_yaw = myaw + 0.5 * torch.pi * (1.0 - way)

    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], device=ground.device)[None]
    cx = _g(ground, "cross_x", ground) + sign * 0.5 * _g(ground, "cross_half", ground)
    c_side = torch.tensor([1.0, 1.0, -1.0, -1.0], device=ground.device)[None]
    cy = c_side * (wall + draw(crossing, 7.0, 40.0))
    c_speed = draw(crossing, 0.0, 9.0) * (sign * c_side > 0)  # those that drive away move, the others wait
    c_active = draw.chance("moving", crossing) & (_g(ground, "cross", ground) > 0.5)

    x, y = torch.cat([px, mx, cx], 1), torch.cat([py, my, cy], 1)
    yaw = torch.cat([pyaw, m_yaw, 0.5 * torch.pi * sign + 0.0 * cy], 1)
    v = torch.cat([0.0 * px, m_speed, c_speed], 1)
    active = torch.cat([p_active, m_active, c_active], 1)
    follow = torch.cat([0.0 * px, 1.0 + 0.0 * mx, 0.0 * cx + 0.0 * cy], 1)
    vx, vy = v * torch.cos(yaw), v * torch.sin(yaw)
    colour = draw.pick(_CAR_COLOURS, total) * draw(total, 0.8, 1.1)[..., None]
    seed = draw(total)
    parts = []
    for k in (0, 5):
        bottom, top, share, offset, narrow = (dims[..., 2 + k + i] for i in range(5))
        along = offset * long
        is_cab = (kind == 3) if k else (kind < 0)
        material = torch.where(kind == 3, torch.where(is_cab, BODY, CARGO), BODY if k == 0 else CABIN)
        grow = scale if k else torch.ones_like(scale)
        parts.append(
            _pack(
                ground, x + along * torch.cos(yaw), y + along * torch.sin(yaw), 0.5 * (bottom + top * grow),
                0.5 * long * share, 0.5 * wide * narrow, 0.5 * (top * grow - bottom), yaw, material, colour, seed,
                active, vx=vx, vy=vy, follow=follow, a0=kind.float(), a1=bottom,
            )
        )  # fmt: skip
    return parts[0], parts[1]


def _fences(draw: _Draw, ground: Tensor) -> Tensor:
    """16 fences, walls and hedges along the plots."""
    n = 16
    length = draw(n, 5.0, 16.0)
    x = _row(draw, n, length, draw(n).square() * 14.0 + 1.2, draw(1, -75.0, -50.0))
    u = _sides(n, ground) * (_g(ground, "half_width", x) + _g(ground, "pavement", x) + draw(n, 0.2, 0.7))
    y, yaw = _on_road(ground, x, u)
    kind = torch.floor(draw(n) * 3.0)  # fence, wall, hedge
    thick = torch.where(kind == 2, 0.35, torch.where(kind == 1, 0.12, 0.04))
    tall = draw(n, 0.7, 2.0)
    colour = draw.pick(
        torch.tensor([[0.35, 0.22, 0.12], [0.6, 0.58, 0.55], [0.7, 0.7, 0.7], [0.25, 0.26, 0.27]]), n
    )
    green = torch.tensor([0.07, 0.16, 0.04], device=ground.device)
    colour = torch.where((kind == 2)[..., None], green, colour)
    active = draw.chance("fence", n) & _off_crossing(ground, x, 0.5 * length + _g(ground, "pavement", x))
    return _pack(ground, x, y, 0.5 * tall - 0.3, 0.5 * length, thick, 0.5 * tall + 0.3, yaw, FENCE + kind, colour,
                 draw(n), active)  # fmt: skip


def _kerbside(ground: Tensor, x: Tensor, out: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """World y, heading and side for things ``out`` metres behind the kerb, half of them on the left."""
    side = _sides(x.shape[1], ground)
    y, yaw = _on_road(ground, x, side * (_g(ground, "half_width", x) + out))
    return y, yaw, side


def _signs(draw: _Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    n = 8
    x = draw(n, -45.0, 60.0)
    y, yaw, _ = _kerbside(ground, x, draw(n, 0.35, 0.8))
    tall = draw(n, 2.4, 3.3)
    active = draw.chance("sign", n) & _off_crossing(ground, x, 0.5)
    seed = draw(n)
    grey = torch.full((3,), 0.45, device=ground.device)
    posts = _pack(ground, x, y, 0.5 * tall, 0.035, 0.035, 0.5 * tall, yaw, POST, grey, seed, active)
    half = draw(n, 0.25, 0.45)
    plates = _pack(ground, x, y, tall + half - 0.3, 0.03, half, half * draw(n, 0.6, 1.2), yaw + draw(n, -0.15, 0.15),
                   PLATE, draw.pick(_SIGNS, n), seed, active)  # fmt: skip
    return posts, plates


def _furniture(draw: _Draw, ground: Tensor) -> Tensor:
    """12 cabinets, bins, benches and shelters on the pavement."""
    n = 12
    x = draw(n, -40.0, 50.0)
    y, yaw, _ = _kerbside(ground, x, _g(ground, "pavement", x) * draw(n, 0.55, 0.95) + 0.3)
    shape = draw.pick(
        torch.tensor([[0.3, 0.3, 1.1], [0.6, 0.25, 1.3], [0.9, 0.3, 0.5], [1.8, 0.06, 2.4], [0.7, 0.5, 1.2]]),
        n,
    )
    colour = draw.pick(
        torch.tensor([[0.2, 0.22, 0.2], [0.1, 0.25, 0.12], [0.5, 0.5, 0.5], [0.45, 0.3, 0.1]]), n
    )
    active = draw.chance("furniture", n) & _off_crossing(ground, x, 2.0)
    tall = shape[..., 2] * draw(n, 0.85, 1.15)
    return _pack(ground, x, y, 0.5 * tall, shape[..., 0], shape[..., 1], 0.5 * tall, yaw, FURNITURE, colour, draw(n),
                 active)  # fmt: skip


def _lamps(draw: _Draw, ground: Tensor) -> Tensor:
    n = 12
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = (slot[None] - 2.5) * draw(1, 22.0, 34.0) + draw(1, -10.0, 10.0) + 9.0 * (_sides(n, ground) > 0)
    y, yaw, _ = _kerbside(ground, x, 0.45)
    tall = draw(1, 4.5, 9.5)
    active = draw.chance("lamp") & _off_crossing(ground, x, 0.5) & (draw(n) < 0.9)
    grey = (draw(1, 0.05, 0.5)[..., None]).expand(-1, n, 3)
    radius = draw(1, 0.06, 0.13)
    return _pack(ground, x, y, 0.5 * tall, radius, radius, 0.5 * tall, yaw, POST, grey, draw(n), active)


def _trees(draw: _Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """20 trees: a trunk each, and two lobes of crown."""
    n = 20
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = (slot[None] - 4.0) * draw(1, 6.5, 13.0) + draw(n, -2.5, 2.5)
    urban = _g(ground, "surface", x) < 0.5
    out = torch.where(urban, 0.9 + 0.0 * x, _g(ground, "pavement", x) + 0.8 + draw(n).square() * 18.0)
    y, yaw, _ = _kerbside(ground, x, out)
    stem = draw(n, 1.8, 3.6)
    radius = draw(n, 0.08, 0.25)
    active = draw.chance("tree", n) & _off_crossing(ground, x, 1.5)
    seed = draw(n)
    bark = torch.tensor([0.16, 0.12, 0.085], device=ground.device)
    trunks = _pack(
        ground, x, y, 0.5 * stem - 0.2, radius, radius, 0.5 * stem + 0.2, yaw, TRUNK, bark, seed, active
    )
    conifer = draw(n) < 0.2
    wide = torch.where(conifer, draw(n, 0.9, 1.6), draw(n, 1.2, 3.2)) * torch.where(urban, 0.8, 1.0)
    tall = torch.where(conifer, draw(n, 2.5, 5.0), wide * draw(n, 0.75, 1.3))
    leaf = draw.pick(
        torch.tensor([[0.08, 0.17, 0.04], [0.13, 0.21, 0.05], [0.06, 0.13, 0.05], [0.24, 0.2, 0.05]]), n
    )
    leaf = leaf * draw(n, 0.7, 1.25)[..., None]
    first = _pack(ground, x, y, stem + 0.75 * tall, wide, wide, tall, yaw, CROWN, leaf, seed, active)
    shift = draw(n, 0.35, 0.8) * wide
    angle = draw(n, 0.0, 6.2832)
    part = draw(n, 0.5, 0.8)
    second = _pack(ground, x + shift * torch.cos(angle), y + shift * torch.sin(angle), stem + tall * draw(n, 0.5, 1.4),
                   wide * part, wide * part, tall * part, yaw, CROWN, leaf * 0.9, seed, active & ~conifer)  # fmt: skip
    return trunks, torch.cat([first, second], dim=2)


def _people(draw: _Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """12 pedestrians: a body each (cylinder) and a head (ellipsoid); some walk, some cross the road."""
    n = 12
    x = draw(n, -25.0, 40.0)
    out = torch.where(draw(n) < 0.85, _g(ground, "pavement", x) * draw(n, 0.2, 0.9) + 0.3, -draw(n, 0.2, 1.8))
    out = torch.where((out < 0.0) & (x.abs() < 9.0), 0.5, out)  # nobody under the ego vehicle
    y, yaw, _ = _kerbside(ground, x, out)
    stature = draw(n, 1.45, 1.95)
    radius = draw(n, 0.17, 0.27)
    walk = draw(n, 0.6, 1.7) * (draw(n) < 0.75) * torch.where(draw(n) < 0.5, 1.0, -1.0)
    active = draw.chance("person") & (draw(n) < 0.6)
    raised = torch.where(out > 0, _g(ground, "kerb", x), 0.0)
    clothes = draw.pick(_CAR_COLOURS, n) * 0.7 + draw(n * 3, 0.0, 0.2).reshape(-1, n, 3)
    seed = draw(n)
    body = 0.86 * stature
    moving = {"vx": walk * torch.cos(yaw), "vy": walk * torch.sin(yaw), "follow": 1.0}
    people = _pack(ground, x, y, raised + 0.5 * body, radius, radius, 0.5 * body, yaw, PERSON, clothes, seed, active,
                   a0=stature, **moving)  # fmt: skip
    skin = torch.tensor([0.45, 0.3, 0.22], device=ground.device)
    heads = _pack(
        ground, x, y, raised + 0.93 * stature, 0.105, 0.105, 0.13, yaw, HEAD, skin, seed, active, **moving
    )
    return people, heads


def _bollards(draw: _Draw, ground: Tensor) -> Tensor:
    n = 12
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = draw(1, -15.0, 25.0) + slot[None] * draw(1, 1.4, 2.6)
    y, yaw, _ = _kerbside(ground, x, 0.3)
    active = (draw(1) < 0.35) & _off_crossing(ground, x, 0.2) & (_g(ground, "surface", x) < 0.5)
    dark = (draw(1, 0.03, 0.6)[..., None]).expand(-1, n, 3)
    return _pack(ground, x, y, 0.5, 0.06, 0.06, 0.5, yaw, BOLLARD, dark, draw(n), active)


def _bushes(draw: _Draw, ground: Tensor) -> Tensor:
    n = 12
    x = draw(n, -45.0, 55.0)
    radius = draw(n, 0.4, 1.3)
    y, yaw, _ = _kerbside(ground, x, _g(ground, "pavement", x) + radius + draw(n).square() * 10.0)
    leaf = draw.pick(torch.tensor([[0.08, 0.17, 0.04], [0.13, 0.2, 0.05], [0.07, 0.12, 0.05]]), n)
    active = draw.chance("bush", n) & _off_crossing(ground, x, 2.0)
    return _pack(
        ground,
        x,
        y,
        0.4 * radius,
        radius,
        radius,
        radius * draw(n, 0.6, 1.0),
        yaw,
        BUSH,
        leaf,
        draw(n),
        active,
    )
