# SPDX-License-Identifier: Apache-2.0
"""``lidargen_ros.carry`` on tensors and in batches: for training, and for engines that keep a frame on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..projection import ELEVATION_MARGIN_DEG
from ..range_coding import encode_log


def carry(
    range_map: Tensor,
    probability: Tensor,
    directions: Tensor,
    motion: Tensor,
    min_range: float,
    max_range: float,
) -> Tensor:
    """What each ray of this sweep knows from the one before, see ``lidargen_ros.carry``.

    Args:
        range_map: ``[B, rows, columns]`` metres, 0 = no return.
        probability: ``[B, rows, columns]`` of a return.
        directions: ``[B, rows, columns, 3]`` rays of a full turn, rows from high to low, equal steps of azimuth.
        motion: ``[B, 4, 4]`` coordinates in the LiDAR frame of the sweep before -> in that of this one.

    Returns:
        ``[B, 2, rows, columns]``: range code, and what is believed of the return (-1 to 1); both 0 where nothing is known.
    """
    returned = range_map > 0
    turned = torch.einsum("brck,bjk->brcj", directions, motion[:, :3, :3])
    points = torch.where(returned, range_map, 1.0)[..., None] * turned
    points = points + returned[..., None] * motion[:, None, None, :3, 3]
    distance = points.norm(dim=-1)
    cell, inside = _cells(points / distance[..., None].clamp_min(1e-6), directions)
    inside &= ~returned | ((distance >= min_range) & (distance <= max_range))
    # Rays without a return are the farthest of all, and come after every point of the same ray.
    order = torch.where(returned, distance, 2 * max_range).masked_fill(~inside, math.inf)
    nearest = torch.full_like(order, math.inf).flatten(1)
    nearest = nearest.scatter_reduce(1, cell.flatten(1), order.flatten(1), "amin")
    wins = inside & (order == nearest.gather(1, cell.flatten(1)).view_as(order))
    belief = 2 * probability - 1
    belief = torch.where(returned, belief.clamp_min(0), belief.clamp_max(0)).masked_fill(~wins, -2.0)
    carried = torch.full_like(belief, -2.0).flatten(1)
    carried = carried.scatter_reduce(1, cell.flatten(1), belief.flatten(1), "amax").view_as(range_map)
    nearest = nearest.view_as(range_map)
    known = nearest < math.inf
    code = encode_log(nearest.clamp(min_range, max_range), min_range, max_range)
    return torch.stack([code * known, carried * known], 1)


def _cells(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the ray ``[B, rows, columns]`` that points along each unit vector, and whether there is one."""
    columns = directions.shape[2]
    table = directions[:, :, 0, 2].clamp(-1, 1).asin()  # [B, rows]
    top, bottom = table[:, :1, None], table[:, -1:, None]
    elevation = unit[..., 2].clamp(-1, 1).asin()
    margin = math.radians(ELEVATION_MARGIN_DEG)
    inside = (elevation <= top + margin) & (elevation >= bottom - margin)
    between = ((table[:, 1:] + table[:, :-1]) / 2).flip(1).contiguous()  # rising
    row = table.shape[1] - 1 - torch.searchsorted(between, elevation.flatten(1))
    azimuth = torch.atan2(directions[..., :2, 1], directions[..., :2, 0])  # [B, rows, 2]
    full = 2 * math.pi
    step = torch.remainder(azimuth[:, :1, 1] - azimuth[:, :1, 0] + math.pi, full) - math.pi
    past = torch.atan2(unit[..., 1], unit[..., 0]).flatten(1) - azimuth[..., 0].gather(1, row)
    column = torch.remainder((past / step).round(), columns).long()
    return (row * columns + column).view_as(inside), inside


class CarryGraph(nn.Module):
    """``(before [R, C] metres, before_probability [R, C], motion [4, 4], rays [F, R, C]) -> previous [2, R, C]``."""

    def __init__(self, min_range: float, max_range: float) -> None:
        super().__init__()
        self.limits = (min_range, max_range)

    def forward(self, before: Tensor, before_probability: Tensor, motion: Tensor, rays: Tensor) -> Tensor:
        directions = rays[:3].permute(1, 2, 0)
        return carry(before[None], before_probability[None], directions[None], motion[None], *self.limits)[0]
