# SPDX-License-Identifier: Apache-2.0
"""The pinhole camera with ``sensor_msgs/CameraInfo`` distortion: none, plumb_bob, rational_polynomial.

Coefficients in OpenCV's order k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]] (OpenCV calibration model, REP-104).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from ..errors import CalibrationError
from .base import as_points, check_calibration, cut_out, inside_image, normalised, resized

_LENGTHS = (0, 4, 5, 8, 12)
_NEWTON_STEPS = 20
_FAR = 1e6  # tangent of an angle as good as 90 degrees


@dataclass(frozen=True)
class PinholeCamera:
    """Pinhole camera; focal lengths and principal point in pixels; 0, 4, 5, 8 or 12 distortion numbers.

    Raises:
        CalibrationError: for implausible values; names the camera.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    name: str = field(default="pinhole camera", compare=False)

    def __post_init__(self) -> None:
        if len(self.distortion) not in _LENGTHS:
            raise CalibrationError(
                f"{self.name}: {len(self.distortion)} distortion numbers; expected one of {_LENGTHS}"
            )
        numbers = [self.fx, self.fy, self.cx, self.cy, *self.distortion]
        check_calibration(self.name, self.width, self.height, numbers, (self.fx, self.fy))

    @cached_property
    def _d(self) -> NDArray:
        return np.pad(np.asarray(self.distortion, dtype=np.float64), (0, 12 - len(self.distortion)))

    @cached_property
    def max_radius(self) -> float:
        """Largest undistorted radius (tan of the angle) up to which the distorted one rises; may be inf."""
        k1, k2, _, _, k3, k4, k5, k6 = self._d[:8]
        r = Polynomial([0, 1])
        top, bottom = Polynomial([1, 0, k1, 0, k2, 0, k3]), Polynomial([1, 0, k4, 0, k5, 0, k6])
        turns = [(r * top).deriv() * bottom - r * top * bottom.deriv(), bottom]
        roots = np.concatenate([p.trim(1e-300).roots() for p in turns])
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 1e-9)]
        return float(real.min()) if real.size else np.inf

    def _distort(self, xy: NDArray) -> tuple[NDArray, NDArray]:
        """Normalised coordinates [..., 2] -> distorted [..., 2] and the Jacobian [..., 2, 2]."""
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = self._d
        x, y = xy[..., 0], xy[..., 1]
        q = x * x + y * y
        top, bottom = 1 + q * (k1 + q * (k2 + q * k3)), 1 + q * (k4 + q * (k5 + q * k6))
        g = top / bottom
        dg = (k1 + q * (2 * k2 + q * 3 * k3) - g * (k4 + q * (2 * k5 + q * 3 * k6))) / bottom
        prism_x, prism_y = q * (s1 + q * s2), q * (s3 + q * s4)
        out = np.stack(
            [
                x * g + 2 * p1 * x * y + p2 * (q + 2 * x * x) + prism_x,
                y * g + 2 * p2 * x * y + p1 * (q + 2 * y * y) + prism_y,
            ],
            axis=-1,
        )
        cross = 2 * x * y * dg + 2 * p1 * x + 2 * p2 * y
        tilt_x, tilt_y = s1 + 2 * q * s2, s3 + 2 * q * s4
        jacobian = np.stack(
            [
                g + 2 * x * x * dg + 2 * p1 * y + 6 * p2 * x + 2 * x * tilt_x,
                cross + 2 * y * tilt_x,
                cross + 2 * x * tilt_y,
                g + 2 * y * y * dg + 2 * p2 * x + 6 * p1 * y + 2 * y * tilt_y,
            ],
            axis=-1,
        ).reshape(*xy.shape, 2)
        return out, jacobian

    def project(self, points: NDArray) -> tuple[NDArray, NDArray]:
        """See :class:`.base.Camera`."""
        xyz, finite = as_points(points)
        z = xyz[..., 2]
        front = finite & (z > 0)
        xy = np.where(front[..., None], xyz[..., :2], 0.0) / np.maximum(z, 1 / _FAR)[..., None]
        # Beyond the limit the lens model folds back: such points are held at the limit and are not visible.
        held = self._held(xy)
        valid = front & (held == xy).all(axis=-1)
        pixels = self._distort(held)[0] * (self.fx, self.fy) + (self.cx, self.cy)
        return pixels, valid & inside_image(pixels, self.width, self.height)

    def rays(self, pixels: NDArray) -> NDArray:
        """See :class:`.base.Camera`. The distortion is inverted by Newton's method."""
        target = (np.asarray(pixels, dtype=np.float64) - (self.cx, self.cy)) / (self.fx, self.fy)
        xy = target.copy()
        if self._d.any():
            xy = self._held(xy)
            for _ in range(_NEWTON_STEPS):
                value, jacobian = self._distort(xy)
                (a, b), (c, d) = np.moveaxis(jacobian, (-2, -1), (0, 1))
                determinant = a * d - b * c
                safe = np.where(np.abs(determinant) > 1e-12, determinant, 1.0)
                ex, ey = np.moveaxis(target - value, -1, 0)
                step = np.stack([d * ex - b * ey, a * ey - c * ex], axis=-1) / safe[..., None]
                xy = self._held(xy + step)
                if np.abs(step).max(initial=0.0) < 1e-14:
                    break
        return normalised(np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1))

    def _held(self, xy: NDArray) -> NDArray:
        """Pulled in to the radius up to which the model is valid."""
        radius = np.hypot(xy[..., 0], xy[..., 1])
        limit = min(self.max_radius, _FAR)
        return np.where((radius > limit)[..., None], xy * (limit / np.maximum(radius, limit))[..., None], xy)

    def scaled(self, width: int, height: int) -> "PinholeCamera":
        """See :class:`.base.Camera`."""
        return resized(self, width, height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "PinholeCamera":
        """See :class:`.base.Camera`."""
        return cut_out(self, left, top, width, height)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`.base.Camera`."""
        intrinsics = {key: getattr(self, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
        return {"model": "pinhole", **intrinsics, "distortion": list(self.distortion)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], name: str = "pinhole camera") -> "PinholeCamera":
        """Inverse of :meth:`to_dict`; ``distortion`` may be absent."""
        size = int(data["width"]), int(data["height"])
        fx, fy, cx, cy = (float(data[key]) for key in ("fx", "fy", "cx", "cy"))
        return cls(*size, fx, fy, cx, cy, tuple(float(x) for x in data.get("distortion", ())), name)
