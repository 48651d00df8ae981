# SPDX-License-Identifier: Apache-2.0
"""The rig in use: from the bundle, from a file, or with intrinsics from CameraInfo and poses from TF. No ROS in here."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cameras import Rig, View, camera_from_info, load_rig
from ..errors import CalibrationError, ConfigError
from .messages import stamp_ns
from .parameters import Settings

FAR_M = 20.0
"""A camera farther from the LiDAR than any vehicle is long is taken for a mistake in the extrinsics."""
_SAME_POSE = 1e-4  # metres and radians: less is noise of a transform that is broadcast again and again


def chosen_rig(own: Rig, settings: Settings) -> Rig:
    """The rig that the settings ask for, its views in the order of ``settings.cameras``.

    Views are found by name where the names agree, by position otherwise.

    Args:
        own: the bundle's rig.

    Raises:
        ConfigError: no such rig, or another number of views than cameras. CalibrationError: implausible values.
    """
    rig = load_rig(settings.rig) if settings.rig else own
    names = [view.name for view in rig.views]
    if len(names) != len(settings.cameras):
        raise ConfigError(
            f"rig {settings.rig or 'of the bundle'!r} has {len(names)} views ({', '.join(names)}), parameter cameras "
            f"names {len(settings.cameras)}; make them agree"
        )
    if set(names) == set(settings.cameras):
        return Rig(tuple(rig[name] for name in settings.cameras), rig.name, rig.source)
    return rig


def doubts(rig: Rig) -> list[str]:
    """What is possible in a rig, but hardly meant: each a sentence that names the camera."""
    found = []
    for i, view in enumerate(rig.views):
        camera, where = view.camera, view.camera_to_lidar[:3, 3]
        cx, cy = getattr(camera, "cx", 0.0), getattr(camera, "cy", 0.0)
        if not (0 <= cx < camera.width and 0 <= cy < camera.height):
            found.append(
                f"{view.name}: principal point ({cx:.0f}, {cy:.0f}) lies outside of the "
                f"{camera.width} x {camera.height} image"
            )
        if np.linalg.norm(where) > FAR_M:
            found.append(f"{view.name}: {np.linalg.norm(where):.0f} m from the LiDAR; poses are in metres")
        twins = [o.name for o in rig.views[:i] if np.allclose(o.camera_to_lidar, view.camera_to_lidar)]
        if twins:
            found.append(f"{view.name}: the same pose as {twins[0]}")
    return found


class Poses(Protocol):
    """Where TF is read."""

    def look_up(self, target: str, source: str) -> NDArray:
        """``[4, 4]``, coordinates of frame ``source`` to frame ``target``. Raises CalibrationError naming both."""
        ...


class LiveCalibration:
    """Follows the CameraInfo of every camera, and its pose in TF where ``poses`` is given.

    Args:
        rig: gives the names, and what does not come from the messages.
    """

    def __init__(self, rig: Rig, settings: Settings, poses: Poses | None = None) -> None:
        self._names, self._rectified = settings.cameras, settings.rectified
        self._poses = poses
        self._rig = rig
        self._cameras: dict[str, Any] = {}
        self._frames: dict[str, str] = {}  # camera -> frame of its CameraInfo
        self._found: dict[str, NDArray] = {}  # camera -> pose in TF
        self._faults: dict[str, str] = {}  # camera -> why TF does not tell its pose
        self.stamps_ns: dict[str, int] = {}
        """Stamp of each camera's newest usable CameraInfo."""

    @property
    def missing(self) -> list[str]:
        """What is still waited for, each in a few words."""
        infos = [f"no usable {name}/camera_info yet" for name in self._names if name not in self._cameras]
        if self._poses is None:
            return infos
        return infos + [self._faults[n] for n in self._names if n in self._faults and n not in self._found]

    def update(self, camera: str, topic: str, info: Any, frame_id: str) -> Rig | None:
        """The new rig if this message changed it and everything is known, else None.

        Raises:
            CalibrationError: the message cannot be used (NaN, zeros, unknown model); names the topic. What was
                known before stays in use.
        """
        new = camera_from_info(info, topic, rectified=self._rectified)
        self.stamps_ns[camera] = stamp_ns(info.header)
        same = self._cameras.get(camera) == new and self._frames.get(camera) == info.header.frame_id
        self._cameras[camera], self._frames[camera] = new, info.header.frame_id
        moved = self._look_up(frame_id) if self._poses and not (same and camera in self._found) else False
        return None if same and not moved else self._combined()

    def look_up(self, frame_id: str) -> Rig | None:
        """Read TF anew; the new rig if a pose changed and everything is known, else None."""
        return self._combined() if self._poses and self._look_up(frame_id) else None

    def rebase(self, rig: Rig) -> Rig | None:
        """Take another rig for what does not come from the messages; the new rig if everything is known."""
        self._rig = rig
        return self._combined()

    def _look_up(self, frame_id: str) -> bool:
        """Whether a pose changed."""
        assert self._poses is not None
        changed = False
        for camera, source in self._frames.items():
            try:
                pose = self._poses.look_up(frame_id, source)
            except CalibrationError as e:
                self._faults[camera] = str(e)
                continue
            self._faults.pop(camera, None)
            if camera not in self._found or not np.allclose(pose, self._found[camera], atol=_SAME_POSE):
                self._found[camera], changed = pose, True
        return changed

    def _combined(self) -> Rig | None:
        if self.missing or len(self._cameras) < len(self._names):
            return None
        views = tuple(
            View(v.name, self._cameras[n], self._found.get(n, v.camera_to_lidar))
            for n, v in zip(self._names, self._rig.views, strict=True)
        )
        return Rig(views, self._rig.name, "CameraInfo and TF" if self._poses else "CameraInfo")
