# SPDX-License-Identifier: Apache-2.0
"""Ray alignment maps: for every ray of a sensor, the pixel that sees it at each of several supposed depths.

This is where calibration enters the students, and the only place: a network that reads pixels through these maps does
not know how many cameras there are, of which model, or where they sit.

All views are resized to one tile size and stacked top to bottom into an *atlas* ``[views * tile_height, tile_width, 3]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..sensors import Sensor
from .rig import Rig

RAY_FEATURES = 8
GROUND = "ground"
# Depths in metres along the ray; "ground" is where a ray below the horizon meets the nominal ground plane (above the
# horizon: GROUND_LIMIT_M). Measured against other choices in docs/student.md.
DEFAULT_HYPOTHESES: tuple[float | str, ...] = (GROUND, 6.0, 15.0, 30.0, 70.0, 1000.0)
GROUND_LIMIT_M = 60.0
# Height and width in pixels to which pictures are shrunk. Pixels of a camera of 120 degrees then lie as densely as the beams of a
# Pandar128 around the horizon, 0.125 degrees apart.
DEFAULT_TILE = (528, 960)


@dataclass(frozen=True)
class Alignment:
    """Maps of one rig and sensor; arrays are float32.

    Attributes:
        grid: ``[K, rows, columns, 2]`` atlas positions (x, y), -1..1 from edge to edge (``grid_sample`` with
            ``align_corners=False``).
        mask: ``[K, rows, columns]`` 1 where a camera sees the point, else 0.
        view: ``[K, rows, columns]`` int8 index of that camera, -1 for none.
        rays: ``[RAY_FEATURES, rows, columns]`` what the network is told of the ray itself.
    """

    grid: NDArray
    mask: NDArray
    view: NDArray
    rays: NDArray

    def without(self, missing: Sequence[int]) -> NDArray:
        """``mask`` with the rays of missing views set to 0."""
        return self.mask * ~np.isin(self.view, list(missing))

    @property
    def seen(self) -> NDArray:
        """``[rows, columns]`` bool: some camera looks along the ray (at the farthest supposed depth)."""
        return self.mask[-1] > 0


def supposed_depths(sensor: Sensor, hypotheses: Sequence[float | str], lidar_height: float) -> NDArray:
    """Depth of each hypothesis along each ray, ``[K, rows, columns]`` metres; ``lidar_height`` above the ground."""
    directions = sensor.directions()
    down = np.maximum(-directions[..., 2], 1e-6)
    ground = np.minimum(lidar_height / down, GROUND_LIMIT_M)
    return np.stack([ground if h == GROUND else np.full(ground.shape, float(h)) for h in hypotheses])


def align(
    rig: Rig,
    sensor: Sensor,
    *,
    tile: tuple[int, int],
    hypotheses: Sequence[float | str] = DEFAULT_HYPOTHESES,
    lidar_height: float = 1.9,
) -> Alignment:
    """Builds the maps; takes a few tenths of a second, needed only when the calibration changes.

    Where several cameras see a point, the one that sees it nearest to its image centre is taken.

    Args:
        tile: (height, width) in pixels to which every view is resized.
        hypotheses: supposed depths in metres, or ``"ground"``.
        lidar_height: height of the LiDAR origin above the ground, metres.
    """
    height, width = tile
    depths = supposed_depths(sensor, hypotheses, lidar_height)
    points = depths[..., None] * sensor.directions()
    best = np.full(depths.shape, np.inf, np.float32)
    grid = np.full((*depths.shape, 2), -2.0, np.float32)
    view_index = np.full(depths.shape, -1, np.int8)
    for index, view in enumerate(rig.views):
        camera = view.camera.scaled(width, height)
        to_camera = np.linalg.inv(view.camera_to_lidar)
        pixels, visible = camera.project(points @ to_camera[:3, :3].T + to_camera[:3, 3])
        offset = np.hypot((pixels[..., 0] + 0.5) / width - 0.5, (pixels[..., 1] + 0.5) / height - 0.5)
        better = visible & (offset < best)
        best[better] = offset[better]
        view_index[better] = index
        # Half a pixel inside the tile, so that bilinear look-ups never mix two views of the atlas.
        x = np.clip(pixels[..., 0], 0, width - 1) + 0.5
        y = np.clip(pixels[..., 1], 0, height - 1) + 0.5 + index * height
        grid[better] = np.stack([2 * x / width - 1, 2 * y / (height * len(rig.views)) - 1], -1)[better]
    mask = (view_index >= 0).astype(np.float32)
    return Alignment(grid, mask, view_index, ray_features(sensor, lidar_height))


def ray_features(sensor: Sensor, lidar_height: float) -> NDArray:
    """``[RAY_FEATURES, rows, columns]``: direction x, y, z; elevation (0.25 rad = 1); row pitch (0.5 degrees = 1);
    nearness of the ground; its distance on a logarithmic scale; whether the ray meets it within ``GROUND_LIMIT_M``.
    """
    directions = sensor.directions()
    elevation = np.deg2rad(np.asarray(sensor.elevations_deg, np.float64))
    pitch = np.abs(np.gradient(elevation)) if len(elevation) > 1 else np.zeros(1)
    rows = [np.broadcast_to(v[:, None], sensor.shape) for v in (elevation / 0.25, pitch / np.deg2rad(0.5))]
    distance = lidar_height / np.maximum(-directions[..., 2], 1e-6)
    nearness = np.minimum(1.0, 2.0 / distance)  # 1 within 2 m, 0 at the horizon
    scale = np.log(np.clip(distance, 1.0, GROUND_LIMIT_M)) / np.log(GROUND_LIMIT_M)
    features = [*np.moveaxis(directions, -1, 0), *rows, nearness, scale, distance < GROUND_LIMIT_M]
    return np.stack(features).astype(np.float32)


def atlas(images: Sequence[NDArray | None], tile: tuple[int, int]) -> NDArray:
    """Stacks RGB images (uint8 ``[H, W, 3]``, any size; None = missing, black) into ``[views * height, width, 3]``.

    Raises:
        InputError: an array that is not uint8 ``[H, W, 3]``.
    """
    height, width = tile
    out = np.zeros((len(images) * height, width, 3), np.uint8)
    for i, image in enumerate(images):
        if image is None:
            continue
        check_image(i, image)
        target = out[i * height : (i + 1) * height]
        if image.shape[:2] == tile:
            target[:] = image
        else:
            shrinks = image.shape[0] > height or image.shape[1] > width
            cv2.resize(
                image,
                (width, height),
                dst=target,
                interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
            )
    return out


def check_image(index: int, image: NDArray) -> tuple[int, int]:
    """(height, width) of an image.

    Raises:
        InputError: it is not uint8 ``[H, W, 3]``.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"image {index} is {image.dtype} {image.shape}, expected uint8 [height, width, 3] RGB"
        )
    return image.shape[0], image.shape[1]


def area_weights(size: int, target: int) -> NDArray:
    """``[target, size]`` float32, the share of each pixel in each of fewer pixels: the matrix of OpenCV's INTER_AREA."""
    edges = np.arange(target + 1) * (size / target)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(size)
    shares = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)
