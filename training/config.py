# SPDX-License-Identifier: Apache-2.0
"""Typed experiment configurations: YAML files in ``config/experiments/`` and ``key=value`` overrides.

An unknown key is an error that names the nearest known one; a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lidargen_ros.errors import ConfigError
from lidargen_ros.resources import config_path

T = TypeVar("T")


def experiment_path(name_or_path: str) -> Path:
    """File of an experiment: a path to a YAML file, or a name in ``config/experiments/``."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"experiment file {path} does not exist; give an existing file or a name")
        return path
    folder = config_path("experiments")
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name_or_path not in known:
        raise ConfigError(f"experiment {name_or_path} is unknown; {nearest(name_or_path, known)}")
    return folder / f"{name_or_path}.yaml"


def nearest(word: str, known: Sequence[str]) -> str:
    """``did you mean 'x'?`` or the list of what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``["optimizer.lr=1e-3"]`` -> nested dict; values are YAML."""
    result: dict[str, Any] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or not key:
            raise ConfigError(f"override {word!r} is not of the form key=value")
        *folders, last = key.split(".")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ConfigError(f"override {word!r}: {folder} is given both a value and keys of its own")
        place[last] = yaml.safe_load(value)
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` wins, key by key, at every depth."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from nested mappings, every key and type checked.

    Raises:
        ConfigError: unknown key, missing key or wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {where}{key}; {nearest(str(key), list(fields))}")
    missing = [
        n for n, f in fields.items()
        if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{where or 'the experiment '}lacks {', '.join(missing)}")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for argument in (a for a in arguments if a is not type(None)):
            try:
                return _convert(argument, value, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where} is {value!r}, which is none of {', '.join(str(a) for a in arguments)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}, expected keys")
        return build(typing.cast(type, hint), value, f"{where}.")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) != len(value):
            raise ConfigError(f"{where} has {len(value)} values, expected {len(inner)}")
        return tuple(
            _convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}, expected keys")
        return dict(value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}; {nearest(str(value), [str(a) for a in arguments])}")
        return value
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(f"{where} is {value!r}, expected a number") from error
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} is {value!r}, expected {hint.__name__}")
    return value


def load_experiment(kind: type[T], name_or_path: str, overrides: Sequence[str] = ()) -> T:
    """An experiment's YAML with overrides, as the typed configuration ``kind``."""
    return build(kind, merge(read_yaml(experiment_path(name_or_path)), parse_overrides(overrides)))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys")
    return values


def dump(config: Any) -> str:
    """A configuration as YAML, such that ``build`` gives it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)
