# SPDX-License-Identifier: Apache-2.0
"""What stands where a ray ends: colour, normal, reflectivity and glass from procedural textures.

Texture sizes are real ones (window grids, bricks, paving, lane marks), so that appearance carries scale. LiDAR and
cameras share these functions, so that a window is a window to both. Colours are linear RGB. The number of noise
look-ups is kept small (coordinates are chosen by material before the look-up): each costs as much as a primitive.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import world as w
from .cast import FAR, Vec
from .hashing import lattice_unit


class Surface(NamedTuple):
    """What rays hit, each field ``[B, I, J]`` (vectors and colours: tuples of three)."""

    kind: Tensor  # int32 index into ``KINDS``
    albedo: Vec
    normal: Vec
    glass: Tensor  # 1 = window: mirrors the sky, and LiDAR light is lost
    reflectivity: Tensor  # at the LiDAR's wavelength, 0..1
    glow: Tensor  # light of its own (lit windows, lamps)


def mix(a: Vec, b: Vec, amount: Tensor) -> Vec:
    """``a`` where ``amount`` is 0, ``b`` where it is 1."""
    return tuple(x + (y - x) * amount for x, y in zip(a, b, strict=True))


def select(condition: Tensor, a: Vec, b: Vec) -> Vec:
    return tuple(torch.where(condition, x, y) for x, y in zip(a, b, strict=True))


def scale(a: Vec, by: Tensor | float) -> Vec:
    return tuple(x * by for x in a)


def flag(condition: Tensor) -> Tensor:
    return condition.to(torch.float32)


def fract(x: Tensor) -> Tensor:
    return x - torch.floor(x)


def cell(x: Tensor, y: Tensor, key: Tensor) -> Tensor:
    """A random number in [0, 1) for each cell of the unit lattice."""
    return lattice_unit(torch.floor(x).to(torch.int32), torch.floor(y).to(torch.int32), key)


def noise(x: Tensor, y: Tensor, key: Tensor) -> Tensor:
    """Smooth value noise in [0, 1) with features of size 1."""
    ix, iy = torch.floor(x), torch.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    ix, iy = ix.to(torch.int32), iy.to(torch.int32)
    a, b = lattice_unit(ix, iy, key), lattice_unit(ix + 1, iy, key)
    c, d = lattice_unit(ix, iy + 1, key), lattice_unit(ix + 1, iy + 1, key)
    return (a + (b - a) * fx) * (1.0 - fy) + (c + (d - c) * fx) * fy


def _inside(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return flag((value > low) & (value < high))


def _line(distance: Tensor, width: Tensor | float, blur: Tensor) -> Tensor:
    """Coverage of a line of ``width`` by a pixel of size ``blur``, from the distance to its middle."""
    return ((0.5 * width + 0.5 * blur - distance.abs()) / blur).clamp(0.0, 1.0) * (width / blur).clamp(
        max=1.0
    )


def _grid(x: Tensor, pitch: float) -> Tensor:
    """Signed distance to the nearest line of a grid through 0."""
    return (fract(x / pitch + 0.5) - 0.5) * pitch


def ground_surface(
    ground: Tensor, origin: Vec, direction: Vec, t: Tensor, face: Tensor, pixel: float
) -> Surface:
    """The ground at distance ``t``; ``face`` marks the vertical side of a kerb, ``pixel`` is the angle between rays."""
    t = torch.where(t < FAR, t, 0.0)
    x, y = origin[0] + direction[0] * t, origin[1] + direction[1] * t
    g = dict(zip(w.GROUND, ground[:, :, None, None].unbind(1), strict=True))
    u, v, outside = w.road_coordinates(ground, x, y)
    key = (g["seed"] * 65536.0).to(torch.int32)
    # Pixels stretch along the line of sight where the ground is seen at a flat angle; what is smaller averages out.
    wide = (t * pixel).clamp(min=1e-3) * torch.rsqrt(direction[2].abs().clamp(min=0.02))
    side = u.abs()
    on_road = outside < 0.0
    is_grass = (outside > g["pavement"]) & (g["surface"] > 0.5)

    size = torch.where(is_grass, 0.03, 0.02)
    fine = (cell(x / size, y / size, key) - 0.5) * (0.7 * size / wide).clamp(0.0, 1.0)
    size = torch.where(is_grass, 0.25, 0.4)
    middle = (noise(x / size, y / size, key + 1) - 0.5) * (size / wide).clamp(0.0, 1.0)
    patch = noise(x / 7.0, y / 7.0, key + 2) - 0.5
    # Tiles: repaired rectangles on the road, slabs on the pavement.
    tile = cell(torch.where(on_road, x / 7.0, x * 2.0), torch.where(on_road, u / 2.5, u * 2.0), key + 3)

    # Asphalt: darker repairs and wheel tracks.
    track = (fract(side / g["lane_width"]) - 0.5).abs() - 0.24
    track = torch.exp(-(track * track) * 100.0) * (1.0 - g["plaza"])
    asphalt = 0.07 + 0.07 * g["seed"]
    asphalt = asphalt * (
        1.0 + 0.6 * fine + 0.3 * middle + 0.4 * patch - 0.15 * track - 0.3 * flag(tile > 0.9)
    )
    # Markings: centre and lane lines (dashed), edge lines, parking bays, stripes of a crosswalk.
    edge = torch.round(side / g["lane_width"])
    keep = torch.maximum(flag(fract(x / 9.0) < 0.4), flag(edge > g["lanes"] - 0.5)) * flag(
        edge < g["lanes"] + 0.5
    )
    marking = _line(side - edge * g["lane_width"], 0.13, wide) * keep
    bay = _line(_grid(x, 2.75), 0.1, wide) * flag(
        (side > g["half_width"] - 5.2) & (side > g["lanes"] * g["lane_width"])
    )
    marking = torch.maximum(marking, bay * g["plaza"])
    beyond = v.abs() - g["cross_half"]
    crossing = g["cross"] > 0.5
    marking = marking * (1.0 - flag((beyond < 1.0) & crossing))
    stripes = (
        _line(_grid(u, 1.0), 0.5, wide)
        * _inside(beyond, 1.2, 4.2)
        * flag((side < g["half_width"] - 0.2) & crossing)
    )
    marking = torch.maximum(marking, stripes) * (0.75 + 0.4 * middle)
    paint = 0.9 * marking
    road = tuple(asphalt * c + (0.68 - asphalt * c) * paint for c in (1.0, 1.0, 1.04))
    # Pavement: slabs of half a metre with joints; kerb stones along the edge.
    joint = torch.maximum(_line(_grid(x, 0.5), 0.012, wide), _line(_grid(u, 0.5), 0.012, wide))
    slab = (tile - 0.5) * (0.4 / wide).clamp(0.0, 1.0)
    tint = fract(g["seed"] * 3.0)
    stone = (0.22 + 0.16 * fract(g["seed"] * 7.0)) * (
        1.0 + 0.3 * slab + 0.3 * fine + 0.3 * patch - 0.5 * joint
    )
    kerb = face | ((outside > 0.0) & (outside < 0.16) & (g["kerb"] > 0.01))
    stone = torch.where(kerb, 0.34 + 0.08 * fine + 0.08 * middle, stone)
    pavement = (stone, stone * (0.98 - 0.06 * tint), stone * (0.94 - 0.14 * tint))
    # Grass: tufts, dry patches.
    lush = (1.0 + 1.0 * middle + 0.9 * fine) * (1.0 + 0.5 * patch)
    dry = (patch + 0.15).clamp(0.0, 0.5) * 1.6
    grass = (lush * (0.075 + 0.11 * dry), lush * (0.14 + 0.03 * dry), lush * (0.035 + 0.05 * dry))
    colour = select(is_grass & ~kerb, grass, select(on_road & ~face, road, pavement))
    kind = torch.where(
        kerb, w.KERB, torch.where(is_grass, w.TERRAIN, torch.where(on_road, w.ROAD, w.PAVEMENT))
    )
    # Slope of the height field by differences; the face of a kerb looks at the eye.
    level = w.height(ground, x, y)
    nx, ny = 2.0 * (level - w.height(ground, x + 0.5, y)), 2.0 * (level - w.height(ground, x, y + 0.5))
    up = torch.rsqrt(nx * nx + ny * ny + 1.0)
    toward = torch.rsqrt(direction[0] ** 2 + direction[1] ** 2 + 1e-9)
    normal = (
        torch.where(face, -direction[0] * toward, nx * up),
        torch.where(face, -direction[1] * toward, ny * up),
        torch.where(face, 0.0, up),
    )
    reflect = torch.where(on_road, 0.1 + 0.05 * patch + 0.55 * marking, 0.24 + 0.1 * slab)
    reflect = torch.where(is_grass, 0.4 + 0.2 * middle, reflect)
    zero = torch.zeros_like(x)
    return Surface(kind.to(torch.int32), colour, normal, zero, reflect, zero)


def object_surface(
    prims: Tensor, index: Tensor, origin: Vec, direction: Vec, time: Tensor, t: Tensor, pixel: float
) -> Surface:
    """The primitive ``index`` at distance ``t``."""
    t = torch.where(t < FAR, t, 0.0)
    flat = index.flatten(1)
    p = [torch.gather(prims[:, c], 1, flat).view(index.shape) for c in range(w.CHANNELS)]
    x = origin[0] + direction[0] * t - p[w.CX] - p[w.VX] * time
    y = origin[1] + direction[1] * t - p[w.CY] - p[w.VY] * time
    z = origin[2] + direction[2] * t - p[w.CZ]
    blur = (t * pixel).clamp(min=1e-3)
    lx, ly = x * p[w.COS] + y * p[w.SIN], y * p[w.COS] - x * p[w.SIN]
    hx, hy, hz, seed = p[w.HX], p[w.HY], p[w.HZ], p[w.SEED]
    material = p[w.MATERIAL].to(torch.int32)
    key = (seed * 65536.0).to(torch.int32)
    is_box = index < w.BOXES
    is_cylinder = ~is_box & (index < w.BOXES + w.CYLINDERS)

    # Local normal. Box: the axis that is nearest to its face.
    qx, qy, qz = lx.abs() / hx, ly.abs() / hy, z.abs() / hz
    box_z = (qz >= qx) & (qz >= qy)
    box_x = ~box_z & (qx >= qy)
    lid = torch.where(is_cylinder, torch.where(qz > 0.9999, z * 1e3, 0.0), z / (hz * hz))
    nx = torch.where(is_box, torch.where(box_x, torch.sign(lx), 0.0), lx / (hx * hx))
    ny = torch.where(is_box, torch.where(box_x | box_z, 0.0, torch.sign(ly)), ly / (hy * hy))
    nz = torch.where(is_box, torch.where(box_z, torch.sign(z), 0.0), lid)
    by = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * by, ny * by, nz * by
    # Surface coordinates: s along the face, h above the foot, r the second texture axis, metres.
    s = torch.where(is_box, torch.where(box_x, ly, lx), torch.atan2(ly, lx) * hx)
    h = z + hz
    top = nz > 0.7
    r = torch.where(top, ly, h)
    length = torch.where(box_x, hy, hx)
    base = (p[w.RED], p[w.GREEN], p[w.BLUE])

    leafy = (material == w.HEDGE) | (material == w.CROWN) | (material == w.BUSH)
    masonry = ((material == w.BUILDING) & (fract(seed * 29.0) < 0.55)) | (material == w.WALL)
    # Two scales of smooth noise and one of cells; the sizes depend on what it is.
    small = torch.where(leafy, 0.12, torch.where(material == w.TRUNK, 0.06, 0.5))
    large = torch.where(leafy, 0.5, 3.0)
    # Crowns are round: a slanted projection of space instead of coordinates on the surface.
    is_round = leafy & ~is_box
    sx, sy = torch.where(is_round, lx + 0.73 * z, s), torch.where(is_round, ly + 0.41 * z, r)
    noise1 = noise(sx / small, sy / (small * torch.where(material == w.TRUNK, 6.0, 1.0)), key + 1) - 0.5
    noise1 = noise1 * (small / blur).clamp(0.0, 1.0)
    noise2 = noise(sx / large, sy / large, key + 2) - 0.5
    row = torch.floor(r / 0.075)
    grain_x = torch.where(masonry, s * 4.0 + 0.5 * row, s * 25.0)
    grain = cell(grain_x, torch.where(masonry, row + 0.5, r * 25.0), key + 3) - 0.5
    grain = grain * (0.06 / blur).clamp(0.0, 1.0)

    # Facades: the base is 3 m deep in the ground; windows on a grid of a0 x a1 metres, taller at street level in shops.
    up = h - 3.0
    storey = p[w.A1].clamp(min=1.0)
    column, floor = (s + length) / p[w.A0].clamp(min=1.0), up / storey
    fu, fv = (fract(column) - 0.5).abs(), fract(floor)
    shop = flag((seed > 0.55) & (floor < 1.0))
    half, sill, lintel = (
        0.22 + 0.14 * fract(seed * 13.0) + 0.08 * shop,
        0.28 - 0.18 * shop,
        0.78 + 0.04 * shop,
    )
    building = material == w.BUILDING
    fits = building & ~top & (up > 0.0) & (2.0 * hz - h > 0.25 * storey) & (length - s.abs() > 0.3)
    opening = flag(fits & (fu < half) & (fv > sill) & (fv < lintel))
    pane = flag((fu > 0.02) & (fu < half - 0.025) & (fv > sill + 0.025) & (fv < lintel - 0.025))
    lot = cell(column, floor, key + 4)
    # Offices show bare glass, homes have drawn curtains and shutters: a share of the panes, by building.
    blind = flag(lot < 0.1 + 0.7 * fract(seed * 41.0))
    # Cloth hangs in folds, shutters have slats; both are lighter than a room behind bare glass.
    folds = torch.where(fract(lot * 31.0) < 0.6, fract(s / 0.14), fract(r / 0.09))
    drawn = (0.4 + 0.45 * fract(lot * 57.0)) * (
        1.0 - 0.4 * flag(folds < 0.35) * (0.05 / blur).clamp(0.0, 1.0)
    )
    window = opening * pane * (1.0 - blind)
    mortar = _line(fract(r / 0.075) * 0.075 - 0.0375, 0.012, blur) * flag(masonry)
    plinth = 0.3 * flag(building & (up < 0.7))
    shade = 1.0 + 0.5 * grain + 0.3 * noise2 + 0.15 * noise1 - plinth
    # Fences are slatted; pillars of wood and metal keep the plain grain.
    shade = shade - 0.6 * flag((material == w.FENCE) & (fract(s / 0.14) < 0.12)) * (0.05 / blur).clamp(
        0.0, 1.0
    )
    shade = torch.where(leafy, (1.0 + 1.4 * noise1 + 1.2 * noise2 + 0.5 * grain).clamp(min=0.15), shade)
    shade = torch.where(material == w.TRUNK, 1.0 + 1.0 * noise1 + 0.3 * grain, shade)
    shade = shade * torch.where(building & top, 0.4, 1.0)
    plain = opening * (1.0 - pane)
    colour = tuple(c * shade + (0.45 - c * shade) * (0.35 * mortar) for c in base)
    colour = tuple(c + (0.7 - c) * plain + (drawn - c) * opening * pane * blind for c in colour)

    # Vehicles: dark sills, wheels as discs, lamps and plates at the ends; windows all round the cabin.
    body, cabin, cargo = material == w.BODY, material == w.CABIN, material == w.CARGO
    vehicle = body | cabin | cargo
    flank = ~box_x & ~box_z
    kind = p[w.A0]
    road_h = h + p[w.A1]
    heavy = kind > 2.5
    tyre_r = torch.where(heavy, 0.48, 0.32)
    wheel_x, wheel_z = lx.abs() - hx + torch.where(heavy, 1.6, 0.85), road_h - tyre_r
    wheel = torch.sqrt(wheel_x * wheel_x + wheel_z * wheel_z) / tyre_r
    side_body, end_body = flag(flank & body), flag(box_x & body)
    dark = torch.maximum(side_body * flag(wheel < 1.15), 0.85 * flag(body & (road_h < 0.28)))
    rim = side_body * flag(wheel < 0.6)
    seam = side_body * _line(_grid(lx + 0.55 * hx, 1.05), 0.012, blur)
    lamp = end_body * _inside(qy, 0.62, 0.95) * _inside(road_h, 0.55, 0.78)
    number = end_body * flag(ly.abs() < 0.26) * _inside(road_h, 0.42, 0.53)
    front = lx > 0
    lamp_colour = (
        torch.where(front, 0.9, 0.55),
        torch.where(front, 0.9, 0.02),
        torch.where(front, 0.85, 0.02),
    )
    paint = scale(base, (1.0 + 0.05 * noise1) * (1.0 - 0.5 * seam))
    paint = tuple(c + (0.012 - c) * dark for c in paint)
    paint = tuple(c + (0.35 - c) * (0.8 * rim) + (0.75 - c) * number for c in paint)
    paint = mix(paint, lamp_colour, lamp)
    glass = flag(cabin & ~box_z) * _inside(h / (2.0 * hz), 0.1, 0.88)
    pillars = flag(flank & (fract((lx + hx) / 1.1 + 0.05) < 0.09)) + flag(box_x & (qy > 0.93))
    panels = flag((kind > 1.5) & (kind < 2.5) & flank & (lx < 0.35 * hx))  # of vans
    glass = glass * (1.0 - torch.maximum(pillars, panels))
    glass = torch.maximum(glass, flag(body & (kind == 3.0) & (front | flank)) * _inside(road_h, 1.5, 2.3))
    white = flag(seed > 0.4)
    box_colour = scale(tuple(0.5 * c + (0.6 - 0.5 * c) * white for c in base), 1.0 + 0.2 * noise2)
    colour = select(vehicle, select(cargo, box_colour, paint), colour)
    glass = torch.where(vehicle, glass, window)

    # Signs: a white border and a bar or a disc; the back is grey. People: trousers below the hip. Bollards: bands.
    plate = material == w.PLATE
    rim_of_plate = _inside(torch.maximum(qy, qz), 0.82, 0.95)
    symbol = torch.where(seed < 0.5, flag((qy < 0.6) & (qz < 0.18)), flag(qy * qy + qz * qz < 0.3))
    white = torch.maximum(rim_of_plate, symbol)
    sign = tuple(torch.where(lx > 0, 0.3, c + (0.85 - c) * white) for c in base)
    colour = select(plate, sign, colour)
    person = material == w.PERSON
    legs = person & (h < 0.52 * p[w.A0])
    split = 1.0 - 0.7 * flag((h < 0.45 * p[w.A0]) & ((fract(s / (hx * 3.1416)) - 0.5).abs() > 0.44))
    tone = (0.05 + 0.25 * fract(seed * 17.0)) * split * (1.0 + 0.4 * noise1)
    colour = select(legs, (tone, tone, 1.2 * tone), colour)
    banded = (material == w.BOLLARD) & (fract(h / 0.5) < 0.25) & (seed > 0.5)
    colour = tuple(torch.where(banded, 0.8, c).clamp(0.004, 0.95) for c in colour)

    # Leaves point every way: shake the normals of crowns and hedges.
    shake = torch.where(leafy, 1.3, 0.0)
    nx, ny, nz = nx + shake * noise1, ny + shake * noise2, nz + 0.5 * shake * (noise1 + noise2)
    by = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    normal = ((nx * p[w.COS] - ny * p[w.SIN]) * by, (nx * p[w.SIN] + ny * p[w.COS]) * by, nz * by)
    # Reflectivity near 900 nm: paint follows its colour, black absorbs, leaves and cloth are bright, signs and number
    # plates are retroreflectors.
    bright = 0.35 * colour[0] + 0.4 * colour[1] + 0.25 * colour[2]
    reflect = torch.where(vehicle, (0.9 * bright - 0.02).clamp(min=0.0015), 0.08 + 0.75 * bright)
    reflect = torch.where(leafy, 0.4 + 0.4 * noise1, torch.where(person, 0.2 + 0.5 * bright, reflect))
    reflect = torch.where(plate | (number > 0.5), 0.95, reflect).clamp(0.0, 1.0)
    glow = torch.where(vehicle, 0.25 * lamp * (1.0 - flag(front)), 0.7 * window * flag(lot > 0.94))
    label = torch.where(glass > 0.5, w.GLASS, p[w.KIND].to(torch.int32))
    return Surface(label.to(torch.int32), colour, normal, glass, reflect, glow)


def merge(t_object: Tensor, a: Surface, t_ground: Tensor, b: Surface) -> tuple[Tensor, Surface]:
    """The nearer of object ``a`` and ground ``b``: distance (``FAR``: sky) and surface."""
    ground = t_ground < t_object
    t = torch.minimum(t_object, t_ground)

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(ground, y, x)

    kind = torch.where(t < FAR, pick(a.kind, b.kind), w.NONE)
    return t, Surface(
        kind, tuple(map(pick, a.albedo, b.albedo)), tuple(map(pick, a.normal, b.normal)), pick(a.glass, b.glass),
        pick(a.reflectivity, b.reflectivity), pick(a.glow, b.glow),
    )  # fmt: skip
