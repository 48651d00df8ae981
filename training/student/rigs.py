# SPDX-License-Identifier: Apache-2.0
"""Random rigs and sensors, so that a student learns to read calibration instead of remembering one vehicle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidargen_ros.cameras.align import align
from lidargen_ros.cameras.base import Camera
from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import Rig, View
from lidargen_ros.sensors import Sensor


def random_rig(base: Rig, rng: np.random.Generator) -> Rig:
    """A rig like ``base``: each camera moved (0.25 m), turned (4 degrees), zoomed, cropped or replaced by a pinhole."""
    views = []
    for view in base.views:
        pose = np.array(view.camera_to_lidar)
        pose[:3, :3] = (
            pose[:3, :3] @ Rotation.from_euler("xyz", rng.normal(0, (2, 4, 2)), degrees=True).as_matrix()
        )
        pose[:3, 3] += rng.uniform(-0.25, 0.25, 3)
        views.append(View(view.name, _random_lens(view.camera, rng), pose))
    return Rig(tuple(views), name="random")


def _random_lens(camera: Camera, rng: np.random.Generator) -> Camera:
    kind = rng.random()
    if kind < 0.35:
        focal = camera.width / 2 / np.tan(np.deg2rad(rng.uniform(50, 100)) / 2)
        centre = (camera.width - 1) / 2, (camera.height - 1) / 2
        return PinholeCamera(camera.width, camera.height, focal, focal, *centre)
    if kind < 0.7:  # a crop, which the runtime stretches to its tile: other focal length, centre and aspect
        width, height = int(camera.width * rng.uniform(0.7, 1.0)), int(camera.height * rng.uniform(0.7, 1.0))
        left = int(rng.integers(0, camera.width - width + 1))
        return camera.cropped(left, int(rng.integers(0, camera.height - height + 1)), width, height)
    return camera


def random_sensor(base: Sensor, rng: np.random.Generator) -> Sensor:
    """Another beam table with the rows and columns of ``base``: even, or dense around the horizon; turned a little."""
    top, bottom = rng.uniform(5, 22), rng.uniform(-30, -12)
    even = np.linspace(top, bottom, base.rows)
    bend = rng.uniform(0, 0.6)  # share of the dense part
    centre = np.linspace(1, -1, base.rows)
    curved = np.where(centre > 0, top, -bottom) * np.sign(centre) * np.abs(centre) ** 2
    elevations = np.sort((1 - bend) * even + bend * curved)[::-1]
    elevations = elevations - 1e-4 * np.arange(base.rows)  # strictly falling
    return replace(
        base, name="random", elevations_deg=elevations, azimuth_start_deg=180.0 + rng.uniform(-5, 5)
    )


@dataclass
class Bank:
    """Alignment maps and rays of many rigs and sensors, as tensors on the training device.

    ``grid [N, K, R, C, 2]``, ``mask [N, K, R, C]``, ``rays [N, F, R, C]``, ``directions [N, R, C, 3]`` of the LiDAR,
    ``camera_origins [N, V, 3]``, ``camera_rays [N, V, h, w, 3]`` in the LiDAR frame. Entry 0 is the exact base rig.
    """

    grid: Tensor
    mask: Tensor
    rays: Tensor
    view: Tensor
    directions: Tensor
    camera_origins: Tensor
    camera_rays: Tensor

    def __len__(self) -> int:
        return len(self.grid)


def pixel_rays(rig: Rig, tile: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Origin ``[V, 3]`` and direction ``[V, h, w, 3]`` of every pixel of the resized views, LiDAR frame."""
    height, width = tile
    v, u = np.mgrid[0:height, 0:width]
    pixels = np.stack([u, v], -1).astype(np.float64)
    scaled = rig.scaled(width, height)
    origins = np.stack([view.camera_to_lidar[:3, 3] for view in scaled.views])
    directions = np.stack(
        [view.camera.rays(pixels) @ view.camera_to_lidar[:3, :3].T for view in scaled.views]
    )
    return origins.astype(np.float32), directions.astype(np.float32)


def build_bank(
    base: Rig,
    sensor: Sensor,
    *,
    size: int,
    tile: tuple[int, int],
    hypotheses: tuple[float | str, ...],
    lidar_height: float,
    other_sensors: float = 0.3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Bank:
    """Entry 0: ``base`` and ``sensor`` exactly; the others random rigs, a share ``other_sensors`` of them with random sensors."""
    rng = np.random.default_rng(seed)
    pairs = [(base, sensor)]
    for _ in range(size - 1):
        other = random_sensor(sensor, rng) if rng.random() < other_sensors else sensor
        pairs.append((random_rig(base, rng), other))

    def entry(pair: tuple[Rig, Sensor]) -> tuple[NDArray, ...]:
        rig, lidar = pair
        a = align(rig, lidar, tile=tile, hypotheses=hypotheses, lidar_height=lidar_height)
        return a.grid, a.mask, a.rays, a.view, lidar.directions(), *pixel_rays(rig, tile)

    with ThreadPoolExecutor() as pool:  # numpy releases the GIL in the heavy parts
        columns = zip(*pool.map(entry, pairs), strict=True)
        return Bank(*(torch.from_numpy(np.stack(c)).to(device) for c in columns))
