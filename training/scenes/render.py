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
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.cameras.rig import Rig, View

from .cast import FAR, Vec, blocked, blocked_of_one, ground_hit, nearest, nearest_of_one
from .ego import Ego, advance, rotation, sample_ego
from .furnish import make_worlds
from .hashing import hash_int
from .sensors_sim import develop, lidar_return
from .shade import radiance, sun_direction
from .surfaces import Surface, ground_surface, merge, object_surface
from .world import KINDS, LAYOUTS, NONE, PRIMITIVES, Worlds

__all__ = [
    "KINDS", "LAYOUTS", "Ego", "Worlds", "advance", "fit_rig", "make_worlds",
    "render_cameras", "render_depth", "render_lidar", "rig_rays",
    "sample_ego",
]  # fmt: skip

Run = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a stage of the pipeline ready to run: compiled, or as it is."""

_EAGER_PAIRS = (
    12_000_000  # rays x primitives per piece: bounds the memory of the eager path (about 50 MB an array)
)
_COMPILED_RAYS = 12_000_000  # rays per piece of the compiled path: about 3 GB of surfaces


def _rotate(matrix: Tensor, v: Vec) -> Vec:
    """``matrix`` is ``[..., 3, 3]`` whose leading axes broadcast against the components of ``v``."""
    return tuple(
        matrix[..., i, 0] * v[0] + matrix[..., i, 1] * v[1] + matrix[..., i, 2] * v[2] for i in range(3)
    )


def _lidar_rays(directions: Tensor, ego: Tensor, times: Tensor) -> tuple[Vec, Vec, Tensor]:
    """World origins ``[B, 1, C]``, directions ``[B, rows, C]``, times ``[1, 1, C]`` of rays ``[1 or B, rows, C, 3]``.

    ``ego`` is ``[B, 10]``: position, yaw, pitch, roll, velocity, yaw rate.
    """
    e = ego[:, :, None, None].unbind(1)
    t = times[None, None, :]
    yaw = e[3] + e[9] * t
    turn = rotation(yaw, e[4] + 0.0 * yaw, e[5] + 0.0 * yaw)
    d = _rotate(turn, tuple(directions[..., i] for i in range(3)))
    return tuple(e[i] + e[6 + i] * t for i in range(3)), d, t


def _camera_rays(origins: Tensor, directions: Tensor, position: Tensor, turn: Tensor) -> tuple[Vec, Vec]:
    """World origins ``[B, V, 1]`` and directions ``[B, V, N]`` from rays in the LiDAR frame."""
    matrix = turn[:, None, None]
    d = _rotate(matrix, tuple(directions[..., i] for i in range(3)))
    o = _rotate(matrix, tuple(origins[..., None, i] for i in range(3)))
    return tuple(a + position[:, i, None, None] for i, a in enumerate(o)), d


def _visible(
    prims: Tensor, ground: Tensor, o: Vec, d: Vec, time: Tensor, pixel: float, run: Run
) -> tuple[Tensor, Surface]:
    """Distance and surface of the first thing along each ray."""
    t_object, index = run(nearest)(prims, o, d, time)
    t_ground, face = run(ground_hit)(ground, o, d)
    a = run(object_surface)(prims, index, o, d, time, t_object, pixel)
    b = run(ground_surface)(ground, o, d, t_ground, face, pixel)
    return run(merge)(t_object, a, t_ground, b)


def _lidar(prims: Tensor, ground: Tensor, directions: Tensor, row: Tensor, column: Tensor, ego: Tensor, times: Tensor,
           key: Tensor, max_range: float, noise: bool, run: Run) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    o, d, t = run(_lidar_rays)(directions, ego, times)
    distance, hit = _visible(prims, ground, o, d, t, 0.002, run)
    ranges, intensity = run(lidar_return)(hit, d, distance, max_range, noise, key, row, column)
    return ranges, intensity, torch.where(distance <= max_range, hit.kind, NONE).to(torch.int8)


def _lift(o: Vec, d: Vec, t: Tensor, normal: Vec) -> Vec:
    """Where shadow rays start: a little above what was hit."""
    t = torch.where(t < FAR, t, 0.0)
    return tuple(a + b * t + 0.03 * n for a, b, n in zip(o, d, normal, strict=True))


def _camera(prims: Tensor, ground: Tensor, light: Tensor, origins: Tensor, directions: Tensor, pixel: Tensor,
            radius: Tensor, position: Tensor, turn: Tensor, key: Tensor, angle: float, shadows: bool, noise: bool,
            run: Run) -> Tensor:  # fmt: skip
    """Rays ``[1 or B, V, N, 3]`` of one piece -> uint8 ``[B, V, N, 3]``; pixel numbers and radii are ``[N]``."""
    o, d = run(_camera_rays)(origins, directions, position, turn)
    still = torch.zeros_like(position[:, :1, None])
    distance, hit = _visible(prims, ground, o, d, still, angle, run)
    sun_seen = torch.ones_like(distance)
    if shadows:
        lifted = run(_lift)(o, d, distance, hit.normal)
        sun_seen = 1.0 - run(blocked)(prims, lifted, sun_direction(light), still).to(torch.float32)
    colour = run(radiance)(light, hit, d, sun_seen, distance)
    return run(develop)(light, colour, radius, noise, key, pixel)


def _depth(
    prims: Tensor,
    ground: Tensor,
    origins: Tensor,
    directions: Tensor,
    position: Tensor,
    turn: Tensor,
    run: Run,
) -> Tensor:
    o, d = run(_camera_rays)(origins, directions, position, turn)
    t_object, _ = run(nearest)(prims, o, d, torch.zeros_like(position[:, :1, None]))
    t_ground, _ = run(ground_hit)(ground, o, d)
    distance = torch.minimum(t_object, t_ground)
    return torch.where(distance < FAR, distance, 0.0)


# Nothing of size rays x primitives may be written out: inline everything into the minimum.
_FUSE_ALL = {"realize_reads_threshold": 1_000, "realize_opcount_threshold": 100_000}


@functools.cache
def _compile(stage: Callable[..., Any]) -> Callable[..., Any]:
    # Each stage is compiled by itself: one graph of everything takes minutes to compile, these take seconds.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    options = _FUSE_ALL if stage in (nearest, blocked) else None
    return torch.compile(stage, dynamic=False, fullgraph=True, options=options)


def _plain(stage: Callable[..., Any]) -> Callable[..., Any]:
    # Pieces of the eager path are of one scene.
    return {nearest: nearest_of_one, blocked: blocked_of_one}.get(stage, stage)


@functools.cache
def _on_gpu(stage: Callable[..., Any]) -> Callable[..., Any]:
    if stage in (nearest, blocked) and os.environ.get("LIDARGEN_CAST", "kernel") == "kernel":
        from . import cast_kernel  # needs Triton, which comes with torch's CUDA wheels

        return getattr(cast_kernel, stage.__name__)
    return _compile(stage)


def _runner(compiled: bool | None, device: torch.device) -> tuple[Run, bool]:
    use = device.type == "cuda" if compiled is None else compiled
    if not use:
        return _plain, False
    return (_on_gpu if device.type == "cuda" else _compile), True


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
    key = hash_int(worlds.seeds, torch.as_tensor(seed, device=device))[:, None, None]
    angles = torch.stack([ego.yaw, ego.pitch, ego.roll], 1)
    motion = torch.cat([ego.position, angles, ego.velocity, ego.yaw_rate[:, None]], 1)
    run, use = _runner(compiled, device)
    scenes, rays = _pieces(len(worlds), rows * columns, use)
    step = max(1, rays // columns)
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    out = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        d = directions[s] if len(directions) > 1 else directions
        parts = [
            _lidar(worlds.prims[s], worlds.ground[s], d[:, r : r + step], row[r : r + step, None], column, motion[s], times,
                   key[s], max_range, noise, run)
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
    there = ego.at(t)
    return worlds.at(t), there.position, there.rotation()


@torch.no_grad()
def render_cameras(worlds: Worlds, ray_origins: Tensor, ray_directions: Tensor, ego: Ego, *, times: Tensor | float | None = None,
                   shadows: bool = True, noise: bool = True, seed: int | Tensor = 0,
                   compiled: bool | None = None) -> Tensor:  # fmt: skip
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
    run, use = _runner(compiled, device)
    scenes, rays = _pieces(len(worlds), views * count, use)
    step = max(1, rays // views)
    images = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        o, d = (a[s] if len(a) > 1 else a for a in (origins, directions))
        parts = [
            _camera(worlds.prims[s], worlds.ground[s], worlds.light[s], o, d[:, :, n : n + step], pixel[n : n + step],
                    radius[n : n + step], position[s], turn[s], key[s, :, None], angle, shadows, noise, run)
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
    run, use = _runner(compiled, origins.device)
    scenes, rays = _pieces(len(worlds), directions.shape[1] * height * width, use)
    step = max(1, rays // directions.shape[1])
    depths = []
    for b in range(0, len(worlds), scenes):
        s = slice(b, b + scenes)
        o, d = (a[s] if len(a) > 1 else a for a in (origins, directions))
        parts = [
            _depth(worlds.prims[s], worlds.ground[s], o, d[:, :, n : n + step], position[s], turn[s], run)
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
