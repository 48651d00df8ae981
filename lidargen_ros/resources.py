# SPDX-License-Identifier: Apache-2.0
"""Where files that ship beside the code are found: in a checkout, in a pip or in a colcon installation."""

import os
from pathlib import Path

from .errors import ConfigError

_HERE = Path(__file__).resolve().parent


def share_folders() -> list[Path]:
    """Folders that may hold ``config/`` and ``launch/``, the nearest first."""
    prefixes = [
        *_HERE.parents[3:4],
        *(Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p),
    ]
    return [_HERE.parent, *(p / "share" / "lidargen_ros" for p in prefixes)]


def config_path(*parts: str) -> Path:
    """Path of a file or folder below ``config/``.

    Raises:
        ConfigError: if no installed copy holds it; the message lists where it was sought.
    """
    tried = [folder.joinpath("config", *parts) for folder in share_folders()]
    for path in tried:
        if path.exists():
            return path
    wanted = "/".join(("config", *parts))
    raise ConfigError(f"{wanted} not found; looked in {', '.join(map(str, tried))}; reinstall lidargen_ros")
