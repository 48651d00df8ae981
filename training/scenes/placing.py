# SPDX-License-Identifier: Apache-2.0
"""Drawing and placing: what the layouts ask for, random numbers for it, and positions along the road."""

import torch
from torch import Tensor

from .hashing import uniforms
from .world import KIND_OF_MATERIAL, LAYOUTS, ground_value, height, road_centre

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


class Draw:
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


def pack(ground, x, y, z, hx, hy, hz, yaw, material, colour, seed, active, *, vx=None, vy=None, a0=None, a1=None,
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
    kinds = torch.tensor(KIND_OF_MATERIAL, dtype=torch.float32).to(x.device)
    columns = [
        x, y, z, *shown, torch.cos(yaw), torch.sin(yaw), vx, vy, material, *(colour[..., i] + zero for i in range(3)),
        seed, a0, a1, follow, kinds[material.long()],
    ]  # fmt: skip
    return torch.stack(columns, dim=1)


def on_road(ground: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """World y and road heading for a position ``x`` along and ``u`` across the main road."""
    centre, slope = road_centre(ground, x)
    return centre + u * torch.sqrt(1.0 + slope * slope), torch.atan(slope)


def off_crossing(ground: Tensor, x: Tensor, margin: Tensor | float) -> Tensor:
    """True where ``x`` keeps ``margin`` clear of the crossing road and its pavement."""
    clear = (x - ground_value(ground, "cross_x", x)).abs() > ground_value(ground, "cross_half", x) + margin
    return clear | (ground_value(ground, "cross", x) < 0.5)


def sides(count: int, like: Tensor) -> Tensor:
    """``[1, count]`` of +1 (left) for the first half and -1 (right) for the second."""
    return torch.where(torch.arange(count, device=like.device) < count // 2, 1.0, -1.0)[None]


def end_to_end(count: int, lengths: Tensor, gaps: Tensor, start: Tensor) -> Tensor:
    """Centres along x of ``count`` things put end to end on either side: ``[B, count]``."""
    half = count // 2
    pieces = []
    for part in (slice(0, half), slice(half, count)):
        step = lengths[:, part] + gaps[:, part]
        pieces.append(torch.cumsum(step, dim=1) - 0.5 * lengths[:, part])
    return torch.cat(pieces, dim=1) + start


def kerbside(ground: Tensor, x: Tensor, out: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """World y, heading and side for things ``out`` metres behind the kerb, half of them on the left."""
    side = sides(x.shape[1], ground)
    y, yaw = on_road(ground, x, side * (ground_value(ground, "half_width", x) + out))
    return y, yaw, side
