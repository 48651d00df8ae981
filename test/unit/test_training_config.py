# SPDX-License-Identifier: Apache-2.0
"""Experiment configurations: every key and type is checked."""

import pytest

pytest.importorskip("torch")

from lidargen_ros.errors import ConfigError
from lidargen_ros.models.student import BASE, NANO
from training.config import build, dump, load_experiment, parse_overrides
from training.student.config import StudentExperiment
from training.train import main


@pytest.mark.parametrize("name", ["student_nano", "student_base"])
def test_shipped_experiments_load_and_survive_a_dump(name):
    import yaml

    config = load_experiment(StudentExperiment, name)
    assert build(StudentExperiment, yaml.safe_load(dump(config))) == config
    assert config.model == {"student_nano": NANO, "student_base": BASE}[name]  # what benchmarks measure


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimiser.lrr=1", "did you mean 'lr'"),
        ("batch=many", "batch is 'many'"),
        ("batch", "key=value"),
        ("data.tile=[1]", "expected 2"),
        ("precision=fp8", "precision is 'fp8'"),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(ConfigError, match=words):
        load_experiment(StudentExperiment, "student_nano", [override])


def test_overrides_win():
    assert parse_overrides(["optimiser.lr=1e-3", "batch=4"]) == {"optimiser": {"lr": "1e-3"}, "batch": 4}
    config = load_experiment(StudentExperiment, "student_nano", ["optimiser.lr=1e-3", "batch=4"])
    assert (config.optimiser.lr, config.batch) == (1e-3, 4)


def test_command_line(capsys):
    assert main(["student_nano", "batch=4", "--print-config"]) == 0
    assert "batch: 4" in capsys.readouterr().out
    assert main(["student_nan"]) == 1
    assert "did you mean 'student_nano'" in capsys.readouterr().err
