# SPDX-License-Identifier: Apache-2.0
"""What a ray sees: surface colour, normal, reflectivity and glass from procedural textures, and the light on it.

The texture sizes are real ones (window grids, bricks, paving, lane marks), so that appearance carries scale. LiDAR and
cameras share ``surface``, so that a window is a window to both. Colours are linear RGB.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import world as w
from .cast import FAR, Vec
from .hashing import hash_unit

# Labels of ``render_lidar(...)["kind"]``.
KINDS = (
    "none", "road", "pavement", "terrain", "building", "vehicle", "pedestrian", "pole", "sign", "vegetation",
    "fence", "furniture", "kerb", "glass",
)  # fmt: skip
(
    NONE,
    ROAD,
    PAVEMENT,
    TERRAIN,
    BUILDING,
    VEHICLE,
    PEDESTRIAN,
    POLE,
    SIGN,
    VEGETATION,
    FENCE,
    FURNITURE,
    KERB,
    GLASS,
) = range(14)
_KIND_OF_MATERIAL = (
    BUILDING, BUILDING, VEHICLE, VEHICLE, VEHICLE, SIGN, FENCE, FENCE, VEGETATION, FURNITURE,
    POLE, VEGETATION, PEDESTRIAN, POLE, VEGETATION, VEGETATION, PEDESTRIAN,
)  # fmt: skip


@dataclass
class Surface:
    """What rays hit, each field ``[B, I, J]`` (vectors and colours: tuples of three)."""

    kind: Tensor
    albedo: Vec
    normal: Vec
    position: Vec
    glass: Tensor  # 1 = window: mirrors the sky, and LiDAR light is lost
    reflectivity: Tensor  # at the LiDAR's wavelength, 0..1
    glow: Tensor  # light of its own (lit windows, lamps)


def mix(a: Vec, b: Vec, amount: Tensor) -> Vec:
    """``a`` where ``amount`` is 0, ``b`` where it is 1."""
    return tuple(x + (y - x) * amount for x, y in zip(a, b, strict=True))


def scale(a: Vec, by: Tensor | float) -> Vec:
    return tuple(x * by for x in a)


def grey(value: Tensor | float, r: float = 1.0, g: float = 1.0, b: float = 1.0) -> Vec:
    return (value * r, value * g, value * b)


def _flag(condition: Tensor) -> Tensor:
    return condition.to(torch.float32)


def _cell(*coordinates: Tensor, key: Tensor) -> Tensor:
    """A random number in [0, 1) for each lattice cell."""
    return hash_unit(key, *(torch.floor(c).to(torch.int32) for c in coordinates))


def _noise(x: Tensor, y: Tensor, key: Tensor) -> Tensor:
    """Smooth value noise in [0, 1) with features of size 1."""
    ix, iy = torch.floor(x), torch.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    ix, iy = ix.to(torch.int32), iy.to(torch.int32)
    a, b = hash_unit(key, ix, iy), hash_unit(key, ix + 1, iy)
    c, d = hash_unit(key, ix, iy + 1), hash_unit(key, ix + 1, iy + 1)
    return (a + (b - a) * fx) * (1.0 - fy) + (c + (d - c) * fx) * fy


def _inside(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return _flag((value > low) & (value < high))


def _line(distance: Tensor, width: Tensor | float, blur: Tensor) -> Tensor:
    """Coverage of a line of ``width`` by a pixel of size ``blur``, from the distance to its middle."""
    return ((0.5 * width + 0.5 * blur - distance.abs()) / blur).clamp(0.0, 1.0) * (width / blur).clamp(
        max=1.0
    )


def _fract(x: Tensor) -> Tensor:
    return x - torch.floor(x)


def sky(light: Tensor, direction: Vec) -> Vec:
    """Colour of the sky in a direction: gradient, clouds and the glow around the sun."""
    dx, dy, dz = direction
    g = [w_light(light, i, dx) for i in range(len(w.LIGHT))]
    up = dz.clamp(min=0.0)
    rise = 1.0 - (1.0 - up).clamp(0.0, 1.0) ** 3
    colour = mix((g[9], g[10], g[11]), (g[6], g[7], g[8]), rise)
    # Clouds on a plane high above; each world has its own.
    px, py = dx / (up + 0.12) * 1.7 + 40.0 * g[12], dy / (up + 0.12) * 1.7 + 17.0 * g[13]
    key = (g[12] * 4096.0).to(torch.int32)
    n = (
        0.55 * _noise(px, py, key)
        + 0.3 * _noise(2.1 * px, 2.1 * py, key + 1)
        + 0.15 * _noise(4.7 * px, 4.7 * py, key + 2)
    )
    cloud = ((n - 0.62 + 0.35 * g[12]) * 4.0).clamp(0.0, 1.0) * (up * 6.0).clamp(max=1.0) * _flag(g[12] > 0.1)
    colour = mix(colour, grey(0.9 + 0.3 * g[3] / 3.0, 1.0, 1.0, 1.02), 0.85 * cloud)
    toward = (dx * g[0] + dy * g[1] + dz * g[2]).clamp(0.0, 1.0)
    halo = (0.25 * toward**16 + 4.0 * toward**600) * (g[3] / 3.0) * (1.0 - 0.8 * cloud)
    return tuple(c + halo * s for c, s in zip(colour, (1.0, 0.93, 0.8), strict=True))


def w_light(light: Tensor, index: int, like: Tensor) -> Tensor:
    return light[:, index].reshape(-1, *([1] * (like.dim() - 1)))


def surface(worlds_prims: Tensor, ground: Tensor, origin: Vec, direction: Vec, time: Tensor, t_object: Tensor, index: Tensor,
            t_ground: Tensor, face: Tensor, pixel: float) -> Surface:  # fmt: skip
    """Surface data for rays whose nearest hits are known. ``pixel`` is the angle between rays, for anti-aliasing."""
    is_ground = t_ground < t_object
    t = torch.minimum(t_object, t_ground)
    hit = t < FAR
    safe = torch.where(hit, t, 0.0)
    position = tuple(o + d * safe for o, d in zip(origin, direction, strict=True))
    blur = (safe * pixel).clamp(min=1e-4)  # size of a pixel on a surface seen head-on, metres
    a = _object_surface(worlds_prims, index, position, direction, time, blur)
    b = _ground_surface(ground, position, direction, face, blur)

    def choose(ground_value: Tensor, object_value: Tensor) -> Tensor:
        return torch.where(is_ground, ground_value, object_value)

    return Surface(
        kind=torch.where(hit, choose(b.kind, a.kind), NONE),
        albedo=tuple(map(choose, b.albedo, a.albedo)),
        normal=tuple(map(choose, b.normal, a.normal)),
        position=position,
        glass=choose(b.glass, a.glass),
        reflectivity=choose(b.reflectivity, a.reflectivity),
        glow=choose(b.glow, a.glow),
    )


def _ground_surface(ground: Tensor, position: Vec, direction: Vec, face: Tensor, blur: Tensor) -> Surface:
    x, y, _ = position
    g = dict(zip(w.GROUND, ground[:, :, None, None].unbind(1), strict=True))
    u, v, outside = w.road_coordinates(ground, x, y)
    key = (g["seed"] * 65536.0).to(torch.int32) + torch.zeros_like(x, dtype=torch.int32)
    # Pixels stretch along the line of sight where the ground is seen at a flat angle.
    flat = direction[2].abs().clamp(min=0.02)
    wide = blur / flat.sqrt()
    fade = lambda size: (size / (wide + 1e-4) * 0.7).clamp(0.0, 1.0)  # noqa: E731 - detail below a pixel averages out

    fine = (_cell(x / 0.02, y / 0.02, key=key) - 0.5) * fade(0.02)
    coarse = (_noise(x / 0.35, y / 0.35, key + 1) - 0.5) * fade(0.35)
    patch = _noise(x / 6.0, y / 6.0, key + 2) - 0.5
    on_road = outside < 0.0
    # Asphalt: tracks worn darker along the lanes, repaired rectangles, grain.
    lane_phase = _fract(u.abs() / g["lane_width"]) - 0.5
    tracks = torch.exp(-(((lane_phase.abs() - 0.24) / 0.1) ** 2)) * (1.0 - g["plaza"])
    repaired = _flag(_cell(x / 7.0, u / 2.5, key=key + 3) > 0.9)
    asphalt = (0.10 + 0.07 * g["seed"]) * (
        1.0 + 0.5 * fine + 0.25 * coarse + 0.35 * patch - 0.15 * tracks - 0.3 * repaired
    )
    # Markings: dashed lane lines, a centre line, edge lines; parking bays; zebra stripes before a crossing.
    in_cross = (v.abs() < g["cross_half"] + 1.0) & (g["cross"] > 0.5)
    lane_edge = (u.abs() / g["lane_width"]).round()
    edge_distance = u.abs() - lane_edge * g["lane_width"]
    dashed = _flag(_fract(x / 9.0) < 0.4)
    solid = _flag(lane_edge >= g["lanes"] - 0.5)
    inner = _flag((lane_edge <= g["lanes"]) & (lane_edge > 0.5)) + _flag(lane_edge < 0.5)
    rural_or_wide = inner * torch.maximum(dashed, solid)
    marking = _line(edge_distance, 0.13, wide) * rural_or_wide
    bay_zone = _flag((u.abs() > g["lanes"] * g["lane_width"]) & (g["parking"] > 1.9))
    in_plaza = _flag(g["plaza"] > 0.5)
    bay = _line((_fract(x / 2.75 + 0.5) - 0.5) * 2.75, 0.1, wide) * _flag(u.abs() > g["half_width"] - 5.2)
    marking = torch.maximum(marking, bay * bay_zone * in_plaza)
    marking = marking * _flag(~in_cross)
    zebra_zone = _inside(v.abs() - g["cross_half"], 1.2, 4.2) * _flag(
        (u.abs() < g["half_width"] - 0.2) & (g["cross"] > 0.5)
    )
    zebra = _line((_fract(u / 1.0) - 0.5) * 1.0, 0.5, wide) * zebra_zone
    marking = torch.maximum(marking, zebra) * (0.65 + 0.35 * _noise(x / 0.8, y / 0.8, key + 4))
    road = mix(grey(asphalt, 1.0, 1.0, 1.03), (torch.full_like(x, 0.68),) * 3, 0.9 * marking)
    # Pavement: slabs of half a metre with joints, each a little different.
    joint = torch.maximum(
        _line((_fract(x / 0.5) - 0.5) * 0.5, 0.012, wide), _line((_fract(u / 0.5) - 0.5) * 0.5, 0.012, wide)
    )
    slab = (_cell(x / 0.5, u / 0.5, key=key + 5) - 0.5) * fade(0.5)
    stone = (0.28 + 0.2 * _fract(g["seed"] * 7.0)) * (
        1.0 + 0.25 * slab + 0.2 * fine + 0.2 * patch - 0.5 * joint
    )
    pavement = grey(stone, 1.0, 0.97 - 0.05 * _fract(g["seed"] * 3.0), 0.92 - 0.1 * _fract(g["seed"] * 3.0))
    kerb_stone = (outside > 0.0) & (outside < 0.16) & (g["kerb"] > 0.01)
    pavement = mix(pavement, (torch.full_like(x, 0.42),) * 3, 0.6 * _flag(kerb_stone))
    # Beyond the pavement: grass, or a yard of gravel and slabs.
    blade = (_cell(x / 0.03, y / 0.03, key=key + 6) - 0.5) * fade(0.03)
    tuft = _noise(x / 0.25, y / 0.25, key + 7) * fade(0.25) + 0.5 * (1.0 - fade(0.25))
    field = _noise(x / 9.0, y / 9.0, key + 8)
    lush = (0.6 + 0.5 * tuft + 0.5 * blade) * (0.8 + 0.4 * patch)
    grass = mix(
        (0.085 * lush, 0.16 * lush, 0.04 * lush),
        (0.22 * lush, 0.19 * lush, 0.09 * lush),
        (field - 0.35).clamp(0.0, 0.8),
    )
    is_far = outside > g["pavement"]
    is_grass = is_far & (g["surface"] > 0.5)
    colour = tuple(
        torch.where(is_grass, c, torch.where(on_road, r, p))
        for c, r, p in zip(grass, road, pavement, strict=True)
    )
    colour = tuple(torch.where(face, 0.36 + 0.1 * fine, c) for c in colour)
    kind = torch.where(is_grass, TERRAIN, torch.where(on_road, ROAD, PAVEMENT))
    kind = torch.where(face | (kerb_stone & ~is_grass), KERB, kind)
    # Slope of the height field by central differences; the face of a kerb looks at the road.
    e = 0.5
    nx = (w.height(ground, x - e, y) - w.height(ground, x + e, y)) / (2 * e)
    ny = (w.height(ground, x, y - e) - w.height(ground, x, y + e)) / (2 * e)
    inverse = torch.rsqrt(nx * nx + ny * ny + 1.0)
    horizontal = torch.rsqrt(direction[0] ** 2 + direction[1] ** 2 + 1e-9)
    normal = (
        torch.where(face, -direction[0] * horizontal, nx * inverse),
        torch.where(face, -direction[1] * horizontal, ny * inverse),
        torch.where(face, torch.zeros_like(x), inverse),
    )
    reflect = torch.where(
        is_grass,
        0.35 + 0.2 * tuft,
        torch.where(on_road, 0.1 + 0.06 * patch + 0.55 * marking, 0.22 + 0.1 * slab),
    )
    zero = torch.zeros_like(x)
    return Surface(kind, colour, normal, position, zero, reflect, zero)


def _object_surface(
    prims: Tensor, index: Tensor, position: Vec, direction: Vec, time: Tensor, blur: Tensor
) -> Surface:
    flat_index = index.flatten(1)
    p = [torch.gather(prims[:, c], 1, flat_index).view(index.shape) for c in range(w.CHANNELS)]
    x = position[0] - p[w.CX] - p[w.VX] * time
    y = position[1] - p[w.CY] - p[w.VY] * time
    z = position[2] - p[w.CZ]
    lx, ly = x * p[w.COS] + y * p[w.SIN], y * p[w.COS] - x * p[w.SIN]
    hx, hy, hz = p[w.HX], p[w.HY], p[w.HZ]
    material = p[w.MATERIAL].to(torch.int32)
    key = (p[w.SEED] * 65536.0).to(torch.int32)
    is_box = index < w.BOXES
    is_cylinder = (index >= w.BOXES) & (index < w.BOXES + w.CYLINDERS)

    # Local normal. Box: the axis that is nearest to its face.
    qx, qy, qz = lx.abs() / hx, ly.abs() / hy, z.abs() / hz
    box_z = (qz >= qx) & (qz >= qy)
    box_x = ~box_z & (qx >= qy)
    round_z = torch.where(is_cylinder, torch.where(qz > 0.9999, z * 1e3, 0.0), z / (hz * hz))
    nx = torch.where(is_box, torch.where(box_x, torch.sign(lx), 0.0), lx / (hx * hx))
    ny = torch.where(is_box, torch.where(box_x | box_z, 0.0, torch.sign(ly)), ly / (hy * hy))
    nz = torch.where(is_box, torch.where(box_z, torch.sign(z), 0.0), round_z)
    inverse = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
    # Surface coordinates: s along the face, h above the foot, metres.
    around = torch.atan2(ly, lx) * hx
    s = torch.where(is_box, torch.where(box_x, ly, lx), around)
    h = z + hz
    top = nz > 0.7
    length = torch.where(box_x, hy, hx)
    fade = lambda size: (size / (blur + 1e-4) * 0.7).clamp(0.0, 1.0)  # noqa: E731

    base = (p[w.RED], p[w.GREEN], p[w.BLUE])
    tz = torch.where(top, ly, h)  # second texture coordinate
    fine = (_cell(s / 0.04, tz / 0.04, key=key) - 0.5) * fade(0.04)
    coarse = _noise(s / 0.5, tz / 0.5, key + 1) - 0.5
    stain = _noise(s / 3.0, tz / 3.0, key + 2) - 0.5

    # Facades: base in the ground is 3 m deep; windows on a grid of a0 x a1 metres; taller ones at street level in town.
    is_building = material == w.BUILDING
    up = h - 3.0
    pitch, storey = p[w.A0].clamp(min=1.0), p[w.A1].clamp(min=1.0)
    column, floor = (s + length) / pitch, up / storey
    fu, fv = _fract(column), _fract(floor)
    shop = _flag((p[w.SEED] > 0.55) & (floor < 1.0))
    half_w = 0.22 + 0.14 * _fract(p[w.SEED] * 13.0) + 0.08 * shop
    sill, lintel = 0.28 - 0.18 * shop, 0.78 + 0.04 * shop
    fits = (up > 0.0) & (2.0 * hz - h > 0.25 * storey) & (length - s.abs() > 0.3) & ~top
    in_window = _flag(fits) * _inside((fu - 0.5).abs(), -1.0, half_w) * _inside(fv, sill, lintel)
    frame = in_window * (
        1.0 - _inside((fu - 0.5).abs(), 0.02, half_w - 0.025) * _inside(fv, sill + 0.025, lintel - 0.025)
    )  # fmt: skip
    window_random = _cell(column, floor, key=key + 3)
    blank = _flag(window_random < 0.08)
    window = in_window * (1.0 - frame) * (1.0 - blank)
    # Brick courses (0.25 x 0.075 m) on some, plain render on others, a plinth and bands between storeys.
    row = torch.floor(h / 0.075)
    brick = (
        (_cell(s / 0.25 + 0.5 * row, row + 0.5, key=key + 4) - 0.5)
        * fade(0.08)
        * _flag(_fract(p[w.SEED] * 29.0) < 0.55)
    )
    mortar = _line((_fract(h / 0.075) - 0.5) * 0.075, 0.012, blur) * _flag(_fract(p[w.SEED] * 29.0) < 0.55)
    plinth = _flag(up < 0.7) * 0.3
    band = _flag(_fract(floor) > 0.94) * 0.18 * _flag(_fract(p[w.SEED] * 41.0) < 0.5)
    facade = scale(base, 1.0 + 0.5 * brick + 0.15 * fine + 0.25 * stain + 0.12 * coarse - plinth + band)
    facade = mix(facade, grey(torch.full_like(s, 0.5)), 0.35 * mortar)
    facade = mix(facade, grey(torch.full_like(s, 0.75)), frame)
    facade = mix(facade, scale(base, 0.4), in_window * blank * (1.0 - frame))
    roof_top = grey(0.22 + 0.1 * coarse)
    colour = tuple(
        torch.where(is_building, torch.where(top, r, f), c)
        for r, f, c in zip(roof_top, facade, base, strict=True)
    )
    lit = window * _flag(window_random > 0.94) * 0.7
    glass = window * is_building

    # Vehicles: dark sills, wheels as discs, lamps and plates at the ends; windows all round the cabin.
    is_body, is_cabin, is_cargo = material == w.BODY, material == w.CABIN, material == w.CARGO
    vehicle = is_body | is_cabin | is_cargo
    side, end, front = ~box_x & ~box_z, box_x, lx > 0
    above_road = h + p[w.A1]
    heavy = p[w.A0] > 2.5
    wheel_radius = torch.where(heavy, 0.48, 0.32)
    wheel_at = hx - torch.where(heavy, 1.6, 0.85)
    wheel = torch.sqrt((lx.abs() - wheel_at) ** 2 + (above_road - wheel_radius) ** 2)
    tyre = _flag(side & is_body) * _flag(wheel < wheel_radius)
    rim = tyre * _flag(wheel < 0.6 * wheel_radius)
    arch = _flag(side & is_body) * _flag(wheel < 1.15 * wheel_radius)
    low = _flag(above_road < 0.28) * is_body * (1.0 - 0.5 * tyre)
    paint = scale(base, 1.0 + 0.04 * coarse)
    seam = _line(_fract((lx + 0.55 * hx) / 1.05) - 0.5, 0.012, blur) * _flag(side) * is_body
    paint = scale(paint, 1.0 - 0.5 * seam)
    paint = mix(paint, grey(torch.full_like(s, 0.012)), torch.maximum(arch, 0.85 * low))
    paint = mix(paint, grey(torch.full_like(s, 0.35)), 0.8 * rim)
    lamp = _flag(end & is_body) * _inside(ly.abs() / hy, 0.62, 0.95) * _inside(above_road, 0.55, 0.78)
    lamp_colour = tuple(torch.where(front, a, b) for a, b in ((0.9, 0.55), (0.9, 0.02), (0.85, 0.02)))
    paint = mix(paint, tuple(c + 0.0 * s for c in lamp_colour), lamp)
    plate = _flag(end & is_body) * _flag(ly.abs() < 0.26) * _inside(above_road, 0.42, 0.53)
    paint = mix(paint, grey(torch.full_like(s, 0.75)), plate)
    pane = _inside(h / (2.0 * hz), 0.1, 0.88) * _flag(~box_z) * is_cabin
    pillar = _flag(side) * (1.0 - _inside(_fract((lx + hx) / 1.1 + 0.05), 0.09, 1.0)) + _flag(end) * _flag(
        qy > 0.93
    )
    pane = (
        pane * (1.0 - pillar.clamp(max=1.0)) * (1.0 - _flag((p[w.A0] == 2.0) & side & (lx < 0.35 * hx)))
    )  # vans: panels
    cab_pane = is_body * _flag(p[w.A0] == 3.0) * _inside(above_road, 1.5, 2.3) * _flag(front | side)
    pane = torch.maximum(pane, cab_pane)
    cargo = mix(scale(base, 0.5), grey(torch.full_like(s, 0.6)), _flag(p[w.SEED] > 0.4))
    cargo = scale(cargo, 1.0 + 0.15 * stain - 0.1 * _line(_fract(s / 0.9) - 0.5, 0.03, blur))
    colour = tuple(
        torch.where(is_cargo, c, torch.where(is_body | is_cabin, b, a))
        for a, b, c in zip(colour, paint, cargo, strict=True)
    )
    glass = torch.where(vehicle, pane, glass)

    # Signs: white border, a bar or a disc; the back is grey.
    is_plate = material == w.PLATE
    reach = torch.maximum(qy, qz)
    symbol = torch.where(p[w.SEED] < 0.5, _flag((qy < 0.6) & (qz < 0.18)), _flag(qy * qy + qz * qz < 0.3))
    drawing = torch.maximum(_inside(reach, 0.82, 0.95), symbol)
    sign = mix(base, grey(torch.full_like(s, 0.85)), drawing)
    sign = tuple(torch.where(lx > 0, 0.3 + 0.0 * c, c) for c in sign)
    # Fences: slats or pickets; walls: brick; hedges and crowns: leaves.
    slat = _flag(_fract(s / 0.14) < 0.12) * fade(0.05)
    fence = scale(base, 1.0 - 0.7 * slat + 0.3 * coarse + 0.2 * fine)
    wall = scale(base, 1.0 + 0.5 * brick + 0.3 * stain + 0.2 * coarse + 0.1 * fine)
    leaf_x, leaf_y = around + torch.where(is_box, s, 0.0), h + 0.7 * lx
    leaf = 0.5 * (_noise(leaf_x / 0.12, leaf_y / 0.12, key + 5) - 0.5) * fade(0.12)
    leaf = leaf + 0.5 * (_noise(leaf_x / 0.45, leaf_y / 0.45, key + 6) - 0.5)
    leaves = scale(base, (1.0 + 2.2 * leaf + 0.5 * fine).clamp(min=0.15))
    bark = scale(base, 1.0 + 0.8 * (_noise(s / 0.05, h / 0.4, key + 7) - 0.5) * fade(0.05) + 0.3 * coarse)
    # People: trousers below the hip, a jacket above.
    trousers = (
        0.05 + 0.25 * _fract(p[w.SEED] * 17.0),
        0.05 + 0.22 * _fract(p[w.SEED] * 17.0),
        0.07 + 0.3 * _fract(p[w.SEED] * 19.0),
    )
    cloth = tuple(torch.where(h < 0.52 * p[w.A0], b, a) for a, b in zip(base, trousers, strict=True))
    gap = _flag((h < 0.45 * p[w.A0]) & ((_fract(around / hx / 3.1416) - 0.5).abs() > 0.44))
    cloth = scale(cloth, (1.0 + 0.4 * coarse) * (1.0 - 0.7 * gap))
    bands = _flag(_fract(h / 0.5) < 0.25) * _flag(p[w.SEED] > 0.5)
    bollard = mix(base, grey(torch.full_like(s, 0.8)), bands)
    leafy = (material == w.HEDGE) | (material == w.CROWN) | (material == w.BUSH)
    choices = (
        (is_plate, sign), (material == w.FENCE, fence), (material == w.WALL, wall), (leafy, leaves), (material == w.TRUNK, bark),
        (material == w.PERSON, cloth), (material == w.BOLLARD, bollard),
        ((material == w.FURNITURE) | (material == w.ROOF) | (material == w.POST), scale(base, 1.0 + 0.25 * coarse + 0.15 * fine)),
    )  # fmt: skip
    for condition, option in choices:
        colour = tuple(torch.where(condition, b, a) for a, b in zip(colour, option, strict=True))
    colour = tuple(c.clamp(0.005, 0.95) for c in colour)

    # Leaves tilt every way: shake the normals of crowns and hedges.
    shake = torch.where(leafy, 0.9, 0.0)
    tilt1 = (_noise(leaf_x / 0.3, leaf_y / 0.3, key + 8) - 0.5) * shake
    tilt2 = (_noise(leaf_x / 0.3 + 31.0, leaf_y / 0.3, key + 9) - 0.5) * shake
    nx, ny, nz = nx + tilt1, ny + tilt2, nz + 0.5 * (tilt1 + tilt2)
    inverse = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    normal = (
        (nx * p[w.COS] - ny * p[w.SIN]) * inverse,
        (nx * p[w.SIN] + ny * p[w.COS]) * inverse,
        nz * inverse,
    )
    # Reflectivity near 900 nm: paint follows its colour, black absorbs, leaves and cloth are bright, signs are retroreflectors.
    bright = 0.35 * colour[0] + 0.4 * colour[1] + 0.25 * colour[2]
    reflect = 0.08 + 0.75 * bright
    reflect = torch.where(vehicle, (0.9 * bright).clamp(min=0.006), reflect)
    reflect = torch.where(leafy, 0.35 + 0.3 * leaf, reflect)
    reflect = torch.where(material == w.PERSON, 0.2 + 0.5 * bright, reflect)
    reflect = torch.where(is_plate, 0.95, reflect)
    reflect = torch.where((plate > 0.5) & is_body, 0.9, reflect)
    table = torch.zeros_like(material)
    for i, k in enumerate(_KIND_OF_MATERIAL):
        table = torch.where(material == i, k, table)
    glow = torch.where(is_building, lit, torch.where(vehicle, 0.25 * lamp * _flag(~front), 0.0))
    return Surface(
        torch.where(glass > 0.5, GLASS, table), colour, normal, position, glass, reflect.clamp(0.0, 1.0), glow
    )


def radiance(light: Tensor, hit: Surface, direction: Vec, sun_seen: Tensor, distance: Tensor) -> Vec:
    """Light toward the eye, linear RGB: sun and sky on the surface, mirrored sky in glass, haze, the sky itself."""
    like = direction[0]
    g = dict(zip(w.LIGHT, (w_light(light, i, like) for i in range(len(w.LIGHT))), strict=True))
    sun, zenith = (g["sun_r"], g["sun_g"], g["sun_b"]), (g["zenith_r"], g["zenith_g"], g["zenith_b"])
    horizon = (g["horizon_r"], g["horizon_g"], g["horizon_b"])
    nx, ny, nz = hit.normal
    facing = (nx * g["sun_x"] + ny * g["sun_y"] + nz * g["sun_z"]).clamp(min=0.0) * sun_seen
    open_sky = 0.5 + 0.5 * nz
    ambient = tuple(
        0.55 * (0.6 * z + 0.4 * h) * open_sky + 0.12 * (1.0 - open_sky)
        for z, h in zip(zenith, horizon, strict=True)
    )
    wet = g["wet"] * _flag(hit.kind == ROAD)
    lit = tuple(
        a * (1.0 - 0.45 * wet) * (s * facing + b) for a, s, b in zip(hit.albedo, sun, ambient, strict=True)
    )
    # Mirror: windows, wet road, a little on paint. Schlick's approximation of Fresnel's equations.
    along = (direction[0] * nx + direction[1] * ny + direction[2] * nz).clamp(-1.0, 1.0)
    mirrored = (
        direction[0] - 2.0 * along * nx,
        direction[1] - 2.0 * along * ny,
        direction[2] - 2.0 * along * nz,
    )
    grazing = (1.0 - along.abs()).clamp(0.0, 1.0) ** 5
    painted = _flag(hit.kind == VEHICLE)
    shine = (
        hit.glass * (0.25 + 0.75 * grazing) + painted * (0.04 + 0.5 * grazing) + wet * (0.05 + 0.6 * grazing)
    )
    # The sky model gives street colours below the horizon: a dim grey.
    reflected_sky = sky(light, mirrored)
    below = _flag(mirrored[2] < 0.0)
    reflected = tuple(
        r * (1.0 - below) + 0.16 * h * below for r, h in zip(reflected_sky, horizon, strict=True)
    )
    lit = mix(lit, tuple(0.02 + 0.0 * c for c in lit), hit.glass)
    lit = mix(lit, reflected, shine.clamp(max=1.0))
    lit = tuple(c + hit.glow * k for c, k in zip(lit, (1.0, 0.8, 0.5), strict=True))
    seen_through = torch.exp(-distance * g["haze"])
    lit = mix(horizon, lit, seen_through)
    backdrop = sky(light, direction)
    return tuple(torch.where(hit.kind == NONE, b, c) for b, c in zip(backdrop, lit, strict=True))
