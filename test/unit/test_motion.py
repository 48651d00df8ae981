# SPDX-License-Identifier: Apache-2.0
"""Ego motion: inverse pairs, limits and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from lidargen_ros import motion
from lidargen_ros.errors import InputError

NUMBER = st.floats(-50, 50)


@st.composite
def poses(draw, turn=3.0):
    pose = np.eye(4)
    vector = draw(hnp.arrays(np.float64, 3, elements=st.floats(-turn / 2, turn / 2)))
    pose[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
    pose[:3, 3] = draw(hnp.arrays(np.float64, 3, elements=NUMBER))
    return pose


POINTS = hnp.arrays(np.float64, (7, 3), elements=NUMBER)
FRACTIONS = hnp.arrays(np.float64, 7, elements=st.floats(0, 1))


@given(poses(), POINTS)
def test_pose_inverse(pose, points):
    np.testing.assert_allclose(motion.invert_pose(pose) @ pose, np.eye(4), atol=1e-12)
    there = motion.transform(points, pose)
    np.testing.assert_allclose(motion.transform(there, motion.invert_pose(pose)), points, atol=1e-11)
    batch = np.stack([pose, np.eye(4)])
    np.testing.assert_allclose(motion.invert_pose(batch) @ batch, np.stack([np.eye(4)] * 2), atol=1e-12)


@settings(max_examples=60)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@given(start=poses(), end=poses(), points=POINTS, tau=FRACTIONS)
def test_undo_and_redo_are_inverse(kind, start, end, points, tau):
    if kind == "torch":
        torch = pytest.importorskip("torch")
        points, tau = torch.from_numpy(points.copy()), torch.from_numpy(tau.copy())
    m = motion.spin_motion(start, end)
    undone = motion.uncompensate(points, tau, m)
    assert type(undone) is type(points)
    np.testing.assert_allclose(motion.compensate(undone, tau, m), points, atol=1e-9)


@given(poses(), poses(), POINTS)
def test_redo_is_the_sensor_pose_at_that_time(start, end, points):
    m = motion.spin_motion(start, end)
    np.testing.assert_allclose(motion.compensate(points, np.zeros(7), m), points, atol=1e-9)
    np.testing.assert_allclose(
        motion.compensate(points, np.ones(7), m), motion.transform(points, m), atol=1e-9
    )
    middle = motion.interpolate_poses([0.5], [0.0, 1.0], np.stack([np.eye(4), m]))[0]
    half = motion.compensate(points, np.full(7, 0.5), m)
    np.testing.assert_allclose(half, motion.transform(points, middle), atol=1e-8)


def test_torch_keeps_type_and_equals_numpy():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    m = motion.spin_motion(np.eye(4), pose_of(rng, 0.1, 1.5))
    points, tau = rng.normal(size=(4, 5, 3)) * 20, rng.uniform(size=(4, 5))
    expected = motion.compensate(points, tau, m)
    found = motion.compensate(torch.tensor(points, dtype=torch.float32), torch.tensor(tau), m)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def pose_of(rng, turn, travel):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(rng.normal(size=3) * turn).as_matrix()
    pose[:3, 3] = rng.normal(size=3) * travel
    return pose


def test_static_scene_stays_put():
    """A wall seen from a moving LiDAR: each ray's own-time points come back onto the wall."""
    end = np.eye(4)
    end[:3, :3] = Rotation.from_euler("z", 10, degrees=True).as_matrix()
    end[:3, 3] = [1.5, 0.1, 0.0]
    m = motion.spin_motion(np.eye(4), end)
    wall = np.stack([np.full(50, 20.0), np.linspace(-15, 15, 50), np.zeros(50)], axis=1)
    tau = np.linspace(0, 1, 50)
    seen = np.stack(
        [
            motion.transform(p, motion.invert_pose(motion.interpolate_poses([t], [0, 1], [np.eye(4), m])[0]))
            for p, t in zip(wall, tau, strict=True)
        ]
    )
    np.testing.assert_allclose(motion.uncompensate(wall, tau, m), seen, atol=1e-9)
    np.testing.assert_allclose(motion.compensate(seen, tau, m), wall, atol=1e-9)


def test_column_fractions():
    np.testing.assert_allclose(motion.column_fractions([0, 3], 4), [0.125, 0.875])
    np.testing.assert_allclose(
        motion.column_fractions([0, 1791], 1800, first=4, reference=True), [4 / 1799, 1795 / 1799]
    )


def test_interpolation_of_nanosecond_stamps():
    start = 1_712_345_678_000_000_000
    times = start + np.array([0, 100_000_000, 200_000_000])
    track = np.stack([np.eye(4)] * 3)
    track[:, 0, 3] = [0, 1, 3]
    found = motion.interpolate_poses(times[0] + np.array([1, 50_000_000, 150_000_000]), times, track)
    np.testing.assert_allclose(found[:, 0, 3], [1e-8, 0.5, 2.0], atol=1e-12)


@pytest.mark.parametrize(
    ("at", "times", "message"),
    [
        ([0.5], [0.0], "two poses"),
        ([0.5], [1.0, 0.0], "rising"),
        ([1.5], [0.0, 1.0], "covers"),
        ([-0.1], [0.0, 1.0], "covers"),
    ],
)
def test_nothing_is_extrapolated(at, times, message):
    with pytest.raises(InputError, match=message):
        motion.interpolate_poses(at, times, np.stack([np.eye(4)] * len(times)))
