# SPDX-License-Identifier: Apache-2.0
"""The page of pictures of a student: what it shows, in which order, and how large it may be."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.cameras import load_rig  # noqa: E402
from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402
from lidargen_ros.sweep import Sweep  # noqa: E402
from tools import student_pages  # noqa: E402
from training.student.held_out import SEEDS, Scene  # noqa: E402


@pytest.fixture
def generator():
    sensor = Sensor("toy", np.linspace(10, -20, 16), 72)
    about = {"model": "toy", "model_sha256": "0" * 64, "engine": "none"}
    return SimpleNamespace(rig=load_rig("published"), sensor=sensor, describe=lambda: about)


@pytest.fixture
def found(generator):
    images = [np.full((44, 80, 3), 90, np.uint8)] * 3
    sweep = Sweep(np.full(generator.sensor.shape, 20, np.float32), generator.sensor)
    scenes = [Scene(SEEDS[k], images, sweep.range_map, np.eye(4)) for k in range(15)]
    figures = ({"abs_rel_seen": k / 100, "mae_m_seen": 1.0, "return_accuracy": 0.9} for k in range(15))
    return [student_pages.Entry(scene, sweep, f) for scene, f in zip(scenes, figures, strict=True)]


def test_twelve_as_they_come_and_the_worst_five(generator, found, tmp_path):
    (tmp_path / "scene_1.jpg").write_bytes(b"of an earlier run")
    files = student_pages.write_page(tmp_path, generator, found, 240, 300_000)
    assert sum(f.stat().st_size for f in files) <= 300_000
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in files}
    text = (tmp_path / "README.md").read_text()
    first, worst = text.split("## The worst")
    assert [f"scene_{SEEDS[k]}.jpg" in first for k in range(15)] == [True] * 12 + [False] * 3
    order = [worst.index(f"scene_{SEEDS[k]}.jpg") for k in (14, 13, 12, 11, 10)]
    assert order == sorted(order)
    assert "AbsRel 0.070" in text  # the mean of the fifteen


def test_a_page_that_cannot_fit_says_so(generator, found, tmp_path):
    with pytest.raises(ConfigError, match="--width"):
        student_pages.write_page(tmp_path, generator, found[:2], 480, 3_000)
