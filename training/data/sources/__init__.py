# SPDX-License-Identifier: Apache-2.0
"""Loaders of recorded drives, one file each, found by file name.

A loader is a module with ``drives(path, **options)``, which yields :class:`training.data.drive.Drive` objects.
"""

import importlib
import pkgutil
from types import ModuleType

from lidargen_ros.errors import ConfigError


def list_sources() -> list[str]:
    """Names of the loaders."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_source(name: str) -> ModuleType:
    """Loader by name. Raises ConfigError if there is none."""
    if name not in list_sources():
        raise ConfigError(f"data source {name!r} is not known; choose one of {', '.join(list_sources())}")
    return importlib.import_module(f"{__name__}.{name}")
