# SPDX-License-Identifier: Apache-2.0
"""The parameter table: its file and its documentation say what the code does, and bad values are refused."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lidargen_ros.errors import ConfigError
from lidargen_ros.resources import config_path
from lidargen_ros.ros.parameters import (
    PARAMETERS,
    Settings,
    check,
    checked_together,
    render_table,
    render_yaml,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_yaml_is_what_the_code_says() -> None:
    text = config_path("lidargen.yaml").read_text()
    assert text == render_yaml(), "run: python -m lidargen_ros.ros.parameters yaml > config/lidargen.yaml"
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert list(values) == list(PARAMETERS)
    assert Settings().changed(values) == Settings()


def test_the_documentation_is_what_the_code_says() -> None:
    assert render_table() in (ROOT / "docs" / "node.md").read_text(), (
        "put the output of `python -m lidargen_ros.ros.parameters table` into docs/node.md"
    )


def test_every_parameter_is_described_and_its_default_allowed() -> None:
    for p in PARAMETERS.values():
        assert p.description.endswith("."), p.name
        assert check(p.name, list(p.default) if p.kind == "list" else p.default) == p.default
        if p.kind in ("int", "float"):
            assert p.low is not None, f"{p.name} has no range"
    assert set(PARAMETERS) == {f.name for f in fields(Settings)}


@pytest.mark.parametrize("name", [n for n, p in PARAMETERS.items() if p.low is not None])
def test_ranges_are_kept_on_both_sides(name) -> None:
    p = PARAMETERS[name]
    assert check(name, p.low) == p.low
    assert check(name, p.high) == p.high
    for wrong in (p.low - 1, p.high + 1, float("nan") if p.kind == "float" else p.high + 2):
        with pytest.raises(ConfigError, match=f"'{name}' is .* must lie between"):
            check(name, wrong)


@pytest.mark.parametrize("name", [n for n, p in PARAMETERS.items() if p.choices])
def test_choices_are_kept(name) -> None:
    for choice in PARAMETERS[name].choices:
        assert check(name, choice) == choice
    with pytest.raises(ConfigError, match="choose one of"):
        check(name, "something else")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sync_tolerance", "0.1"),
        ("sync_tolerance", True),
        ("sync_tolerance", None),
        ("steps", 1.0),
        ("steps", True),
        ("organised", 1),
        ("bundle", 5),
        ("cameras", "front"),
        ("cameras", [1, 2]),
    ],
)
def test_types_are_kept(name, value) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is .* must be of type"):
        check(name, value)


def test_whole_numbers_are_fine_for_floats() -> None:
    value = check("sync_tolerance", 1)
    assert value == 1.0
    assert isinstance(value, float)


def test_camera_names_are_given_once() -> None:
    assert check("cameras", ["a", "b"]) == ("a", "b")
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ConfigError, match="at least one name, each once"):
            check("cameras", wrong)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_range": 50.0, "max_range": 20.0}, "'min_range' .50. must not exceed 'max_range' .20."),
        ({"rate_error": 0.95}, "'rate_error'"),
        ({"latency_warn": 10.0}, "'latency_warn'"),
        ({"min_cameras": 4}, "'min_cameras' is 4; there are 3 cameras"),
        ({"unheard_of": 1}, "'unheard_of' is not known"),
    ],
)
def test_parameters_that_contradict_each_other(values, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings().changed(values)


def test_settings_do_not_change_in_place() -> None:
    before = Settings()
    after = before.changed({"steps": 3, "cameras": ["a"]})
    assert (before.steps, after.steps, after.cameras) == (0, 3, ("a",))
    assert checked_together(after) is after
