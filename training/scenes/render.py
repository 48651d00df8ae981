# SPDX-License-Identifier: Apache-2.0
"""The scene generator: worlds from seeds, and what a LiDAR and cameras see of them. See docs/scenes.md.

    worlds = make_worlds(torch.arange(16, device="cuda") + TRAINING_SEED_START)
    ego = sample_ego(worlds, worlds.seeds)
    sweep = render_lidar(worlds, directions, ego)
    images = render_cameras(worlds, *rig_rays(rig, 352, 640, "cuda"), ego)

All is float32 torch, batched over scenes. On a GPU the functions run compiled (``torch.compile``), scene by scene batch
in as large pieces as memory allows; on the CPU they run eagerly in small pieces, unless ``compiled=True``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.cameras.rig import Rig, View

from .cast import FAR, Vec, blocked, ground_hit, nearest
from .ego import Ego, advance, rotation, sample_ego
from .hashing import hash_int
from .sensors_sim import develop, lidar_return
from .shade import KINDS, NONE, radiance, surface
from .world import LAYOUTS, LIGHT, PRIMITIVES, Worlds, make_worlds

__all__ = [
    "KINDS", "LAYOUTS", "Ego", "Worlds", "advance", "fit_rig", "make_worlds", "render_cameras", "render_depth", "render_lidar", "rig_rays",
    "sample_ego",
]  # fmt: skip

_EAGER_PAIRS = (
    12_000_000  # rays x primitives per piece: bounds the memory of the eager path (about 50 MB an array)
)
_COMPILED_RAYS = 24_000_000  # rays per piece: bounds the images and ray arrays of the compiled path


def _light_vector(light: Tensor, first: str) -> Vec:
    start = LIGHT.index(first)
    return tuple(light[:, start + i].reshape(-1, 1, 1) for i in range(3))


def _rotate(matrix: Tensor, v: Vec) -> Vec:
    """``matrix`` is ``[..., 3, 3]`` whose leading axes broadcast against the components of ``v``."""
    return tuple(
        matrix[..., i, 0] * v[0] + matrix[..., i, 1] * v[1] + matrix[..., i, 2] * v[2] for i in range(3)
    )


def _lidar_core(prims: Tensor, ground: Tensor, directions: Tensor, row: Tensor, column: Tensor, position: Tensor, angles: Tensor,
                velocity: Tensor, yaw_rate: Tensor, times: Tensor, key: Tensor, max_range: float, noise: bool):  # fmt: skip
    """Rays ``[1 or B, rows, C, 3]`` of one piece; position ``[B, 3]``, angles ``[B, 3]`` (yaw, pitch, roll), times ``[C]``."""
    t = times[None, None, :]
    yaw = angles[:, 0, None, None] + yaw_rate[:, None, None] * t
    turn = rotation(yaw, angles[:, 1, None, None] + 0.0 * yaw, angles[:, 2, None, None] + 0.0 * yaw)
    d = _rotate(turn, tuple(directions[..., i] for i in range(3)))
    o = tuple(position[:, i, None, None] + velocity[:, i, None, None] * t for i in range(3))
    t_object, index = nearest(prims, o, d, t)
    t_ground, face = ground_hit(ground, o, d)
    hit = surface(prims, ground, o, d, t, t_object, index, t_ground, face, 0.002)
    distance = torch.minimum(t_object, t_ground)
    keys = (key[:, None, None], row[None, :, None], column[None, None, :])
    ranges, intensity = lidar_return(hit, d, distance, max_range, noise, keys)
    seen_kind = torch.where(distance <= max_range, hit.kind, NONE)
    return ranges, intensity, seen_kind.to(torch.int8)


def _camera_rays(origins: Tensor, directions: Tensor, position: Tensor, turn: Tensor) -> tuple[Vec, Vec]:
    """World origins ``[B, V, 1]`` and directions ``[B, V, N]`` from rays in the LiDAR frame."""
    matrix = turn[:, None, None]
    d = _rotate(matrix, tuple(directions[..., i] for i in range(3)))
    o = _rotate(matrix, tuple(origins[..., None, i] for i in range(3)))
    return tuple(a + position[:, i, None, None] for i, a in enumerate(o)), d


def _camera_core(prims: Tensor, ground: Tensor, light: Tensor, origins: Tensor, directions: Tensor, pixel: Tensor, radius: Tensor,
                 position: Tensor, turn: Tensor, camera_key: Tensor, angle: float, shadows: bool, noise: bool) -> Tensor:  # fmt: skip
    """Rays ``[1 or B, V, N, 3]`` of one piece -> uint8 ``[B, V, N, 3]``; pixel numbers and radii are ``[N]``."""
    o, d = _camera_rays(origins, directions, position, turn)
    still = torch.zeros_like(position[:, :1, None])
    t_object, index = nearest(prims, o, d, still)
    t_ground, face = ground_hit(ground, o, d)
    hit = surface(prims, ground, o, d, still, t_object, index, t_ground, face, angle)
    distance = torch.minimum(t_object, t_ground)
    sun = _light_vector(light, "sun_x")
    if shadows:
        lifted = tuple(p + 0.03 * n for p, n in zip(hit.position, hit.normal, strict=True))
        sun_seen = 1.0 - blocked(prims, lifted, sun, still).to(torch.float32)
    else:
        sun_seen = torch.ones_like(distance)
    colour = radiance(light, hit, d, sun_seen, torch.where(distance < FAR, distance, 0.0))
    return develop(light, colour, radius, noise, (camera_key[:, :, None],), pixel)


def _depth_core(
    prims: Tensor, ground: Tensor, origins: Tensor, directions: Tensor, position: Tensor, turn: Tensor
) -> Tensor:
    o, d = _camera_rays(origins, directions, position, turn)
    t_object, _ = nearest(prims, o, d, torch.zeros_like(position[:, :1, None]))
    t_ground, _ = ground_hit(ground, o, d)
    distance = torch.minimum(t_object, t_ground)
    return torch.where(distance < FAR, distance, 0.0)


@functools.cache
def _compiled(core: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(core, dynamic=False, fullgraph=True)


def _choose(
    core: Callable[..., Any], compiled: bool | None, device: torch.device
) -> tuple[Callable[..., Any], bool]:
    use = device.type == "cuda" if compiled is None else compiled
    return (_compiled(core) if use else core), use


def _pieces(batch: int, rays: int, compiled: bool) -> tuple[int, int]:
    """Scenes per piece (a divisor of ``batch``, so that all pieces have one shape) and rays per piece of a scene."""
    if not compiled:
        return 1, max(1, _EAGER_PAIRS // PRIMITIVES)
    limit = max(1, _COMPILED_RAYS // rays)
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= limit), rays


@torch.no_grad()
def render_lidar(worlds: Worlds, directions: Tensor, ego: Ego, *, column_times: Tensor | None = None, max_range: float = 120.0,
                 noise: bool = True, seed: int | Tensor = 0, compiled: bool | None = None) -> dict[str, Tensor]:  # fmt: skip
    """What a spinning LiDAR measures.

    Args:
        directions: ``[rows, C, 3]`` or ``[B, rows, C, 3]`` unit vectors in the LiDAR frame (x forward, y left, z up).
        ego: pose at the start of the spin, and motion.
        column_times: ``[C]`` seconds after the start of the spin; the sensor and all objects move meanwhile, and each
            range is measured in the frame of its own column. None: all columns at one instant.
        max_range: metres.
        noise: range noise, lost echoes and dropouts; without it, glass and echoes below the threshold return nothing.
        seed: of the noise (a number or ``[B]``); frames of a drive want different ones.

    Returns:
        ``range`` ``[B, rows, C]`` float32 metres, 0 = none; ``intensity`` ``[B, rows, C]`` 0..1; ``kind``
        ``[B, rows, C]`` int8: index into ``KINDS`` of what stands there, whether or not it returned.
    """
    device = worlds.prims.device
    directions = directions.to(device, torch.float32)
    directions = directions[None] if directions.dim() == 3 else directions
    rows, columns = directions.shape[1:3]
    times = (
        torch.zeros(columns, device=device)
        if column_times is None
        else column_times.to(device, torch.float32)
    )
    key = hash_int(worlds.seeds, torch.as_tensor(seed, device=device))
    angles = torch.stack([ego.yaw, ego.pitch, ego.roll], 1)
    core, use = _choose(_lidar_core, compiled, device)
    scenes, rays = _pieces(len(worlds), rows * columns, use)
    step = max(1, rays // columns)
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    out = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        d = directions[s] if len(directions) > 1 else directions
        parts = [
            core(worlds.prims[s], worlds.ground[s], d[:, r : r + step], row[r : r + step], column, ego.position[s], angles[s],
                 ego.velocity[s], ego.yaw_rate[s], times, key[s], max_range, noise)
            for r in range(0, rows, step)
        ]  # fmt: skip
        out.append([torch.cat(p, 1) for p in zip(*parts, strict=True)])
    ranges, intensity, kind = (torch.cat(p) for p in zip(*out, strict=True))
    return {"range": ranges, "intensity": intensity, "kind": kind}


def _shape_rays(
    worlds: Worlds, ray_origins: Tensor, ray_directions: Tensor
) -> tuple[Tensor, Tensor, int, int]:
    device = worlds.prims.device
    directions = ray_directions.to(device, torch.float32)
    directions = directions[None] if directions.dim() == 4 else directions
    origins = ray_origins.to(device, torch.float32)
    origins = origins[None] if origins.dim() == 2 else origins
    height, width = directions.shape[2:4]
    return origins, directions.flatten(2, 3), height, width


def _moved(worlds: Worlds, ego: Ego, times: Tensor | float | None) -> tuple[Worlds, Tensor, Tensor]:
    """Worlds, position and rotation ``times`` after the instant given, by straight motion as within a spin."""
    if times is None:
        return worlds, ego.position, ego.rotation()
    t = torch.as_tensor(times, dtype=torch.float32, device=ego.yaw.device)
    turn = rotation(ego.yaw + ego.yaw_rate * t, ego.pitch, ego.roll)
    return worlds.at(t), ego.position + ego.velocity * t.reshape(-1, 1), turn


@torch.no_grad()
def render_cameras(worlds: Worlds, ray_origins: Tensor, ray_directions: Tensor, ego: Ego, *, times: Tensor | float | None = None,
                   shadows: bool = True, noise: bool = True, seed: int | Tensor = 0, compiled: bool | None = None) -> Tensor:  # fmt: skip
    """What cameras see: uint8 RGB ``[B, V, H, W, 3]``.

    Args:
        ray_origins: ``[V, 3]`` or ``[B, V, 3]``, camera centres in the LiDAR frame, metres.
        ray_directions: ``[V, H, W, 3]`` or ``[B, V, H, W, 3]``, unit vectors of every pixel in the LiDAR frame.
        ego: pose and motion of the LiDAR.
        times: seconds after the instant of ``ego`` and ``worlds`` (a number or ``[B]``).
        shadows: cast a second ray toward the sun.
        noise: sensor noise. Exposure and white balance vary by world, camera and ``seed`` in either case.
    """
    origins, directions, height, width = _shape_rays(worlds, ray_origins, ray_directions)
    device = origins.device
    worlds, position, turn = _moved(worlds, ego, times)
    views, count = directions.shape[1], height * width
    pixel = torch.arange(count, device=device)
    v, u = pixel // width - 0.5 * (height - 1), pixel % width - 0.5 * (width - 1)
    radius = (u * u + v * v) / (0.25 * (height * height + width * width))
    key = hash_int(
        worlds.seeds[:, None],
        torch.arange(views, device=device)[None],
        torch.as_tensor(seed, device=device).reshape(-1, 1),
    )
    angle = 1.2 / width  # radians between pixels, about: a view is 70 to 120 degrees wide
    core, use = _choose(_camera_core, compiled, device)
    scenes, rays = _pieces(len(worlds), views * count, use)
    step = max(1, rays // views)
    images = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        o, d = (a[s] if len(a) > 1 else a for a in (origins, directions))
        parts = [
            core(worlds.prims[s], worlds.ground[s], worlds.light[s], o, d[:, :, n : n + step], pixel[n : n + step], radius[n : n + step],
                 position[s], turn[s], key[s], angle, shadows, noise)
            for n in range(0, count, step)
        ]  # fmt: skip
        images.append(torch.cat(parts, 2))
    return torch.cat(images).unflatten(2, (height, width))


@torch.no_grad()
def render_depth(worlds: Worlds, ray_origins: Tensor, ray_directions: Tensor, ego: Ego, *, times: Tensor | float | None = None,
                 compiled: bool | None = None) -> Tensor:  # fmt: skip
    """Distance along every pixel's ray, float32 ``[B, V, H, W]`` metres, 0 = sky. Rays as in ``render_cameras``."""
    origins, directions, height, width = _shape_rays(worlds, ray_origins, ray_directions)
    worlds, position, turn = _moved(worlds, ego, times)
    core, use = _choose(_depth_core, compiled, origins.device)
    scenes, rays = _pieces(len(worlds), directions.shape[1] * height * width, use)
    step = max(1, rays // directions.shape[1])
    depths = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        o, d = (a[s] if len(a) > 1 else a for a in (origins, directions))
        parts = [
            core(worlds.prims[s], worlds.ground[s], o, d[:, :, n : n + step], position[s], turn[s])
            for n in range(0, height * width, step)
        ]
        depths.append(torch.cat(parts, 2))
    return torch.cat(depths).unflatten(2, (height, width))


def fit_rig(rig: Rig, height: int, width: int) -> Rig:
    """The rig of images that are resized until they cover ``height x width`` and cut there about the middle.

    For 16:9 cameras and 704 x 1280 this is the published preprocessing: resize to 720 x 1280, keep rows 8 to 711.
    """
    views = []
    for view in rig:
        camera = view.camera
        by = max(width / camera.width, height / camera.height)
        w, h = max(width, round(camera.width * by)), max(height, round(camera.height * by))
        camera = camera.scaled(w, h).cropped(round((w - width) / 2), round((h - height) / 2), width, height)
        views.append(View(view.name, camera, view.camera_to_lidar))
    return Rig(tuple(views), rig.name, rig.source)


def rig_rays(rig: Rig, height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rays of every pixel of ``fit_rig(rig, height, width)``.

    Returns:
        origins ``[V, 3]`` metres and unit directions ``[V, height, width, 3]``, in the LiDAR frame, float32.
    """
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float64)
    views = fit_rig(rig, height, width).views
    origins = np.stack([view.camera_to_lidar[:3, 3] for view in views])
    directions = np.stack([view.camera.rays(pixels) @ view.camera_to_lidar[:3, :3].T for view in views])
    return tuple(torch.from_numpy(a).to(device, torch.float32) for a in (origins, directions))
