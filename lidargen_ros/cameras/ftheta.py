# SPDX-License-Identifier: Apache-2.0
"""The f-theta camera: pixel radius and angle off the optical axis are polynomials of one another.

The calibration gives one of the two polynomials (as in the published data set); the other is fitted to it as
the published model does, by least squares over 500 samples up to the farthest image corner.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError
from .base import as_points, check_calibration, check_size, inside_image

_SAMPLES = 500
_ANGLE_STEP = np.pi / 2000


@dataclass(frozen=True, eq=False)
class FThetaCamera:
    """f-theta camera.

    Attributes:
        width, height: size of the image that pixels refer to.
        vector: calibration ``[cx, cy, width, height, k0..kn, is_backward]`` (10 or 11 numbers) or the form of
            14, whose last three are c, d, e of [[c, d], [e, 1]] (sensor offset -> pixel offset).
        scale, shift: pixel = scale * calibration pixel + shift, per axis; the trace of resizing and cropping.
    """

    width: int
    height: int
    vector: tuple[float, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    name: str = "f-theta camera"

    @classmethod
    def from_vector(cls, vector: ArrayLike, name: str = "f-theta camera") -> "FThetaCamera":
        """From 10, 11 or 14 numbers (see the class).

        Raises:
            CalibrationError: for another length, non-finite or implausible values; names the camera.
        """
        numbers = np.asarray(vector, dtype=np.float64).ravel()
        if len(numbers) not in (10, 11, 14):
            raise CalibrationError(
                f"{name}: an f-theta vector has 10, 11 or 14 numbers, this one {len(numbers)}"
            )
        check_calibration(name, numbers[2], numbers[3], numbers)
        return cls(int(numbers[2]), int(numbers[3]), tuple(numbers.tolist()), name=name)

    def __post_init__(self) -> None:
        check_calibration(
            self.name, self.width, self.height, [*self.vector, *self.scale, *self.shift], self.scale
        )
        check_calibration(self.name, *self.calibration_size, self._given, self._given[1])
        if abs(np.linalg.det(self._linear)) < 1e-6:
            raise CalibrationError(f"{self.name}: the linear terms c, d, e are singular; correct the vector")
        radii = np.linspace(0, self._corner_radius, _SAMPLES)
        falls = (np.diff(_evaluate(self.backward, radii)) <= 0).any()
        if falls or not 0 < self.max_angle < np.pi or self._slope_at_limit <= 0:
            raise CalibrationError(
                f"{self.name}: the f-theta polynomial does not rise up to the image corners"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FThetaCamera) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.width, self.height, self.vector, self.scale, self.shift))

    @property
    def calibration_size(self) -> tuple[int, int]:
        """(width, height) of the image that the vector refers to."""
        return int(self.vector[2]), int(self.vector[3])

    @cached_property
    def centre(self) -> NDArray:
        """[2] principal point in calibration pixels, rounded to float32 as published."""
        return _rounded(self.vector[:2])

    @property
    def is_backward(self) -> bool:
        """Whether the calibration gives radius -> angle (else angle -> radius)."""
        return self.vector[10 if len(self.vector) == 14 else -1] > 0

    @cached_property
    def _given(self) -> NDArray:
        k = np.array(self.vector[4:10] if len(self.vector) == 14 else self.vector[4:-1])
        k[0] = 0.0
        return _rounded(k)

    @cached_property
    def _linear(self) -> NDArray:
        c, d, e = self.vector[11:] if len(self.vector) == 14 else (1.0, 0.0, 0.0)
        return np.array([[c, d], [e, 1.0]])

    @cached_property
    def _fitted(self) -> NDArray:
        width, height = self.calibration_size
        cx, cy = self.centre
        reach = np.hypot(cx if cx > width / 2 else width - cx, cy if cy > height / 2 else height - cy)
        if self.is_backward:
            samples = np.linspace(0, reach, _SAMPLES)
        else:
            angles = np.arange(1, 2001) * _ANGLE_STEP
            falls = _evaluate(_derivative(self._given), angles) <= 0
            beyond = _evaluate(self._given, angles) > reach
            # Number of steps kept: the one that first passes the corner is, the one that first falls is not.
            before_fall = np.argmax(falls) if falls.any() else len(angles)
            up_to_corner = np.argmax(beyond) + 1 if beyond.any() else len(angles)
            samples = np.linspace(0, min(before_fall, up_to_corner) * _ANGLE_STEP, _SAMPLES)
        return _fit_inverse(self._given, samples)

    @property
    def backward(self) -> NDArray:
        """Polynomial pixel radius -> angle, ascending, constant 0."""
        return self._given if self.is_backward else self._fitted

    @property
    def forward(self) -> NDArray:
        """Polynomial angle -> pixel radius, ascending, constant 0."""
        return self._fitted if self.is_backward else self._given

    @cached_property
    def max_angle(self) -> float:
        """Largest angle off the axis of the four corner pixels, radians: the valid field of view."""
        return float(_evaluate(self.backward, self._corner_radius))

    @cached_property
    def _corner_radius(self) -> float:
        width, height = self.calibration_size
        corners = np.array([(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)])
        return float(np.linalg.norm(self._offsets(corners), axis=-1).max())

    @cached_property
    def _slope_at_limit(self) -> float:
        return float(_evaluate(_derivative(self.forward), self.max_angle))

    def fields_of_view(self) -> tuple[float, float]:
        """(horizontal, vertical) field of view of the calibrated image through its centre, radians."""
        width, height = self.calibration_size
        cx, cy = self.centre
        ends = np.array([(0, cy), (width - 1, cy), (cx, 0), (cx, height - 1)])
        z = self._calibration_rays(ends)[:, 2]
        left, right, up, down = np.arccos(np.clip(z, -1, 1))
        return float(left + right), float(up + down)

    def project(self, points: NDArray, reference: bool = False) -> tuple[NDArray, NDArray]:
        """See :class:`.base.Camera`. Beyond the valid field of view the radius goes on along its tangent.

        ``reference`` repeats the float32 angle of the published model, wrong within 3.5e-4 rad of the axis.
        """
        xyz, finite = as_points(points)
        across = np.hypot(xyz[..., 0], xyz[..., 1])
        angle = _published_angle(points) if reference else np.arctan2(across, xyz[..., 2])
        limit = self.max_angle
        inner = _evaluate(self.forward, np.minimum(angle, limit))
        radius = inner + np.maximum(angle - limit, 0.0) * self._slope_at_limit
        ratio = np.divide(radius, across, out=np.zeros_like(radius), where=across > 0)
        offset = (ratio[..., None] * xyz[..., :2]) @ self._linear.T
        pixels = (self.centre + offset) * self.scale + self.shift
        within = angle <= limit * (1 + 1e-9)  # the farthest corner itself is
        visible = finite & (xyz[..., 2] > 0) & within & inside_image(pixels, self.width, self.height)
        return pixels, visible

    def rays(self, pixels: NDArray) -> NDArray:
        """See :class:`.base.Camera`."""
        return self._calibration_rays((np.asarray(pixels, dtype=np.float64) - self.shift) / self.scale)

    def _calibration_rays(self, pixels: NDArray) -> NDArray:
        offset = self._offsets(pixels)
        radius = np.hypot(offset[..., 0], offset[..., 1])
        angle = _evaluate(self.backward, radius)
        unit = np.divide(offset, radius[..., None], out=np.zeros_like(offset), where=radius[..., None] > 0)
        return np.concatenate([np.sin(angle)[..., None] * unit, np.cos(angle)[..., None]], axis=-1)

    def _offsets(self, pixels: NDArray) -> NDArray:
        return (pixels - self.centre) @ np.linalg.inv(self._linear).T

    def scaled(self, width: int, height: int, reference: bool = False) -> "FThetaCamera":
        """See :class:`.base.Camera`. ``reference``: without the half-pixel shift, as the published model."""
        check_size(width, height)
        s = np.array([width / self.width, height / self.height])
        half = 0.0 if reference else 0.5
        return replace(
            self,
            width=width,
            height=height,
            scale=_pair(s * self.scale),
            shift=_pair((np.array(self.shift) + half) * s - half),
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> "FThetaCamera":
        """See :class:`.base.Camera`."""
        check_size(width, height)
        return replace(self, width=width, height=height, shift=(self.shift[0] - left, self.shift[1] - top))

    def to_dict(self) -> dict[str, Any]:
        """See :class:`.base.Camera`."""
        data: dict[str, Any] = {
            "model": "ftheta",
            "width": self.width,
            "height": self.height,
            "vector": list(self.vector),
        }
        if self.scale != (1.0, 1.0) or self.shift != (0.0, 0.0):
            data |= {"scale": list(self.scale), "shift": list(self.shift)}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], name: str = "f-theta camera") -> "FThetaCamera":
        """Inverse of :meth:`to_dict`; ``width`` and ``height`` may be absent."""
        camera = cls.from_vector(data["vector"], name)
        return replace(
            camera,
            width=int(data.get("width", camera.width)),
            height=int(data.get("height", camera.height)),
            scale=_pair(data.get("scale", (1, 1))),
            shift=_pair(data.get("shift", (0, 0))),
        )


def _pair(numbers: Any) -> tuple[float, float]:
    x, y = numbers
    return float(x), float(y)


def _evaluate(k: NDArray, x: Any) -> Any:
    return np.polynomial.polynomial.polyval(x, k)


def _derivative(k: NDArray) -> NDArray:
    return Polynomial(k).deriv().coef


def _fit_inverse(k: NDArray, samples: NDArray) -> NDArray:
    """Polynomial of the degree of ``k``, without constant, with inverse(k(samples)) ~ samples."""
    x = _evaluate(k, samples)
    unit = x.max()
    powers = np.arange(1, len(k))
    solution = np.linalg.lstsq((x / unit)[:, None] ** powers, samples, rcond=None)[0] / unit**powers
    return _rounded([0.0, *solution])


def _rounded(numbers: ArrayLike) -> NDArray:
    """Through float32, as published."""
    return np.asarray(numbers, dtype=np.float32).astype(np.float64)


def _published_angle(points: ArrayLike) -> NDArray:
    p = np.nan_to_num(np.asarray(points, dtype=np.float32))
    cosine = p[..., 2] / np.maximum(np.linalg.norm(p, axis=-1), np.finfo(np.float32).tiny)
    exact = np.arccos(np.clip(cosine, -1, 1))
    return np.where(1 - cosine < np.finfo(np.float32).eps, np.hypot(p[..., 0], p[..., 1]), exact).astype(
        np.float64
    )
