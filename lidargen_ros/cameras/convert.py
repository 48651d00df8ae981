# SPDX-License-Identifier: Apache-2.0
"""Cameras from plain dictionaries (YAML, bundles) and from ``CameraInfo`` messages."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CalibrationError
from .base import Camera
from .fisheye import FisheyeCamera
from .ftheta import FThetaCamera
from .pinhole import PinholeCamera

_MODELS: dict[str, Any] = {"ftheta": FThetaCamera, "pinhole": PinholeCamera, "fisheye": FisheyeCamera}
_FISHEYE_NAMES = ("equidistant", "fisheye", "kannala_brandt4")
_PINHOLE_LENGTHS = {"": (0,), "plumb_bob": (0, 4, 5), "rational_polynomial": (0, 4, 5, 8, 12), "none": (0,)}


def camera_from_dict(data: Mapping[str, Any], name: str = "camera") -> Camera:
    """Inverse of ``Camera.to_dict``; ``name`` appears in error messages.

    Raises:
        CalibrationError: for an unknown model, a missing or implausible value.
    """
    model = data.get("model")
    if model not in _MODELS:
        raise CalibrationError(
            f"{name}: camera model {model!r} is not known; use one of {', '.join(_MODELS)}"
        )
    try:
        return _MODELS[model].from_dict(dict(data), name)
    except KeyError as e:
        raise CalibrationError(f"{name}: {model} calibration lacks {e}; see docs/conventions.md") from e
    except (TypeError, ValueError) as e:
        raise CalibrationError(
            f"{name}: {model} calibration holds something that is not a number: {e}"
        ) from e


def camera_from_info(info: Any, name: str = "camera", rectified: bool = False) -> Camera:
    """Camera of a ``sensor_msgs/CameraInfo`` (ROS 1 or 2, or anything with its attributes).

    Binning and region of interest are applied, so that pixels are those of the published image (REP-104).

    Args:
        rectified: the images are rectified: intrinsics from P, no distortion.

    Raises:
        CalibrationError: uncalibrated (K of zeros), unknown distortion model, skew, non-finite values.
    """
    k = np.asarray(_either(info, "k", "K"), dtype=np.float64).ravel()
    d = tuple(float(x) for x in np.asarray(_either(info, "d", "D"), dtype=np.float64).ravel())
    model = str(info.distortion_model).strip()
    matrix = (
        np.asarray(_either(info, "p", "P"), dtype=np.float64).reshape(3, 4) if rectified else k.reshape(3, 3)
    )
    if rectified:
        model, d = "", ()
    if np.isfinite(matrix).all() and abs(matrix[0, 1]) > 1e-9 * max(abs(matrix[0, 0]), 1):
        raise CalibrationError(
            f"{name}: CameraInfo has skew {matrix[0, 1]}, which is not supported; rectify the images"
        )
    size = int(info.width), int(info.height)
    fx, fy, cx, cy = (float(matrix[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera: Camera
    if model in _FISHEYE_NAMES:
        camera = FisheyeCamera(*size, fx, fy, cx, cy, d or (0.0,) * 4, name)
    elif model in _PINHOLE_LENGTHS:
        if len(d) not in _PINHOLE_LENGTHS[model] and any(d):
            raise CalibrationError(
                f"{name}: distortion model {model!r} with {len(d)} coefficients; "
                f"expected {_PINHOLE_LENGTHS[model]}"
            )
        camera = PinholeCamera(*size, fx, fy, cx, cy, d if any(d) else (), name)
    else:
        known = ", ".join(filter(None, (*_PINHOLE_LENGTHS, "equidistant")))
        raise CalibrationError(f"{name}: distortion model {model!r} is not known; use one of {known}")
    return _read_out(camera, info)


def _read_out(camera: Camera, info: Any) -> Camera:
    roi = getattr(info, "roi", None)
    if roi is not None and roi.width > 0 and roi.height > 0:
        camera = camera.cropped(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
    bins = max(int(getattr(info, "binning_x", 0)), 1), max(int(getattr(info, "binning_y", 0)), 1)
    if bins != (1, 1):
        camera = camera.scaled(camera.width // bins[0], camera.height // bins[1])
    return camera


def _either(info: Any, lower: str, upper: str) -> Any:
    """ROS 2 names the matrices in lower case, ROS 1 in upper case."""
    return getattr(info, lower) if hasattr(info, lower) else getattr(info, upper)
