# SPDX-License-Identifier: Apache-2.0
"""`lidargen synthesize` with the published family: a checkpoint of toy size in place of a bundle."""

import json

import pytest

pytest.importorskip("torch")
import typer
from camera_bags import START, pictures, write_bag
from typer.testing import CliRunner

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.synthesis.command import register
from lidargen_ros.errors import LidargenError
from tools.random_checkpoint import TINY, write_checkpoint

app = typer.Typer()
register(app)


def test_a_checkpoint_makes_the_same_sweeps_whatever_the_slices(tmp_path) -> None:
    bag, checkpoint = write_bag(tmp_path / "drive", pictures(3)), write_checkpoint(tmp_path / "toy", TINY)
    found = []
    for name, seconds in (("one", "10"), ("many", "0.1")):
        arguments = [
            str(bag),
            "--out",
            str(tmp_path / name),
            "--checkpoint",
            str(checkpoint),
            "--device",
            "cpu",
        ]
        result = CliRunner().invoke(app, [*arguments, "--steps", "2", "--slice", seconds, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["sweeps_out"] == 3
        with BagReader(tmp_path / name / "drive") as made:
            about = json.loads(next(made.messages(["/metadata"])).decode().data)
            found.append([(m.time_ns, m.raw) for m in made.messages(["/points"])])
    assert found[0] == found[1]
    assert [time for time, _ in found[0]] == [START + i * 10**8 for i in range(3)]
    assert len({raw for _, raw in found[0]}) == 3
    assert (about["model"]["mode"], about["model"]["steps"]) == ("corrected", 2)


def test_weights_that_are_not_there_are_named(tmp_path) -> None:
    bag = write_bag(tmp_path / "drive", pictures(1))
    arguments = [str(bag), "--out", str(tmp_path / "out"), "--checkpoint", "/nowhere", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, LidargenError)
    assert "/nowhere" in str(result.exception)
