# SPDX-License-Identifier: Apache-2.0
"""What ``from_bag`` must be told of a bag: keys of ``config/from_bag.yaml``, explained there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lidargen_ros.errors import ConfigError
from training.config import build, merge, parse_overrides, read_yaml

from .convert import ConvertOptions


@dataclass(frozen=True)
class LidarConfig:
    topic: str = ""
    sensor: str = ""
    yaw_deg: float = 0.0
    rows: Literal["auto", "ring", "elevation"] = "auto"
    deskewed: Literal["no", "start", "stamp", "end"] = "no"
    stamp_at: Literal["start", "end"] = "start"
    spin_time_s: float = 0.0
    time_unit_s: float | None = None
    intensity_scale: float = 0.0


@dataclass(frozen=True)
class CameraConfig:
    topic: str
    info_topic: str = ""
    frame_id: str = ""
    axes: Literal["optical", "flu"] = "optical"
    rectified: bool = False
    camera_to_lidar: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.camera_to_lidar) not in (0, 16):
            raise ConfigError(
                f"camera_to_lidar of {self.topic}: {len(self.camera_to_lidar)} numbers, expected 16"
            )

    @property
    def info(self) -> str:
        """Topic of the CameraInfo: given, else beside the image (image_raw and compressed are dropped)."""
        if self.info_topic:
            return self.info_topic
        base = self.topic.removesuffix("/compressed")
        return f"{base.rpartition('/')[0]}/camera_info"


@dataclass(frozen=True)
class MotionConfig:
    topic: str = ""
    fixed_frame: str = ""
    child_frame: str = ""
    stationary: bool = False


@dataclass(frozen=True)
class BagConfig:
    cameras: dict[str, CameraConfig]
    lidar: LidarConfig = field(default_factory=LidarConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    clips: ConvertOptions = field(default_factory=ConvertOptions)
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigError("cameras: give at least one; see config/from_bag.yaml")
        if not 0 <= self.val_fraction <= 1:
            raise ConfigError(f"val_fraction is {self.val_fraction}, expected 0 to 1")


def load_bag_config(path: Path, overrides: Sequence[str] = ()) -> BagConfig:
    """Configuration from YAML, with ``key=value`` overrides.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a value of the wrong type.
    """
    if not path.is_file():
        raise ConfigError(f"configuration {path} does not exist; start from config/from_bag.yaml")
    values = merge(read_yaml(path), parse_overrides(overrides))
    cameras = values.pop("cameras", {})
    if not isinstance(cameras, dict):
        raise ConfigError(f"{path}: cameras must be names with their keys; see config/from_bag.yaml")
    built = {name: build(CameraConfig, given or {}, f"cameras.{name}.") for name, given in cameras.items()}
    return build(BagConfig, {**values, "cameras": built})
