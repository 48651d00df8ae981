# SPDX-License-Identifier: Apache-2.0
"""A rig: named cameras and where they sit relative to the LiDAR."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ..errors import CalibrationError, ConfigError
from ..resources import config_path
from .base import Camera
from .convert import camera_from_dict


@dataclass(frozen=True, eq=False)
class View:
    """One camera of a rig.

    Attributes:
        camera_to_lidar: [4, 4] float64; maps camera coordinates (x right, y down, z forward) to LiDAR
            coordinates (x forward, y left, z up).

    Raises:
        CalibrationError: if the pose holds NaN or is not a rotation and translation.
    """

    name: str
    camera: Camera
    camera_to_lidar: NDArray

    def __post_init__(self) -> None:
        pose = np.array(self.camera_to_lidar, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise CalibrationError(
                f"camera {self.name!r}: its pose is not a finite 4 x 4 matrix; correct the extrinsics"
            )
        rotation = pose[:3, :3]
        # Published poses are float32: 1e-3 passes those and catches transposes, scales and mirrors.
        proper = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
        if not proper or not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
            raise CalibrationError(
                f"camera {self.name!r}: its pose is not a rotation and translation; correct the extrinsics"
            )
        pose.setflags(write=False)
        object.__setattr__(self, "camera_to_lidar", pose)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def lidar_to_camera(self) -> NDArray:
        """[4, 4] inverse of ``camera_to_lidar``."""
        inverse = np.eye(4)
        inverse[:3, :3] = self.camera_to_lidar[:3, :3].T
        inverse[:3, 3] = -inverse[:3, :3] @ self.camera_to_lidar[:3, 3]
        return inverse

    def project(self, points: NDArray) -> tuple[NDArray, NDArray]:
        """Points [..., 3] in the LiDAR frame -> pixels [..., 2], visible [...]."""
        m = self.lidar_to_camera
        return self.camera.project(np.asarray(points, dtype=np.float64) @ m[:3, :3].T + m[:3, 3])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "name": self.name,
            "camera": self.camera.to_dict(),
            "camera_to_lidar": self.camera_to_lidar.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "View":
        """Inverse of :meth:`to_dict`. Raises CalibrationError."""
        name = data.get("name", "?")
        if missing := {"name", "camera", "camera_to_lidar"} - data.keys():
            raise CalibrationError(f"camera {name!r}: rig entry lacks {', '.join(sorted(missing))}")
        try:
            pose = np.array(data["camera_to_lidar"], dtype=np.float64)
        except (TypeError, ValueError) as e:
            raise CalibrationError(f"camera {name!r}: its pose is not a 4 x 4 matrix of numbers: {e}") from e
        return cls(name, camera_from_dict(data["camera"], f"camera {name!r}"), pose)


@dataclass(frozen=True)
class Rig:
    """The cameras of a vehicle, in a fixed order.

    Raises:
        CalibrationError: if there is no camera, or two have the same name.
    """

    views: tuple[View, ...]
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if not names or len(set(names)) != len(names):
            raise CalibrationError(
                f"rig {self.name!r}: needs at least one camera and distinct names, has {names}"
            )
        object.__setattr__(self, "views", tuple(self.views))

    def __iter__(self) -> Iterator[View]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, name: str) -> View:
        for view in self.views:
            if view.name == name:
                return view
        raise ConfigError(
            f"rig {self.name!r} has no camera {name!r}; it has {', '.join(v.name for v in self.views)}"
        )

    def scaled(self, width: int, height: int) -> "Rig":
        """The same rig after all images have been resized."""
        views = tuple(View(v.name, v.camera.scaled(width, height), v.camera_to_lidar) for v in self.views)
        return Rig(views, self.name, self.source)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as in ``config/rigs/*.yaml``."""
        return {"name": self.name, "source": self.source, "views": [view.to_dict() for view in self.views]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Rig":
        """Inverse of :meth:`to_dict`. Raises CalibrationError or ConfigError."""
        if not isinstance(data, Mapping) or not isinstance(data.get("views"), list):
            raise ConfigError("a rig needs a list of views; see config/rigs/published.yaml for the keys")
        return cls(
            tuple(View.from_dict(v) for v in data["views"]), data.get("name", ""), data.get("source", "")
        )

    def save(self, path: str | Path) -> None:
        """Write YAML that :func:`load_rig` reads back to an equal rig."""
        Path(path).write_text(
            yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
        )


def load_rig(name_or_path: str | Path) -> Rig:
    """A ready rig by name (``published`` -> ``config/rigs/published.yaml``), or one's own from a YAML file.

    Raises:
        ConfigError: if there is no such rig or the file is not one. CalibrationError: for implausible values.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = config_path("rigs") / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"rig {str(name_or_path)!r} is not known; give a .yaml file or one of "
                f"{', '.join(list_rigs())}"
            )
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"rig file {path} cannot be read: {' '.join(str(e).split())}") from e
    return Rig.from_dict(data)


def list_rigs() -> list[str]:
    """Names of the ready rigs."""
    return sorted(p.stem for p in config_path("rigs").glob("*.yaml"))
