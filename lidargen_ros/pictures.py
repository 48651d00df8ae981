# SPDX-License-Identifier: Apache-2.0
"""Pictures that people look at: points in camera images, range maps, errors, clouds in perspective.

All are RGB uint8 ``[height, width, 3]``; :func:`save_picture` writes them. One colour scale of range serves
them all (turbo, logarithmic, near is red), so that one legend explains a whole page of them (``viz``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cameras.rig import View
from .colour import colours, depth_colours, to_uint8
from .errors import InputError

NEAR_M, FAR_M, MAP = 2.0, 130.0, "turbo"  # wide enough that nothing of interest gets the dark ends of the map
PAPER, DARK, INK, MUTED = (13, 17, 23), (24, 29, 38), (235, 240, 246), (139, 148, 160)
PUBLISHED_TRUE, PUBLISHED_GENERATED = (255, 180, 0), (0, 166, 237)


@dataclass(frozen=True)
class PerspectiveView:
    """A pinhole camera that looks at a cloud; LiDAR frame, metres, z is up.

    The defaults are the view of the pictures published with Cosmos-Transfer-LidarGen: from behind and above,
    45 degrees vertically, points within a cube of 200 m.
    """

    eye: tuple[float, float, float] = (-60.0, 0.0, 40.0)
    target: tuple[float, float, float] = (20.0, 0.0, 0.0)
    vertical_fov_deg: float = 45.0
    width: int = 1280
    height: int = 720
    near_m: float = 2.0
    half_cube_m: float = 100.0
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @property
    def focal_px(self) -> float:
        return self.height / 2 / float(np.tan(np.deg2rad(self.vertical_fov_deg) / 2))

    def axes(self) -> NDArray:
        """[3, 3]: unit vectors to the right, up and forward of the picture, as rows."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Points [n, 3] -> positions [n, 2] (x right, y down, from the upper left corner of the picture),
        depths [n]
        in metres, and whether the view shows them [n] bool. Pixel k covers positions k to k + 1."""
        xyz = np.asarray(points, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            right, up, depth = self.axes() @ (xyz - self.eye).T
            shown = (depth > self.near_m) & (np.abs(xyz) <= self.half_cube_m).all(axis=1)
        scale = self.focal_px / np.where(shown, depth, 1.0)
        positions = np.stack([self.width / 2 + right * scale, self.height / 2 - up * scale], axis=-1)
        inside = (
            (positions >= 0).all(axis=1) & (positions[:, 0] < self.width) & (positions[:, 1] < self.height)
        )
        return positions, depth, shown & inside


TOP_VIEW = PerspectiveView(eye=(0.0, 0.0, 120.0), target=(0.0, 0.0, 0.0), up=(1.0, 0.0, 0.0))
"""From straight above, x of the vehicle upwards."""


def range_colours(ranges: ArrayLike) -> NDArray:
    """Ranges [...] in metres -> RGB uint8 [..., 3] on the scale of this module; no return is dark."""
    ranges = np.asarray(ranges, dtype=np.float32)
    rgb = to_uint8(depth_colours(ranges, NEAR_M, FAR_M, MAP), rounded=True)
    return np.where((ranges > 0)[..., None], rgb, np.array(DARK, np.uint8))


def range_picture(range_map: NDArray, width: int | None = None, height: int | None = None) -> NDArray:
    """A range map [rows, columns] as a picture, resized to ``height`` x ``width`` where given."""
    return _resized(range_colours(range_map), width, height)


def error_picture(
    generated: NDArray,
    true: NDArray,
    limit_m: float = 5.0,
    width: int | None = None,
    height: int | None = None,
) -> NDArray:
    """Generated minus true range [rows, columns]: red is too far, blue too near, saturated at ``limit_m``;
    yellow is a
    return invented, violet a return missed, dark no return in either."""
    signed = np.clip((generated - true) / limit_m, -1, 1)
    rgb = to_uint8(colours((signed + 1) / 2, "coolwarm"), rounded=True)
    for mask, colour in (
        ((generated > 0) & (true <= 0), (250, 204, 21)),
        ((generated <= 0) & (true > 0), (147, 51, 234)),
        ((generated <= 0) & (true <= 0), DARK),
    ):
        rgb[mask] = colour
    return _resized(rgb, width, height)


def draw_points(
    image: NDArray,
    view: View,
    points: NDArray,
    rgb: NDArray | None = None,
    size: int = 2,
    opacity: float = 0.85,
) -> NDArray:
    """A copy of an image with points drawn in, near ones over far ones.

    Args:
        image: RGB uint8; of the size of ``view.camera``, or the camera is scaled to it.
        points: [n, 3] metres, LiDAR frame.
        rgb: [n, 3] uint8 colour of each point; by default its range.
        size: edge of the square drawn for a point, pixels.
    """
    height, width = image.shape[:2]
    camera = view.camera
    if (camera.width, camera.height) != (width, height):
        view = View(view.name, camera.scaled(width, height), view.camera_to_lidar)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    pixels, visible = view.project(points)
    rgb = range_colours(np.linalg.norm(points, axis=1)) if rgb is None else rgb
    distance = np.linalg.norm(points - view.camera_to_lidar[:3, 3], axis=1)
    canvas, drawn = np.zeros_like(image), np.zeros(image.shape[:2], bool)
    _splat(
        canvas,
        drawn,
        np.rint(pixels[visible]),
        distance[visible],
        rgb[visible],
        np.full(int(visible.sum()), size),
    )
    blended = cv2.addWeighted(image, 1 - opacity, canvas, opacity, 0)
    return np.where(drawn[..., None], blended, image)


def cloud_picture(
    points: NDArray,
    view: PerspectiveView | None = None,
    rgb: NDArray | tuple[int, int, int] | None = None,
    *,
    rings_m: Sequence[float] = (20.0, 40.0, 60.0),
    ground_m: float = -2.0,
) -> NDArray:
    """A cloud [n, 3] in perspective: anti-aliased, near points larger, far ones fading into the background.

    Args:
        rgb: one colour, or one per point (uint8 [n, 3]); by default the range.
        rings_m: radii of circles drawn on the ground for scale; none to leave them out.
        ground_m: height of those circles in the LiDAR frame.
    """
    view = view or PerspectiveView()
    points = np.asarray(points).reshape(-1, 3)
    if rgb is None:
        rgb = range_colours(np.linalg.norm(points, axis=1))
    rgb = np.broadcast_to(np.asarray(rgb, np.uint8), points.shape)
    positions, depth, shown = view.project(points)
    fine = 2  # drawn at twice the size and averaged down
    canvas = np.full((fine * view.height, fine * view.width, 3), PAPER, np.uint8)
    for radius in rings_m:
        _ring(canvas, view, radius, ground_m, fine)
    beyond = depth[shown] - np.linalg.norm(np.subtract(view.target, view.eye))
    fog = np.clip(beyond / 150.0, 0.0, 0.5)[:, None]
    faded = (rgb[shown] * (1 - fog) + np.asarray(PAPER) * fog).astype(np.uint8)
    sizes = np.clip(np.rint(fine * 0.11 * view.focal_px / depth[shown]), 2, 5).astype(int)
    corners = np.floor(fine * positions[shown] - (sizes[:, None] - 1) / 2)
    _splat(canvas, np.zeros(canvas.shape[:2], bool), corners, depth[shown], faded, sizes, corner=True)
    return cv2.resize(canvas, (view.width, view.height), interpolation=cv2.INTER_AREA)


def save_picture(path: str | Path, rgb: NDArray, quality: int = 92) -> Path:
    """Write an RGB picture; the ending of the name says how (.jpg, .png).

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() in (".jpg", ".jpeg") else []
        written = cv2.imwrite(str(path), rgb[..., ::-1], options)
    except cv2.error as e:
        raise InputError(f"picture {path}: {' '.join(str(e).split())}; name it .jpg or .png") from e
    if not written:
        raise InputError(f"picture {path} cannot be written; check the folder and the free space")
    return path


