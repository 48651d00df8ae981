# SPDX-License-Identifier: Apache-2.0
"""Drift of LiDAR odometry: the errors of a trajectory, KISS-ICP on a world that is known, and the command."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from toy_bag import ToyBag
from typer.testing import CliRunner

from lidargen_ros.cli import app
from lidargen_ros.errors import DataError
from lidargen_ros.looking.moment import Bags
from lidargen_ros.looking.odometry import bag_odometry
from lidargen_ros.metrics.odometry import SweepSequence, drift, estimate_poses, odometry_report


def straight(steps, metres):
    poses = np.tile(np.eye(4), (steps, 1, 1))
    poses[:, 0, 3] = metres * np.arange(steps)
    return poses


def test_a_trajectory_is_judged_from_its_first_pose():
    true = straight(11, 1.0)
    world = np.eye(4)
    world[:3, :3] = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    world[:3, 3] = 5, -3, 1
    same = drift(world @ true, true)
    assert same["end_m"] == pytest.approx(0, abs=1e-9)
    assert same["length_m"] == pytest.approx(10)
    slow = drift(straight(11, 0.9), true)
    assert slow["end_m"] == pytest.approx(1)
    assert slow["drift_percent"] == pytest.approx(10)
    assert slow["step_rmse_m"] == pytest.approx(0.1)
    assert slow["ate_rmse_m"] == pytest.approx(np.sqrt((np.arange(11) ** 2).mean()) / 10)
    turned = true.copy()
    turned[-1, :3, :3] = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    assert drift(turned, true)["end_deg"] == pytest.approx(3)
    assert drift(straight(3, 0.1), straight(3, 0.1))["drift_percent"] is None
    with pytest.raises(ValueError, match="two or more"):
        drift(true[:1], true[:1])


def room(pose, rng):
    """Walls and pillars within 40 m, seen from a pose; every frame samples other points."""
    walls = rng.uniform((-40, -12, -1.5), (40, 12, 4), (6000, 3))
    walls[:3000, 1] = np.where(walls[:3000, 1] > 0, 12, -12)
    walls[3000:, 0] = np.round(walls[3000:, 0] / 13) * 13
    walls[3000:, 1] = np.sign(walls[3000:, 1]) * (8 + walls[3000:, 1] / 12)
    return (walls - pose[:3, 3]) @ pose[:3, :3]


def test_icp_follows_a_known_motion_and_not_one_that_sweeps_do_not_show():
    pytest.importorskip("kiss_icp", reason="kiss-icp is not installed")
    rng, true = np.random.default_rng(0), straight(12, 0.6)
    moving = [room(pose, rng) for pose in true]
    found = estimate_poses(moving)
    assert drift(found, true)["drift_percent"] < 5
    assert np.array_equal(found, estimate_poses(moving))
    still = SweepSequence([moving[0]] * 12, [None] * 12, true)
    report = odometry_report({"moving": SweepSequence(moving, [None] * 12, true), "still": still}, -1.4)
    assert set(report) == {
        "moving", "moving, without ground", "still", "still, without ground", "standing still"
    }  # fmt: skip
    assert report["still"]["drift_percent"] == pytest.approx(100, abs=1)
    assert report["standing still"]["drift_percent"] == pytest.approx(100)


def test_points_of_the_ground_leave_with_their_times():
    clouds = [np.array([[1.0, 0, -2], [1, 0, 1]])]
    above = SweepSequence(clouds, [np.array([0.0, 0.1])], np.eye(4)[None]).above(-1.4)
    assert above.clouds[0].tolist() == [[1, 0, 1]]
    assert above.times_s[0].tolist() == [0.1]


@pytest.mark.parametrize("motion", ["odometry", "tf"])
def test_the_command_on_a_drive(tmp_path, motion):
    pytest.importorskip("kiss_icp", reason="kiss-icp is not installed")
    bag = ToyBag(seconds=0.4, motion=motion, picture_hz=2.0)
    bag.write(tmp_path / "drive")
    out = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["odometry", str(tmp_path / "drive"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    path = np.linalg.norm(bag.world.body(0.3)[:3, 3] - bag.world.body(0.0)[:3, 3])
    assert report["seconds"] == pytest.approx(0.3, abs=0.01)
    assert report["drift"]["true"]["frames"] == 4
    assert report["drift"]["true"]["length_m"] == pytest.approx(path, rel=0.05)


def test_a_drive_without_motion_says_what_to_record(tmp_path):
    ToyBag(seconds=0.2, motion="none").write(tmp_path / "drive")
    with pytest.raises(DataError, match="do not say how the vehicle moved"):
        bag_odometry(Bags([tmp_path / "drive"]))
