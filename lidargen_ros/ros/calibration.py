# SPDX-License-Identifier: Apache-2.0
"""The rig in use: from the bundle, from a file, or with intrinsics from CameraInfo. No ROS in here."""

from typing import Any

from ..cameras import Rig, View, camera_from_info, load_rig
from ..errors import ConfigError
from .parameters import Settings


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


class InfoCalibration:
    """Follows the CameraInfo of every camera; poses stay those of ``rig``."""

    def __init__(self, rig: Rig, settings: Settings) -> None:
        self._views = dict(zip(settings.cameras, rig.views, strict=True))
        self._rig, self._rectified = rig, settings.rectified
        self._cameras: dict[str, Any] = {}

    @property
    def missing(self) -> list[str]:
        """Cameras without a usable CameraInfo so far."""
        return [name for name in self._views if name not in self._cameras]

    def update(self, camera: str, topic: str, info: Any) -> Rig | None:
        """The new rig if this message changed it and every camera is known, else None.

        Raises:
            CalibrationError: the message cannot be used (NaN, zeros, unknown model); names the topic. What was
                known before stays in use.
        """
        new = camera_from_info(info, topic, rectified=self._rectified)
        if self._cameras.get(camera) == new:
            return None
        self._cameras[camera] = new
        if self.missing:
            return None
        views = tuple(View(v.name, self._cameras[n], v.camera_to_lidar) for n, v in self._views.items())
        return Rig(views, self._rig.name, "CameraInfo")
