# SPDX-License-Identifier: Apache-2.0
"""Calibrated cameras and rigs of them."""

from .base import Camera
from .convert import camera_from_dict, camera_from_info
from .fisheye import FisheyeCamera
from .ftheta import FThetaCamera
from .pinhole import PinholeCamera
from .rig import Rig, View, list_rigs, load_rig

__all__ = [
    "Camera",
    "FThetaCamera",
    "FisheyeCamera",
    "PinholeCamera",
    "Rig",
    "View",
    "camera_from_dict",
    "camera_from_info",
    "list_rigs",
    "load_rig",
]
