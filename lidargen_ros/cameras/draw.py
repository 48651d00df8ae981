# SPDX-License-Identifier: Apache-2.0
"""Drawing points into camera pictures."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from .base import Camera
from .pinhole import PinholeCamera
from .rig import View


def z_buffer(camera: Camera, points: NDArray) -> NDArray:
    """[height, width] float32: depth z in metres of the nearest point [N, 3] (camera frame) per pixel, 0 = none."""
    u, v, order = _far_to_near(camera, points)
    buffer = np.zeros((camera.height, camera.width), np.float32)
    buffer[v, u] = points[order, 2]
    return buffer


def draw_points(
    camera: Camera, points: NDArray, colours: NDArray, radius: int = 2, reference: bool = False
) -> NDArray:
    """Points [N, 3] (camera frame) with colours [N, 3] uint8 on black, [height, width, 3] uint8; near covers far.

    Radius 1 is one pixel, a larger one a square from -ceil(radius / 2) to floor(radius / 2) around it.

    Args:
        reference: as published, squares are blended by the larger value per channel and wrap round the borders.
    """
    canvas = np.zeros((camera.height, camera.width, 3), np.uint8)
    u, v, order = _far_to_near(camera, points)
    before, after = (0, 0) if radius <= 1 else (-(-radius // 2), radius // 2)
    if reference:
        canvas[v, u] = colours[order]
        size = before + after + 1
        # The filter's window reaches size // 2 + origin back; a pixel is reached by what lies ``after`` before it.
        return maximum_filter(canvas, (size, size, 1), mode="wrap", origin=(after - size // 2,) * 2 + (0,))
    shifts = np.arange(-before, after + 1)
    us, vs = np.broadcast_arrays(u[:, None, None] + shifts, v[:, None, None] + shifts[:, None])
    inside = (us >= 0) & (us < camera.width) & (vs >= 0) & (vs < camera.height)
    point = np.broadcast_to(order[:, None, None], us.shape)
    canvas[vs[inside], us[inside]] = colours[point[inside]]
    return canvas


def _far_to_near(camera: Camera, points: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Columns, rows and indices of the visible points, the farthest first (ties: as given)."""
    pixels, visible = camera.project(points)
    kept = np.flatnonzero(visible)
    order = kept[np.argsort(-points[kept, 2], kind="stable")]
    u, v = np.rint(pixels[order]).astype(np.int64).T
    return u, v, order


def overview() -> View:
    """The published bird's-eye view of a point cloud: eye 60 m behind and 40 m above the LiDAR, looking at 20 m
    ahead, 1280 x 720, 45 deg vertical field of view. Its near plane is at 2 m; only points within 100 m per axis
    are shown."""
    eye, target = np.array([-60.0, 0.0, 40.0]), np.array([20.0, 0.0, 0.0])
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    focal = 360 / np.tan(np.deg2rad(45) / 2)
    return View("overview", PinholeCamera(1280, 720, focal, focal, 640.0, 360.0), pose)
