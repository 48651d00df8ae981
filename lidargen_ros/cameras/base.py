# SPDX-License-Identifier: Apache-2.0
"""What every camera can do, and the checks and helpers that all models share.

Frame: OpenCV axes, x right, y down, z along the optical axis, metres. Integer pixel coordinates are pixel
centres, the origin is the centre of the top-left pixel.
"""

from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError

Matrix = TypeVar("Matrix", bound=Any)  # a dataclass with width, height, fx, fy, cx, cy


@runtime_checkable
class Camera(Protocol):
    """A calibrated camera; immutable."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    def project(self, points: NDArray) -> tuple[NDArray, NDArray]:
        """Points [..., 3] in the camera frame -> pixels [..., 2] float64 and visible [...] bool.

        ``visible``: in front of the camera (z > 0), the rounded pixel inside the image, and within the field
        of view in which the lens model is valid. Pixels are finite everywhere, but mean something only where
        visible.
        """
        ...

    def rays(self, pixels: NDArray) -> NDArray:
        """Pixels [..., 2] -> unit directions [..., 3] float64 in the camera frame. Finite everywhere."""
        ...

    def scaled(self, width: int, height: int) -> "Camera":
        """The same camera after its image has been resized: u' = (u + 0.5) * s - 0.5."""
        ...

    def cropped(self, left: int, top: int, width: int, height: int) -> "Camera":
        """The same camera after its image has been cut out: u' = u - left (negative values pad)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists; ``model`` names the class. Inverse: :func:`camera_from_dict`."""
        ...


def check_calibration(
    name: str, width: float, height: float, numbers: ArrayLike, focal: ArrayLike = 1.0
) -> None:
    """Refuse sizes, numbers and focal lengths that no camera can have; the message names the camera.

    Raises:
        CalibrationError
    """
    if not (np.isfinite(width) and np.isfinite(height) and width >= 1 and height >= 1):
        raise CalibrationError(
            f"{name}: image size {width} x {height} is not positive; correct the calibration"
        )
    if not np.isfinite(np.asarray(numbers, dtype=np.float64)).all():
        raise CalibrationError(
            f"{name}: calibration holds NaN or infinity; calibrate again or correct the message"
        )
    if not (np.asarray(focal, dtype=np.float64) > 0).all():
        raise CalibrationError(f"{name}: focal length {focal!r} is not positive; is the camera calibrated?")


def check_size(width: int, height: int) -> None:
    """Refuse a target size that no image can have."""
    if width < 1 or height < 1:
        raise CalibrationError(
            f"image size {width} x {height} is not positive; give the size of the resized image"
        )


def resized(camera: Matrix, width: int, height: int) -> Matrix:
    """A camera with a focal length and principal point in pixels, after its image has been resized."""
    check_size(width, height)
    sx, sy = width / camera.width, height / camera.height
    return replace(
        camera,
        width=width,
        height=height,
        fx=camera.fx * sx,
        fy=camera.fy * sy,
        cx=(camera.cx + 0.5) * sx - 0.5,
        cy=(camera.cy + 0.5) * sy - 0.5,
    )


def cut_out(camera: Matrix, left: int, top: int, width: int, height: int) -> Matrix:
    """A camera with a principal point in pixels, after its image has been cropped (or padded)."""
    check_size(width, height)
    return replace(camera, width=width, height=height, cx=camera.cx - left, cy=camera.cy - top)


def inside_image(pixels: NDArray, width: int, height: int) -> NDArray:
    """[..., 2] -> [...] bool: the rounded (half to even) pixel lies in the image."""
    u, v = np.rint(pixels[..., 0]), np.rint(pixels[..., 1])
    return (u >= 0) & (u < width) & (v >= 0) & (v < height)


def as_points(points: ArrayLike) -> tuple[NDArray, NDArray]:
    """Points [..., 3] as float64 scaled to a largest coordinate of 1 (projection only depends on the direction, and
    neither tiny nor huge points may overflow), non-finite ones as the origin; and [...] bool: finite."""
    xyz = np.asarray(points, dtype=np.float64)
    finite = np.asarray(np.isfinite(xyz).all(axis=-1))
    xyz = np.where(finite[..., None], xyz, 0.0)
    largest = np.abs(xyz).max(axis=-1, keepdims=True)
    return np.divide(xyz, largest, out=np.zeros_like(xyz), where=largest > 0), finite


def normalised(vectors: NDArray) -> NDArray:
    """[..., 3] scaled to unit length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
