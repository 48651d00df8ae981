# SPDX-License-Identifier: Apache-2.0
"""Loaders of recorded drives, one file each, found by file name.

A loader of a folder layout is a module with ``drives(path, cameras, sensor)``, which yields
:class:`training.data.drive.Drive` objects, ``CAMERAS``, the cameras it takes by default, and perhaps ``OPTIONS``,
its own defaults of :class:`training.data.convert.ConvertOptions`.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from lidargen_ros.errors import ConfigError


def list_sources() -> list[str]:
    """Names of the loaders."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_source(name: str) -> ModuleType:
    """Loader by name. Raises ConfigError if there is none."""
    if name not in list_sources():
        raise ConfigError(f"data source {name!r} is not known; choose one of {', '.join(list_sources())}")
    return importlib.import_module(f"{__name__}.{name}")


def folder_drives(
    name: str, path: Path, cameras: Sequence[str] = (), sensor: str = ""
) -> tuple[Iterator[Any], dict[str, Any]]:
    """Drives of a folder in the layout ``name``, and the loader's own conversion options.

    Args:
        cameras: ``THEIRS`` or ``THEIRS=OURS`` (another name in the clips); empty takes the loader's choice.
        sensor: LiDAR by name or file; empty leaves it to the loader.
    """
    module = load_source(name)
    if not hasattr(module, "CAMERAS"):
        raise ConfigError(f"data source {name!r} is no folder layout; use python -m training.data.from_bag")
    pairs = [word.partition("=") for word in cameras] or [(theirs, "", "") for theirs in module.CAMERAS]
    names = {theirs: ours or theirs for theirs, _, ours in pairs}
    if len(set(names.values())) != len(pairs):
        raise ConfigError(f"cameras {', '.join(cameras)}: a name occurs twice")

    def renamed() -> Iterator[Any]:
        for drive in module.drives(path, tuple(names), sensor):
            drive.views = {
                names[theirs]: replace(view, name=names[theirs]) for theirs, view in drive.views.items()
            }
            drive.pictures = [replace(p, camera=names[p.camera]) for p in drive.pictures]
            yield drive

    return renamed(), dict(getattr(module, "OPTIONS", {}))
