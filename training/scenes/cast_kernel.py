# SPDX-License-Identifier: Apache-2.0
"""Ray casting on a GPU: the same arithmetic as ``cast.py`` in one Triton kernel.

A program takes a block of rays of one scene through all primitives, whose parameters are scalars to it, and keeps the
nearest hit in registers. Slots that are switched off cost one load. ``cast.py`` is the plain twin; tests compare both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cast import FAR, NEAR, Vec
from .world import BOXES, CHANNELS, CYLINDERS, PRIMITIVES

_FAR = tl.constexpr(FAR)
_NEAR = tl.constexpr(NEAR)
_TINY = tl.constexpr(1e-9)
_OFF = tl.constexpr(-500.0)  # centres of switched-off slots are far below the ground
_BLOCK = 256


@triton.jit
def _entry(best, index, near, far, k):
    closer = (near <= far) & (near > _NEAR) & (near < best)
    return tl.where(closer, near, best), tl.where(closer, k, index)


@triton.jit
def _kernel(
    prims, ox, oy, oz, dx, dy, dz, time, t_out, index_out, rays, columns,
    o_b, o_i, o_j, d_b, d_i, d_j, t_b, t_i, t_j,
    BOX_END: tl.constexpr, CYLINDER_END: tl.constexpr, SLOTS: tl.constexpr, CHANNEL_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < rays
    i, j = n // columns, n % columns
    at = b * o_b + i * o_i + j * o_j
    o_x = tl.load(ox + at, mask=inside, other=0.0)
    o_y = tl.load(oy + at, mask=inside, other=0.0)
    o_z = tl.load(oz + at, mask=inside, other=0.0)
    at = b * d_b + i * d_i + j * d_j
    d_x = tl.load(dx + at, mask=inside, other=1.0)
    d_y = tl.load(dy + at, mask=inside, other=0.0)
    d_z = tl.load(dz + at, mask=inside, other=0.0)
    when = tl.load(time + b * t_b + i * t_i + j * t_j, mask=inside, other=0.0)
    best = tl.full([BLOCK], _FAR, tl.float32)
    index = tl.zeros([BLOCK], tl.int32)
    inv_z = 1.0 / tl.where(tl.abs(d_z) < _TINY, _TINY, d_z)
    flat = tl.maximum(d_x * d_x + d_y * d_y, _TINY)
    inv_flat = 1.0 / flat
    # Channels: 0-2 centre, 3-5 half sizes, 6-7 cosine and sine of yaw, 8-9 velocity.
    p = prims + b * CHANNEL_COUNT * SLOTS
    for k in range(BOX_END):
        cz = tl.load(p + 2 * SLOTS + k)
        if cz > _OFF:
            x = o_x - tl.load(p + k) - tl.load(p + 8 * SLOTS + k) * when
            y = o_y - tl.load(p + SLOTS + k) - tl.load(p + 9 * SLOTS + k) * when
            z = o_z - cz
            c = tl.load(p + 6 * SLOTS + k)
            s = tl.load(p + 7 * SLOTS + k)
            u = d_x * c + d_y * s
            v = d_y * c - d_x * s
            inv_u = 1.0 / tl.where(tl.abs(u) < _TINY, _TINY, u)
            inv_v = 1.0 / tl.where(tl.abs(v) < _TINY, _TINY, v)
            mid_u = -(x * c + y * s) * inv_u
            mid_v = -(y * c - x * s) * inv_v
            mid_z = -z * inv_z
            reach_u = tl.load(p + 3 * SLOTS + k) * tl.abs(inv_u)
            reach_v = tl.load(p + 4 * SLOTS + k) * tl.abs(inv_v)
            reach_z = tl.load(p + 5 * SLOTS + k) * tl.abs(inv_z)
            near = tl.maximum(tl.maximum(mid_u - reach_u, mid_v - reach_v), mid_z - reach_z)
            far = tl.minimum(tl.minimum(mid_u + reach_u, mid_v + reach_v), mid_z + reach_z)
            best, index = _entry(best, index, near, far, k)
    for k in range(BOX_END, CYLINDER_END):
        cz = tl.load(p + 2 * SLOTS + k)
        if cz > _OFF:
            x = o_x - tl.load(p + k) - tl.load(p + 8 * SLOTS + k) * when
            y = o_y - tl.load(p + SLOTS + k) - tl.load(p + 9 * SLOTS + k) * when
            r = tl.load(p + 3 * SLOTS + k)
            middle = x * d_x + y * d_y
            miss = x * d_y - y * d_x
            square = flat * r * r - miss * miss
            root = tl.sqrt(tl.maximum(square, 0.0))
            mid_z = -(o_z - cz) * inv_z
            reach_z = tl.load(p + 5 * SLOTS + k) * tl.abs(inv_z)
            near = tl.maximum((-middle - root) * inv_flat, mid_z - reach_z)
            far = tl.minimum((-middle + root) * inv_flat, mid_z + reach_z)
            best, index = _entry(best, index, near, tl.where(square > 0.0, far, -1.0), k)
    for k in range(CYLINDER_END, SLOTS):
        cz = tl.load(p + 2 * SLOTS + k)
        if cz > _OFF:
            by_r = 1.0 / tl.load(p + 3 * SLOTS + k)
            by_z = 1.0 / tl.load(p + 5 * SLOTS + k)
            x = (o_x - tl.load(p + k) - tl.load(p + 8 * SLOTS + k) * when) * by_r
            y = (o_y - tl.load(p + SLOTS + k) - tl.load(p + 9 * SLOTS + k) * when) * by_r
            z = (o_z - cz) * by_z
            e_x = d_x * by_r
            e_y = d_y * by_r
            e_z = d_z * by_z
            a = e_x * e_x + e_y * e_y + e_z * e_z
            m_x = y * e_z - z * e_y
            m_y = z * e_x - x * e_z
            m_z = x * e_y - y * e_x
            square = a - (m_x * m_x + m_y * m_y + m_z * m_z)
            near = (-(x * e_x + y * e_y + z * e_z) - tl.sqrt(tl.maximum(square, 0.0))) / a
            best, index = _entry(best, index, near, tl.where(square > 0.0, near + 1.0, -1.0), k)
    out = b * rays + n
    tl.store(t_out + out, best, mask=inside)
    tl.store(index_out + out, index, mask=inside)


def nearest(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> tuple[Tensor, Tensor]:
    """As ``cast.nearest``."""
    shape = torch.broadcast_shapes(origin[0].shape, direction[0].shape, time.shape)
    o, d, t = ([a.expand(shape) for a in group] for group in (origin, direction, (time,)))
    for group in (o, d):
        if any(a.stride() != group[0].stride() for a in group):
            group[:] = [a.contiguous() for a in group]
    scenes, rows, columns = shape
    best = torch.empty(shape, dtype=torch.float32, device=prims.device)
    index = torch.empty(shape, dtype=torch.int32, device=prims.device)
    grid = (triton.cdiv(rows * columns, _BLOCK), scenes)
    _kernel[grid](
        prims.contiguous(), *o, *d, *t, best, index, rows * columns, columns,
        *o[0].stride(), *d[0].stride(), *t[0].stride(),
        BOXES, BOXES + CYLINDERS, PRIMITIVES, CHANNELS, _BLOCK,
    )  # fmt: skip
    return best, index.long()


def blocked(prims: Tensor, origin: Vec, direction: Vec, time: Tensor) -> Tensor:
    """As ``cast.blocked``."""
    return nearest(prims, origin, direction, time)[0] < FAR
