# SPDX-License-Identifier: Apache-2.0
"""A LiDAR for vehicles that only have cameras."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["LidarGenerator", "Sweep", "__version__"]


def __getattr__(name: str) -> Any:
    # Heavy imports wait until somebody asks, so that `lidargen --help` stays fast.
    if name == "LidarGenerator":
        from .generator import LidarGenerator

        return LidarGenerator
    if name == "Sweep":
        from .sweep import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
