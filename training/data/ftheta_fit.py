# SPDX-License-Identifier: Apache-2.0
"""Any camera as an f-theta camera, which is all that the clip format can hold.

Where a polynomial in the distance from the principal point describes the camera well enough, only the calibration
changes. Otherwise (wide or tangential distortion, unequal focal lengths) pictures are resampled, so that the
f-theta calibration written beside them is exact.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from lidargen_ros.cameras.base import Camera
from lidargen_ros.cameras.ftheta import FThetaCamera
from lidargen_ros.errors import CalibrationError

MAX_ERROR_PX = 0.25
_GRID = 41  # pixels per side at which cameras are compared


@dataclass(frozen=True)
class Lens:
    """How pictures of ``source`` become pictures of ``target``.

    Attributes:
        target: what is written; pictures have its size.
        error_px: largest disagreement of the two models over the picture, pixels of the target.
        resampled: whether pictures are resampled; then ``error_px`` does not matter.
    """

    source: Camera
    target: FThetaCamera
    error_px: float
    resampled: bool

    @property
    def vector(self) -> NDArray:
        """[11] calibration of the target as stored in clips."""
        return np.array(self.target.vector)

    @property
    def _scaled(self) -> Camera:
        """The source camera at the target's size."""
        size = self.target.width, self.target.height
        return self.source if size == (self.source.width, self.source.height) else self.source.scaled(*size)

    @cached_property
    def _maps(self) -> tuple[NDArray, NDArray]:
        v, u = np.mgrid[: self.target.height, : self.target.width]
        rays = self.target.rays(np.stack([u, v], axis=-1))
        pixels, visible = self._scaled.project(rays)
        pixels = np.where(visible[..., None], pixels, -10.0)
        return cv2.convertMaps(pixels.astype(np.float32), None, cv2.CV_16SC2)

    def picture(self, rgb: NDArray) -> NDArray:
        """uint8 [h, w, 3] of the source camera -> of the target camera.

        Raises:
            CalibrationError: if the picture is not of the calibrated size.
        """
        if rgb.shape[:2] != (self.source.height, self.source.width):
            raise CalibrationError(
                f"picture is {rgb.shape[1]} x {rgb.shape[0]}, its camera {self.source.width} x "
                f"{self.source.height}; is the CameraInfo of this topic?"
            )
        if rgb.shape[:2] != (self.target.height, self.target.width):
            # Scaled before it is resampled: the other way round would alias.
            size = self.target.width, self.target.height
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        if self.resampled:
            return cv2.remap(rgb, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return rgb


def lens_for(camera: Camera, max_width: int = 0, max_error_px: float = MAX_ERROR_PX) -> Lens:
    """Lens that turns pictures of ``camera`` into f-theta pictures with even sides.

    Args:
        max_width: wider pictures are scaled down to this; 0 keeps them.
        max_error_px: allowed before pictures are resampled; 0 always resamples.

    Raises:
        CalibrationError: if no f-theta camera can be fitted, for example beyond 90 degrees off axis.
    """
    width = min(camera.width, max_width or camera.width) // 2 * 2
    height = round(camera.height * width / camera.width) // 2 * 2
    if (width, height) == (camera.width, camera.height):
        if isinstance(camera, FThetaCamera) and camera == FThetaCamera.from_vector(camera.vector):
            return Lens(camera, camera, 0.0, False)
        scaled = camera
    else:
        scaled = camera.scaled(width, height)
    target = _fitted(scaled, width, height)
    error = _disagreement(scaled, target)
    return Lens(camera, target, error, error > max_error_px)


def _pixels(width: int, height: int) -> NDArray:
    u, v = np.meshgrid(np.linspace(0, width - 1, _GRID), np.linspace(0, height - 1, _GRID))
    return np.stack([u, v], axis=-1).reshape(-1, 2)


def _fitted(camera: Camera, width: int, height: int) -> FThetaCamera:
    """Backward polynomial of degree 5 by least squares over the picture."""
    pixels = _pixels(width, height)
    rays = camera.rays(pixels)
    angles = np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2])
    (centre,), _ = camera.project(np.array([[0.0, 0.0, 1.0]]))
    radii = np.hypot(*(pixels - centre).T)
    reach = radii.max()
    powers = np.arange(1, 6)
    k = np.linalg.lstsq((radii / reach)[:, None] ** powers, angles, rcond=None)[0] / reach**powers
    return FThetaCamera.from_vector([*centre, width, height, 0.0, *k, 1.0], getattr(camera, "name", "camera"))


def _disagreement(camera: Camera, target: FThetaCamera) -> float:
    """Largest distance, in pixels, at which the two cameras see the same ray."""
    pixels = _pixels(camera.width, camera.height)
    seen, visible = target.project(camera.rays(pixels))
    inner = (
        visible
        & (pixels > 1).all(axis=1)
        & (pixels < np.array([camera.width, camera.height]) - 2).all(axis=1)
    )
    if not inner.any():
        raise CalibrationError("no f-theta camera fits this calibration; check its distortion coefficients")
    return float(np.hypot(*(seen - pixels)[inner].T).max())
