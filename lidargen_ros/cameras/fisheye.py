# SPDX-License-Identifier: Apache-2.0
"""The fisheye camera of ``sensor_msgs/CameraInfo`` "equidistant" (Kannala-Brandt, ``cv2.fisheye``):
radius = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), times the focal lengths."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from ..errors import CalibrationError
from .base import as_points, check_calibration, cut_out, inside_image, resized

_BISECTIONS, _NEWTON_STEPS = 12, 6


@dataclass(frozen=True)
class FisheyeCamera:
    """Equidistant camera; focal lengths and principal point in pixels, ``distortion`` k1..k4.

    Raises:
        CalibrationError: for implausible values; names the camera.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    name: str = field(default="fisheye camera", compare=False)

    def __post_init__(self) -> None:
        if len(self.distortion) not in (0, 4):
            raise CalibrationError(
                f"{self.name}: {len(self.distortion)} distortion numbers; equidistant has 4"
            )
        numbers = [self.fx, self.fy, self.cx, self.cy, *self.distortion]
        check_calibration(self.name, self.width, self.height, numbers, (self.fx, self.fy))

    @cached_property
    def _radius_of(self) -> Polynomial:
        k1, k2, k3, k4 = self.distortion or (0.0,) * 4
        return Polynomial([0, 1, 0, k1, 0, k2, 0, k3, 0, k4])

    @cached_property
    def max_angle(self) -> float:
        """Largest angle off the axis up to which the radius rises, at most pi, radians."""
        roots = self._radius_of.deriv().trim(1e-300).roots()
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 1e-9)]
        return float(min(real.min(initial=np.pi), np.pi))

    def project(self, points: NDArray) -> tuple[NDArray, NDArray]:
        """See :class:`.base.Camera`."""
        xyz, finite = as_points(points)
        across = np.hypot(xyz[..., 0], xyz[..., 1])
        angle = np.arctan2(across, xyz[..., 2])
        radius = self._radius_of(np.minimum(angle, self.max_angle))
        ratio = np.divide(radius, across, out=np.zeros_like(radius), where=across > 0)
        pixels = ratio[..., None] * xyz[..., :2] * (self.fx, self.fy) + (self.cx, self.cy)
        visible = finite & (xyz[..., 2] > 0) & (angle <= self.max_angle)
        return pixels, visible & inside_image(pixels, self.width, self.height)

    def rays(self, pixels: NDArray) -> NDArray:
        """See :class:`.base.Camera`. Pixels beyond the valid field of view get its rim."""
        offset = (np.asarray(pixels, dtype=np.float64) - (self.cx, self.cy)) / (self.fx, self.fy)
        radius = np.hypot(offset[..., 0], offset[..., 1])
        angle = self._angle_of(radius)
        unit = np.divide(offset, radius[..., None], out=np.zeros_like(offset), where=radius[..., None] > 0)
        return np.concatenate([np.sin(angle)[..., None] * unit, np.cos(angle)[..., None]], axis=-1)

    def _angle_of(self, radius: NDArray) -> NDArray:
        """Invert the rising polynomial: bisection to come near, Newton to finish."""
        low, high = np.zeros_like(radius), np.full_like(radius, self.max_angle)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = self._radius_of(middle) > radius
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        angle, slope = (low + high) / 2, self._radius_of.deriv()
        for _ in range(_NEWTON_STEPS):
            step = (self._radius_of(angle) - radius) / np.maximum(slope(angle), 1e-9)
            angle = np.clip(angle - step, low, high)
        return angle

    def scaled(self, width: int, height: int) -> "FisheyeCamera":
        """See :class:`.base.Camera`."""
        return resized(self, width, height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "FisheyeCamera":
        """See :class:`.base.Camera`."""
        return cut_out(self, left, top, width, height)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`.base.Camera`."""
        intrinsics = {key: getattr(self, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
        return {"model": "fisheye", **intrinsics, "distortion": list(self.distortion)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], name: str = "fisheye camera") -> "FisheyeCamera":
        """Inverse of :meth:`to_dict`; ``distortion`` may be absent."""
        size = int(data["width"]), int(data["height"])
        fx, fy, cx, cy = (float(data[key]) for key in ("fx", "fy", "cx", "cy"))
        return cls(*size, fx, fy, cx, cy, tuple(float(x) for x in data.get("distortion", (0.0,) * 4)), name)
