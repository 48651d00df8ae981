# SPDX-License-Identifier: Apache-2.0
"""Ray casting: every ray against every primitive, written as broadcasts that end in a minimum.

Run eagerly this is the plain twin, in which the caller keeps ``rays x primitives`` small; under ``torch.compile`` the
broadcast and the minimum become one kernel and the big array never exists.

Rays are ``[B, I, J]`` per component (any of the three axes may be 1 where values are shared), times are seconds
after the instant of the worlds. Distances are metres along unit directions; ``FAR`` means nothing was hit.
"""

import torch
from torch import Tensor

from . import world as w

FAR = 1.0e6
NEAR = 0.05
_TINY = 1e-9

Vec = tuple[Tensor, Tensor, Tensor]


def _columns(prims: Tensor) -> list[Tensor]:
    """Channels of primitives ``[B, CHANNELS, P]``, each ``[B, 1, 1, P]``."""
    return [c[:, None, None, :] for c in prims.unbind(1)]


def _relative(p: list[Tensor], origin: Vec, time: Tensor) -> Vec:
    """Ray origins relative to the (moving) centres, ``[B, I, J, P]``."""
    return origin[0] - p[w.CX] - p[w.VX] * time, origin[1] - p[w.CY] - p[w.VY] * time, origin[2] - p[w.CZ]


