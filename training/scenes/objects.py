# SPDX-License-Identifier: Apache-2.0
"""The objects of a world: each function fills the slots of one kind, ``[B, CHANNELS, slots]``, for every layout at once."""

import torch
from torch import Tensor

from . import world as w
from .placing import Draw, end_to_end, kerbside, off_crossing, on_road, pack, sides
from .world import ground_value, height

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


def buildings(draw: Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """20 along the main road, 12 along the crossing road or far behind, and 12 roof tops."""
    n, far = 20, 12
    side = sides(n, ground)
    length, depth, tall = draw.rule("width", n), draw(n, 9.0, 16.0), draw.rule("height", n)
    x = end_to_end(n, length, draw.rule("gap", n), draw(1, -115.0, -85.0))
    edge = ground_value(ground, "half_width", x) + ground_value(ground, "pavement", x)
    base = draw.rule("setback")  # one building line a street, with some standing back further
    setback = base + draw(n).square() * draw(n, 0.0, 3.0)
    u = side * (edge + setback + 0.5 * depth)
    y, yaw = on_road(ground, x, u)
    active = draw.chance("building", n) & off_crossing(
        ground, x, 0.5 * length + ground_value(ground, "pavement", x)
    )
    cross = ground_value(ground, "cross", x) > 0.5

    j = torch.arange(far, device=ground.device)
    sign_x, sign_y = (1.0 - 2.0 * (j % 2))[None], (1.0 - 2.0 * ((j // 2) % 2))[None]
    f_depth, f_length, f_tall = draw(far, 10.0, 18.0), draw.rule("width", far), draw.rule("height", far)
    out = ground_value(ground, "half_width", f_depth) + 16.0
    beside = (
        ground_value(ground, "cross_half", out) + ground_value(ground, "pavement", out) + 0.5 * f_depth + 1.0
    )
    fx = torch.where(
        cross[:, :1], ground_value(ground, "cross_x", out) + sign_x * beside, draw(far, -110.0, 110.0)
    )
    f_u = sign_y * (out + torch.where(cross[:, :1], 10.0 + 26.0 * (j // 4)[None], draw(far, 15.0, 60.0)))
    fy, f_yaw = on_road(ground, fx, f_u)
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
    buildings = pack(
        ground, x, y, 0.5 * (top - below), 0.5 * length, 0.5 * depth, 0.5 * (top + below), yaw, w.BUILDING, colour,
        draw(total), active, a0=draw(total, 1.9, 4.2), a1=draw(total, 2.7, 3.6),
    )  # fmt: skip
    m = 12
    rise = draw(m, 0.8, 3.2)
    share = draw(m, 0.3, 0.92)
    base_z = height(ground, x[:, :m], y[:, :m])
    roofs = pack(
        ground, x[:, :m], y[:, :m], base_z + top[:, :m] + 0.5 * rise, 0.5 * length[:, :m] * share,
        0.5 * depth[:, :m] * share, 0.5 * rise, yaw[:, :m], w.ROOF, colour[:, :m] * 0.6, draw(m),
        active[:, :m] & (draw(m) < 0.6), on_ground=False,
    )  # fmt: skip
    return buildings, roofs


def vehicles(draw: Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """12 parked (6 a side), 8 moving on the main road (4 each way), 4 on the crossing road."""
    parked, moving, crossing = 12, 8, 4
    plaza = ground_value(ground, "plaza", ground) > 0.5
    lane, lanes = ground_value(ground, "lane_width", ground), ground_value(ground, "lanes", ground)
    parking, speed = ground_value(ground, "parking", ground), ground_value(ground, "speed", ground)
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
    wall = ground_value(ground, "half_width", ground)
    pu = sides(parked, ground) * torch.where(plaza, wall - 2.9, wall - 0.5 * parking.clamp(max=2.4))
    py, pyaw = on_road(ground, px, pu)
    pyaw = pyaw + torch.where(plaza, 0.5 * torch.pi, 0.0) + draw(parked, -0.04, 0.04)
    pyaw = pyaw + torch.pi * (draw(parked) < 0.35)
    p_active = draw.chance("parked", parked) & (parking > 1.9) & off_crossing(ground, px, 6.0)

    low = torch.tensor([-62.0, -30.0, 10.0, 30.0, -70.0, -34.0, 2.0, 38.0], device=ground.device)
    high = torch.tensor([-34.0, -11.0, 25.0, 68.0, -40.0, -4.0, 32.0, 75.0], device=ground.device)
    mx = draw(moving, low, high)
    way = torch.where(torch.arange(moving, device=ground.device) < 4, 1.0, -1.0)[None]
    my, myaw = on_road(
        ground, mx, -way * lane * (torch.floor(draw(moving) * lanes) + 0.5) + draw(moving, -0.25, 0.25)
    )
    # Same direction: nearly the speed of the ego vehicle, so that nobody runs into anybody for some seconds.
    m_speed = speed * torch.where(way > 0, draw(moving, 0.95, 1.05), draw(moving, 0.3, 1.2))
    m_active = draw.chance("moving", moving)
    m_yaw = myaw + 0.5 * torch.pi * (1.0 - way)

    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], device=ground.device)[None]
    cx = ground_value(ground, "cross_x", ground) + sign * 0.5 * ground_value(ground, "cross_half", ground)
    c_side = torch.tensor([1.0, 1.0, -1.0, -1.0], device=ground.device)[None]
    cy = c_side * (wall + draw(crossing, 7.0, 40.0))
    c_speed = draw(crossing, 0.0, 9.0) * (sign * c_side > 0)  # those that drive away move, the others wait
    c_active = draw.chance("moving", crossing) & (ground_value(ground, "cross", ground) > 0.5)

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
        material = torch.where(kind == 3, torch.where(is_cab, w.BODY, w.CARGO), w.BODY if k == 0 else w.CABIN)
        grow = scale if k else torch.ones_like(scale)
        parts.append(
            pack(
                ground, x + along * torch.cos(yaw), y + along * torch.sin(yaw), 0.5 * (bottom + top * grow),
                0.5 * long * share, 0.5 * wide * narrow, 0.5 * (top * grow - bottom), yaw, material, colour, seed,
                active, vx=vx, vy=vy, follow=follow, a0=kind.float(), a1=bottom,
            )
        )  # fmt: skip
    return parts[0], parts[1]


def fences(draw: Draw, ground: Tensor) -> Tensor:
    """16 fences, walls and hedges along the plots."""
    n = 16
    length = draw(n, 5.0, 16.0)
    x = end_to_end(n, length, draw(n).square() * 14.0 + 1.2, draw(1, -75.0, -50.0))
    u = sides(n, ground) * (
        ground_value(ground, "half_width", x) + ground_value(ground, "pavement", x) + draw(n, 0.2, 0.7)
    )
    y, yaw = on_road(ground, x, u)
    kind = torch.floor(draw(n) * 3.0)  # fence, wall, hedge
    thick = torch.where(kind == 2, 0.35, torch.where(kind == 1, 0.12, 0.04))
    tall = draw(n, 0.7, 2.0)
    colour = draw.pick(
        torch.tensor([[0.35, 0.22, 0.12], [0.6, 0.58, 0.55], [0.7, 0.7, 0.7], [0.25, 0.26, 0.27]]), n
    )
    green = torch.tensor([0.07, 0.16, 0.04], device=ground.device)
    colour = torch.where((kind == 2)[..., None], green, colour)
    active = draw.chance("fence", n) & off_crossing(
        ground, x, 0.5 * length + ground_value(ground, "pavement", x)
    )
    return pack(ground, x, y, 0.5 * tall - 0.3, 0.5 * length, thick, 0.5 * tall + 0.3, yaw, w.FENCE + kind, colour,
                 draw(n), active)  # fmt: skip


def signs(draw: Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    n = 8
    x = draw(n, -45.0, 60.0)
    y, yaw, _ = kerbside(ground, x, draw(n, 0.35, 0.8))
    tall = draw(n, 2.4, 3.3)
    active = draw.chance("sign", n) & off_crossing(ground, x, 0.5)
    seed = draw(n)
    grey = torch.full((3,), 0.45, device=ground.device)
    posts = pack(ground, x, y, 0.5 * tall, 0.035, 0.035, 0.5 * tall, yaw, w.POST, grey, seed, active)
    half = draw(n, 0.25, 0.45)
    plates = pack(ground, x, y, tall + half - 0.3, 0.03, half, half * draw(n, 0.6, 1.2), yaw + draw(n, -0.15, 0.15),
                   w.PLATE, draw.pick(_SIGNS, n), seed, active)  # fmt: skip
    return posts, plates


def furniture(draw: Draw, ground: Tensor) -> Tensor:
    """12 cabinets, bins, benches and shelters on the pavement."""
    n = 12
    x = draw(n, -40.0, 50.0)
    y, yaw, _ = kerbside(ground, x, ground_value(ground, "pavement", x) * draw(n, 0.55, 0.95) + 0.3)
    shape = draw.pick(
        torch.tensor([[0.3, 0.3, 1.1], [0.6, 0.25, 1.3], [0.9, 0.3, 0.5], [1.8, 0.06, 2.4], [0.7, 0.5, 1.2]]),
        n,
    )
    colour = draw.pick(
        torch.tensor([[0.2, 0.22, 0.2], [0.1, 0.25, 0.12], [0.5, 0.5, 0.5], [0.45, 0.3, 0.1]]), n
    )
    active = draw.chance("furniture", n) & off_crossing(ground, x, 2.0)
    tall = shape[..., 2] * draw(n, 0.85, 1.15)
    return pack(ground, x, y, 0.5 * tall, shape[..., 0], shape[..., 1], 0.5 * tall, yaw, w.FURNITURE, colour, draw(n),
                 active)  # fmt: skip


def lamps(draw: Draw, ground: Tensor) -> Tensor:
    n = 12
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = (slot[None] - 2.5) * draw(1, 22.0, 34.0) + draw(1, -10.0, 10.0) + 9.0 * (sides(n, ground) > 0)
    y, yaw, _ = kerbside(ground, x, 0.45)
    tall = draw(1, 4.5, 9.5)
    active = draw.chance("lamp") & off_crossing(ground, x, 0.5) & (draw(n) < 0.9)
    grey = (draw(1, 0.05, 0.5)[..., None]).expand(-1, n, 3)
    radius = draw(1, 0.06, 0.13)
    return pack(ground, x, y, 0.5 * tall, radius, radius, 0.5 * tall, yaw, w.POST, grey, draw(n), active)


def trees(draw: Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """20 trees: a trunk each, and two lobes of crown."""
    n = 20
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = (slot[None] - 4.0) * draw(1, 6.5, 13.0) + draw(n, -2.5, 2.5)
    urban = ground_value(ground, "surface", x) < 0.5
    out = torch.where(
        urban, 0.9 + 0.0 * x, ground_value(ground, "pavement", x) + 0.8 + draw(n).square() * 18.0
    )
    y, yaw, _ = kerbside(ground, x, out)
    stem = draw(n, 1.8, 3.6)
    radius = draw(n, 0.08, 0.25)
    active = draw.chance("tree", n) & off_crossing(ground, x, 1.5)
    seed = draw(n)
    bark = torch.tensor([0.16, 0.12, 0.085], device=ground.device)
    trunks = pack(
        ground, x, y, 0.5 * stem - 0.2, radius, radius, 0.5 * stem + 0.2, yaw, w.TRUNK, bark, seed, active
    )
    conifer = draw(n) < 0.2
    wide = torch.where(conifer, draw(n, 0.9, 1.6), draw(n, 1.2, 3.2)) * torch.where(urban, 0.8, 1.0)
    tall = torch.where(conifer, draw(n, 2.5, 5.0), wide * draw(n, 0.75, 1.3))
    leaf = draw.pick(
        torch.tensor([[0.08, 0.17, 0.04], [0.13, 0.21, 0.05], [0.06, 0.13, 0.05], [0.24, 0.2, 0.05]]), n
    )
    leaf = leaf * draw(n, 0.7, 1.25)[..., None]
    first = pack(ground, x, y, stem + 0.75 * tall, wide, wide, tall, yaw, w.CROWN, leaf, seed, active)
    shift = draw(n, 0.35, 0.8) * wide
    angle = draw(n, 0.0, 6.2832)
    part = draw(n, 0.5, 0.8)
    second = pack(ground, x + shift * torch.cos(angle), y + shift * torch.sin(angle), stem + tall * draw(n, 0.5, 1.4),
                   wide * part, wide * part, tall * part, yaw, w.CROWN, leaf * 0.9, seed, active & ~conifer)  # fmt: skip
    return trunks, torch.cat([first, second], dim=2)


def people(draw: Draw, ground: Tensor) -> tuple[Tensor, Tensor]:
    """12 pedestrians: a body each (cylinder) and a head (ellipsoid); some walk, some cross the road."""
    n = 12
    x = draw(n, -25.0, 40.0)
    out = torch.where(
        draw(n) < 0.85, ground_value(ground, "pavement", x) * draw(n, 0.2, 0.9) + 0.3, -draw(n, 0.2, 1.8)
    )
    out = torch.where((out < 0.0) & (x.abs() < 9.0), 0.5, out)  # nobody under the ego vehicle
    y, yaw, _ = kerbside(ground, x, out)
    stature = draw(n, 1.45, 1.95)
    radius = draw(n, 0.17, 0.27)
    walk = draw(n, 0.6, 1.7) * (draw(n) < 0.75) * torch.where(draw(n) < 0.5, 1.0, -1.0)
    active = draw.chance("person") & (draw(n) < 0.6)
    raised = torch.where(out > 0, ground_value(ground, "kerb", x), 0.0)
    clothes = draw.pick(_CAR_COLOURS, n) * 0.7 + draw(n * 3, 0.0, 0.2).reshape(-1, n, 3)
    seed = draw(n)
    body = 0.86 * stature
    moving = {"vx": walk * torch.cos(yaw), "vy": walk * torch.sin(yaw), "follow": 1.0}
    people = pack(ground, x, y, raised + 0.5 * body, radius, radius, 0.5 * body, yaw, w.PERSON, clothes, seed, active,
                   a0=stature, **moving)  # fmt: skip
    skin = torch.tensor([0.45, 0.3, 0.22], device=ground.device)
    heads = pack(
        ground, x, y, raised + 0.93 * stature, 0.105, 0.105, 0.13, yaw, w.HEAD, skin, seed, active, **moving
    )
    return people, heads


def bollards(draw: Draw, ground: Tensor) -> Tensor:
    n = 12
    slot = torch.arange(n, device=ground.device) % (n // 2)
    x = draw(1, -15.0, 25.0) + slot[None] * draw(1, 1.4, 2.6)
    y, yaw, _ = kerbside(ground, x, 0.3)
    active = (draw(1) < 0.35) & off_crossing(ground, x, 0.2) & (ground_value(ground, "surface", x) < 0.5)
    dark = (draw(1, 0.03, 0.6)[..., None]).expand(-1, n, 3)
    return pack(ground, x, y, 0.5, 0.06, 0.06, 0.5, yaw, w.BOLLARD, dark, draw(n), active)


def bushes(draw: Draw, ground: Tensor) -> Tensor:
    n = 12
    x = draw(n, -45.0, 55.0)
    radius = draw(n, 0.4, 1.3)
    y, yaw, _ = kerbside(ground, x, ground_value(ground, "pavement", x) + radius + draw(n).square() * 10.0)
    leaf = draw.pick(torch.tensor([[0.08, 0.17, 0.04], [0.13, 0.2, 0.05], [0.07, 0.12, 0.05]]), n)
    active = draw.chance("bush", n) & off_crossing(ground, x, 2.0)
    return pack(
        ground,
        x,
        y,
        0.4 * radius,
        radius,
        radius,
        radius * draw(n, 0.6, 1.0),
        yaw,
        w.BUSH,
        leaf,
        draw(n),
        active,
    )
