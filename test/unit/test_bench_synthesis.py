# SPDX-License-Identifier: Apache-2.0
"""What tools/bench_synthesis.py measures on: a bag made longer, a bundle of random weights."""

import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.synthesis.models import StudentModel
from lidargen_ros.bags.synthesis.options import Options
from lidargen_ros.bags.synthesis.plan import make_plan
from lidargen_ros.bundle import load_bundle
from lidargen_ros.ros.parameters import Settings

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "sample_drive"
OPTIONS = Options(settings=Settings().changed({"bundle": "constant", "rig": str(SAMPLE / "rig.yaml"), "threads": 1}))  # fmt: skip


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The sample drive two times over, its pictures small."""
    tool = runpy.run_path(str(ROOT / "tools" / "bench_synthesis.py"))
    plan = make_plan(SAMPLE, OPTIONS, StudentModel(OPTIONS).info())
    return plan, tool["longer"](plan, 2, (64, 36), tmp_path_factory.mktemp("bags") / "longer")


def test_stamps_of_a_longer_bag_go_on(twice):
    plan, path = twice
    with BagReader(path) as bag:
        found = [(m.time_ns, m.decode()) for m in bag.messages([next(iter(plan.cameras))])]
    stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for _, m in found]
    gaps = {round((b - a) / 1e8) for a, b in pairwise(stamps)}
    assert len(stamps) == 2 * plan.frames
    assert gaps == {1}  # tenths of a second: 10 Hz, over the seam as well
    assert sorted(time for time, _ in found) == [time for time, _ in found]


@pytest.mark.slow
def test_every_stage_and_number_of_workers_is_measured(twice, tmp_path):
    out = tmp_path / "rates.json"
    tool = ROOT / "tools" / "bench_synthesis.py"
    given = ["--bag", twice[1], "--threads", "1", "--workers", "1,2", "--out", out]
    subprocess.run([sys.executable, tool, "constant", *given], check=True, capture_output=True)
    rates = json.loads(out.read_text())
    assert rates["frames"] == 100
    for measured in (rates["decode"], rates["encode"], *rates["inference"], *rates["pipeline"].values()):
        assert measured["frames_per_second"] > 0
    assert set(rates["pipeline"]) == {"1", "2"}
    assert rates["limited_by"] in rates["bounds"]


def test_a_random_bundle_can_be_loaded(tmp_path):
    pytest.importorskip("torch")
    from lidargen_ros.models.student_weights import read_student

    tool = runpy.run_path(str(ROOT / "tools" / "random_bundle.py"))
    bundle = load_bundle(tool["random_bundle"]("nano", tmp_path))
    assert bundle.name == "random-nano"
    assert read_student(bundle.file("student.safetensors")).config == tool["CONFIGS"]["nano"]
