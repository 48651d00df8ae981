# SPDX-License-Identifier: Apache-2.0
"""Poses from TF through tf2_ros, which only a ROS distribution has (its messages are not among the PyPI wheels)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from ..errors import CalibrationError, ConfigError
from . import compat


class Transforms:
    """Listens to /tf and /tf_static on the node's executor.

    Raises:
        ConfigError: tf2_ros is not installed.
    """

    def __init__(self, node: Any) -> None:
        module = compat.optional("tf2_ros")
        if module is None:
            raise ConfigError(
                "calibration is tf, but tf2_ros is not installed; install ros-DISTRO-tf2-ros-py, or take the poses from "
                "a rig file with calibration: camera_info"
            )
        self._missing = module.TransformException
        # Without the node a buffer has a clock of its own and does not notice that a bag loops.
        self._buffer = module.Buffer(node=node)
        self._listener = module.TransformListener(self._buffer, node)

    def look_up(self, target: str, source: str) -> NDArray:
        """``[4, 4]``, coordinates of frame ``source`` to frame ``target``, the latest there is; never waits.

        Raises:
            CalibrationError: no such transform yet, or not a rotation; names both frames.
        """
        if not source:
            raise CalibrationError(
                "a CameraInfo has no frame_id: TF cannot tell the camera's pose; set it in the driver"
            )
        try:
            found = self._buffer.lookup_transform(target, source, Time()).transform
        except self._missing as e:
            raise CalibrationError(f"TF has no transform from {source} to {target}: {e}") from e
        q, t = found.rotation, found.translation
        pose = np.eye(4)
        try:
            pose[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
        except ValueError as e:
            raise CalibrationError(f"TF from {source} to {target} is not a rotation: {e}") from e
        pose[:3, 3] = t.x, t.y, t.z
        return pose
