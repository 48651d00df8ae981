# SPDX-License-Identifier: Apache-2.0
"""Kinds of experiments: the typed settings and the recipe of each, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from lidargen_ros.errors import ConfigError

from .config import build, nearest, read_yaml
from .recipe import Experiment

KINDS = {  # kind -> folder of config.py and recipe.py, class of the settings, class of the recipe
    "student": ("student", "StudentExperiment", "StudentRecipe"),
    "published": ("published", "PublishedExperiment", "PublishedRecipe"),
    "tokenizer": ("tokenizer", "TokenizerExperiment", "TokenizerRecipe"),
}


def experiment_class(kind: Any, where: str | Path) -> type[Experiment]:
    """Settings of a kind; ConfigError names the file ``where`` it stood."""
    return getattr(import_module(f".{_known(kind, where)[0]}.config", __package__), _known(kind, where)[1])


def recipe_class(kind: str) -> Any:
    return getattr(import_module(f".{KINDS[kind][0]}.recipe", __package__), KINDS[kind][2])


def _known(kind: Any, where: str | Path) -> tuple[str, str, str]:
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind {kind!r} is unknown; {nearest(str(kind), list(KINDS))}")
    return KINDS[kind]


def experiment_of(run: Path) -> Experiment:
    """Settings of a run, from the ``config.yaml`` in its folder; ConfigError if there is none."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{run}: holds no config.yaml; give the folder of a training run")
    values = read_yaml(file)
    return build(experiment_class(values.get("kind"), file), values)