def _splat(
    canvas: NDArray,
    drawn: NDArray,
    pixels: NDArray,
    depth: NDArray,
    rgb: NDArray,
    sizes: NDArray,
    corner: bool = False,
) -> None:
    """Paint squares from far to near: ``pixels`` [n, 2] are their centres, or with ``corner`` their upper
    left pixels.
    """
    order = np.argsort(-depth, kind="stable")
    largest = int(sizes.max(initial=1))
    v, u = (grid.ravel() for grid in np.mgrid[:largest, :largest])
    start = pixels[order].astype(int) - (0 if corner else ((sizes[order] - 1) // 2)[:, None])
    x, y = start[:, :1] + u, start[:, 1:] + v
    height, width = canvas.shape[:2]
    limit = sizes[order, None]
    inside = (u < limit) & (v < limit) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Where an index repeats, numpy keeps the last value: the nearest point.
    flat = (y * width + x)[inside]
    canvas.reshape(-1, 3)[flat] = np.broadcast_to(rgb[order, None], (*inside.shape, 3))[inside]
    drawn.reshape(-1)[flat] = True


def _ring(canvas: NDArray, view: PerspectiveView, radius: float, height: float, fine: int) -> None:
    angle = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full_like(angle, height)], axis=-1)
    positions, depth, _ = view.project(circle)
    if (depth > view.near_m).all():
        line = np.rint(positions * fine * 16).astype(np.int32)[:, None]
        cv2.polylines(canvas, [line], False, (48, 56, 68), fine, cv2.LINE_AA, shift=4)


def _resized(rgb: NDArray, width: int | None, height: int | None) -> NDArray:
    """Nearest neighbour to a multiple, then averaged down: pixels stay crisp at any size."""
    rows, columns = rgb.shape[:2]
    height, width = height or rows, width or columns
    large = rgb.repeat(-(-height // rows), axis=0).repeat(-(-width // columns), axis=1)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
