# SPDX-License-Identifier: Apache-2.0
"""Worlds from seeds: ground, objects and light drawn for a whole batch at once."""

import torch
from torch import Tensor

from . import objects
from .placing import Draw
from .world import PRIMITIVES, Worlds


def make_worlds(seeds: Tensor, layout: Tensor | None = None) -> Worlds:
    """Worlds for ``seeds`` (``[B]`` int64), on the device of ``seeds``.

    ``layout`` (``[B]`` int64, index into ``LAYOUTS``) overrides the drawn kind of place. The same seed gives the same
    world on any device up to float rounding.
    """
    draw = Draw(seeds, layout)
    ground = _make_ground(draw)
    buildings, roofs = objects.buildings(draw, ground)
    bodies, cabins = objects.vehicles(draw, ground)
    fences = objects.fences(draw, ground)
    posts, plates = objects.signs(draw, ground)
    people, heads = objects.people(draw, ground)
    trunks, crowns = objects.trees(draw, ground)
    boxes = [buildings, roofs, bodies, cabins, fences, plates, objects.furniture(draw, ground)]
    cylinders = [objects.lamps(draw, ground), posts, trunks, people, objects.bollards(draw, ground)]
    ellipsoids = [crowns, objects.bushes(draw, ground), heads]
    parts = [*boxes, *cylinders, *ellipsoids]
    prims = torch.cat(parts, dim=2)
    if prims.shape[2] != PRIMITIVES or draw.next > draw.table.shape[1]:
        raise AssertionError(
            f"slots or random numbers miscounted: {prims.shape[2]} slots, {draw.next} numbers"
        )
    return Worlds(seeds, draw.layout, prims.contiguous(), ground, _make_light(draw))


def _make_ground(draw: Draw) -> Tensor:
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


def _make_light(draw: Draw) -> Tensor:
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