def _slab(position: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit of one pair of parallel planes."""
    inverse = 1.0 / torch.where(direction.abs() < _TINY, _TINY, direction)
    middle, reach = -position * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _entry(near: Tensor, far: Tensor) -> Tensor:
    return torch.where((near <= far) & (near > NEAR), near, FAR)


def hit_boxes(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """Distance to every box, ``[B, I, J, P]``. Faces are seen from outside only."""
    p = _columns(prims)
    x, y, z = _relative(p, origin, time)
    dx, dy, dz = direction
    near_x, far_x = _slab(x * p[w.COS] + y * p[w.SIN], dx * p[w.COS] + dy * p[w.SIN], p[w.HX])
    near_y, far_y = _slab(y * p[w.COS] - x * p[w.SIN], dy * p[w.COS] - dx * p[w.SIN], p[w.HY])
    near_z, far_z = _slab(z, dz, p[w.HZ])
    return _entry(
        torch.maximum(torch.maximum(near_x, near_y), near_z),
        torch.minimum(torch.minimum(far_x, far_y), far_z),
    )


def hit_cylinders(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """Distance to every vertical capped cylinder, ``[B, I, J, P]``."""
    p = _columns(prims)
    x, y, z = _relative(p, origin, time)
    dx, dy, dz = direction
    a = (dx * dx + dy * dy).clamp(min=_TINY)
    b = x * dx + y * dy
    miss = x * dy - y * dx  # by the cross product: b*b - a*c loses all digits for a thin pole far away
    square = a * p[w.HX] * p[w.HX] - miss * miss
    root = torch.sqrt(square.clamp(min=0.0))
    near_z, far_z = _slab(z, dz, p[w.HZ])
    near = torch.maximum((-b - root) / a, near_z)
    far = torch.minimum((-b + root) / a, far_z)
    return torch.where(square > 0.0, _entry(near, far), FAR)


def hit_ellipsoids(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """Distance to every ellipsoid (round in plan), ``[B, I, J, P]``."""
    p = _columns(prims)
    x, y, z = _relative(p, origin, time)
    flat, tall = 1.0 / p[w.HX], 1.0 / p[w.HZ]
    x, y, z = x * flat, y * flat, z * tall
    dx, dy, dz = direction[0] * flat, direction[1] * flat, direction[2] * tall
    a = dx * dx + dy * dy + dz * dz
    b = x * dx + y * dy + z * dz
    mx, my, mz = y * dz - z * dy, z * dx - x * dz, x * dy - y * dx
    square = a - (mx * mx + my * my + mz * mz)
    near = (-b - torch.sqrt(square.clamp(min=0.0))) / a
    return torch.where((square > 0.0) & (near > NEAR), near, FAR)


def _expand(rays: Vec) -> Vec:
    return rays[0][..., None], rays[1][..., None], rays[2][..., None]


_KINDS = (
    (hit_boxes, slice(0, w.BOXES)),
    (hit_cylinders, slice(w.BOXES, w.BOXES + w.CYLINDERS)),
    (hit_ellipsoids, slice(w.BOXES + w.CYLINDERS, w.PRIMITIVES)),
)


def nearest(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index of the nearest primitive, both ``[B, I, J]``; (``FAR``, anything) where there is none."""
    o, d, time = _expand(origin), _expand(direction), time[..., None]
    t, index = hit_boxes(prims[:, :, _KINDS[0][1]], o, d, time).min(-1)
    for hit, part in _KINDS[1:]:
        other, other_index = hit(prims[:, :, part], o, d, time).min(-1)
        index = torch.where(other < t, other_index + part.start, index)
        t = torch.minimum(t, other)
    return t, index


def blocked(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """True where anything stands in the way of a ray to infinity, ``[B, I, J]`` (for shadows)."""
    o, d, time = _expand(origin), _expand(direction), time[..., None]
    t = [hit(prims[:, :, part], o, d, time).amin(-1) for hit, part in _KINDS]
    return torch.minimum(torch.minimum(t[0], t[1]), t[2]) < FAR


def nearest_of_one(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> tuple[Tensor, Tensor]:
    """``nearest`` for a single scene, without the slots that are switched off: twice as fast when run eagerly."""
    o, d, time = _expand(origin), _expand(direction), time[..., None]
    shape = torch.broadcast_shapes(origin[0].shape, direction[0].shape)
    t = torch.full(shape, FAR, device=prims.device)
    index = torch.zeros(shape, dtype=torch.int64, device=prims.device)
    for hit, part in _KINDS:
        placed = torch.nonzero(prims[0, w.CZ, part] > -500.0)[:, 0]
        if len(placed):
            other, other_index = hit(prims[:, :, part][:, :, placed], o, d, time).min(-1)
            index = torch.where(other < t, placed[other_index] + part.start, index)
            t = torch.minimum(t, other)
    return t, index


def blocked_of_one(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """``blocked`` for a single scene, as ``nearest_of_one``."""
    return nearest_of_one(prims, origin, direction, time)[0] < FAR


_STEPS, _FIRST_STEP, _LAST_STEP = 24, 0.3, 300.0
_RATIO = (_LAST_STEP / _FIRST_STEP) ** (1.0 / (_STEPS - 1))


def _step_distance(k: Tensor) -> Tensor:
    """Marching distances in metres, geometric: dense nearby, where kerbs and bumps are seen from above; 0 for k < 0."""
    return torch.where(k >= 0.0, _FIRST_STEP * torch.pow(_RATIO, k), 0.0)


def _march(ground: Tensor, origin: Vec, direction: Vec, lift: Tensor) -> Tensor:
    """Distance to the w.height field raised by ``lift``: first change of sign over the steps, then secant steps."""
    k = torch.arange(_STEPS, device=ground.device, dtype=torch.float32)
    steps = _step_distance(k)
    o, d = _expand(origin), _expand(direction)
    over = o[2] + d[2] * steps - lift[..., None] - w.height(ground, o[0] + d[0] * steps, o[1] + d[1] * steps)
    first = torch.where(over <= 0.0, k, float(_STEPS)).amin(-1)

    def above(t: Tensor) -> Tensor:
        return (
            origin[2]
            + direction[2] * t
            - lift
            - w.height(ground, origin[0] + direction[0] * t, origin[1] + direction[1] * t)
        )

    low, high = _step_distance(first - 1.0), _step_distance(first)
    f_low, f_high = above(low), above(high)
    found = (first < _STEPS) & (above(torch.zeros_like(low)) > 0.0)
    for _ in range(2):
        middle = low + (high - low) * (f_low / (f_low - f_high).clamp(min=1e-9)).clamp(0.0, 1.0)
        f = above(middle)
        inside = f <= 0.0
        high, f_high = torch.where(inside, middle, high), torch.where(inside, f, f_high)
        low, f_low = torch.where(inside, low, middle), torch.where(inside, f_low, f)
    t = low + (high - low) * (f_low / (f_low - f_high).clamp(min=1e-9)).clamp(0.0, 1.0)
    return torch.where(found, t, FAR)


def ground_hit(ground: Tensor, origin: Vec, direction: Vec) -> tuple[Tensor, Tensor]:
    """Distance to the ground and whether it is the face of a kerb, both ``[B, I, J]``.

    The pavement is the same w.height field raised by the kerb. A ray that passes over the kerb line between the two
    heights hits the kerb's face, found by interpolating the signed distance to the kerb line.
    """
    # Broadcast the origin first, so that all arithmetic below is of one shape.
    zero = torch.zeros_like(origin[0] + direction[0])
    o = (origin[0] + zero, origin[1] + zero, origin[2] + zero)
    kerb = w.ground_value(ground, "kerb", zero)
    raised, road = _march(ground, o, direction, kerb), _march(ground, o, direction, torch.zeros_like(kerb))

    def outside(t: Tensor) -> Tensor:
        safe = torch.where(t < FAR, t, 0.0)
        return w.road_coordinates(ground, o[0] + direction[0] * safe, o[1] + direction[1] * safe)[2]

    at_raised, at_road = outside(raised), outside(road)
    face = raised + (road - raised) * (
        at_raised / torch.where(at_raised == at_road, -1.0, at_raised - at_road)
    ).clamp(0.0, 1.0)
    on_pavement = (at_raised > 0.0) & (raised < FAR)
    on_face = ~on_pavement & (at_road > 0.0) & (road < FAR)
    return torch.where(on_pavement, raised, torch.where(on_face, face, road)), on_face
