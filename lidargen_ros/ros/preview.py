# SPDX-License-Identifier: Apache-2.0
"""The topic ``preview``: a small JPEG of what the cameras saw and what was made of it. No ROS in here."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..cameras import Rig, View
from ..pictures import PAPER, draw_points, range_colours, range_picture
from ..sweep import Sweep

_THINNED = 4  # every so many rows and columns are drawn as points: they would cover each other
_JPEG_QUALITY = 85


def preview_picture(images: Sequence[NDArray | None], rig: Rig, sweep: Sweep, width: int) -> NDArray:
    """Camera images with the points drawn in, from the left rear over the front to the right rear, above the range map.

    Args:
        images: RGB uint8, one per view of the rig, of any size; None stays dark.
        width: of the picture in pixels.

    Returns:
        RGB uint8 ``[height, width, 3]``.
    """
    ranges = sweep.range_map[::_THINNED, ::_THINNED]
    returned = ranges > 0
    points = ranges[returned][:, None] * sweep.sensor.directions()[::_THINNED, ::_THINNED][returned]
    rgb = range_colours(ranges[returned])
    edges = np.linspace(0, width, len(rig.views) + 1).round().astype(int)
    tiles = [
        _tile(images[k], rig.views[k], points, rgb, right - left)
        for k, left, right in zip(_round(rig), edges[:-1], edges[1:], strict=True)
    ]
    top = np.full((max(t.shape[0] for t in tiles), width, 3), PAPER, np.uint8)
    for tile, left in zip(tiles, edges[:-1], strict=True):
        top[: tile.shape[0], left : left + tile.shape[1]] = tile
    return np.concatenate([top, range_picture(sweep.range_map[::2, ::2], width, width // 5)])


def preview_jpeg(images: Sequence[NDArray | None], rig: Rig, sweep: Sweep, width: int) -> bytes:
    """:func:`preview_picture` as a JPEG file."""
    picture = cv2.cvtColor(preview_picture(images, rig, sweep, width), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _round(rig: Rig) -> list[int]:
    """Views in the order in which the columns of the range map pass them: clockwise from straight back."""
    forward = [view.camera_to_lidar[:2, 2] for view in rig.views]
    return sorted(range(len(rig.views)), key=lambda k: -np.arctan2(forward[k][1], forward[k][0]))


def _tile(image: NDArray | None, view: View, points: NDArray, rgb: NDArray, width: int) -> NDArray:
    camera = view.camera
    size = (width, round(width * camera.height / camera.width))
    if image is None:
        return np.zeros((size[1], size[0], 3), np.uint8)
    return draw_points(cv2.resize(image, size), view, points, rgb)
