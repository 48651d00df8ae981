# SPDX-License-Identifier: Apache-2.0
"""Edge bleeding, intensity, calibration of samples, temporal Chamfer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.metrics.calibration import crps, interval_coverage, sample_calibration
from lidargen_ros.metrics.edges import bleeding, bleeding_rate
from lidargen_ros.metrics.intensity import intensity_errors
from lidargen_ros.metrics.temporal import carry, temporal_chamfer

# --- edge bleeding


def slow_bleeding(row, jump=1.0, circular=True):
    bleeds = judged = 0
    for c in range(len(row)):
        if not circular and c in (0, len(row) - 1):
            continue
        left, here, right = row[c - 1], row[c], row[(c + 1) % len(row)]
        if min(left, here, right) > 0:
            judged += 1
            bleeds += (left - here > jump and here - right > jump) or (
                here - left > jump and right - here > jump
            )
    return bleeds, judged


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_bleeding_equals_the_loop(seed, circular):
    rng = np.random.default_rng(seed)
    row = rng.uniform(1, 8, 30) * (rng.random(30) < 0.9)
    bleeds, judged = bleeding(row[None], circular=circular)
    assert (bleeds.sum(), judged.sum()) == slow_bleeding(row, circular=circular)


def test_a_blurred_edge_bleeds_and_a_sharp_one_does_not():
    sharp = np.array([[10.0, 10, 10, 20, 20, 20]])
    blurred = np.array([[10.0, 10, 15, 20, 20, 20]])
    assert bleeding_rate(sharp, circular=False) == 0
    assert bleeding_rate(blurred, circular=False) == 1 / 4
    assert bleeding_rate(np.zeros((2, 5))) is None


# --- intensity


def test_intensity_error_and_earth_mover_of_a_shift():
    rng = np.random.default_rng(0)
    true = rng.uniform(0.1, 0.6, (20, 200))
    returns = rng.random(true.shape) < 0.8
    result = intensity_errors(true + 0.25, true, returns, returns)
    assert result["rays"] == returns.sum()
    assert result["mae"] == pytest.approx(0.25)
    assert result["emd"] == pytest.approx(0.25, abs=1 / 256)


def test_intensity_distribution_does_not_care_where():
    true = np.linspace(0, 1, 50)[None]
    everywhere = np.ones_like(true, bool)
    result = intensity_errors(true[:, ::-1], true, everywhere, everywhere)
    assert result["emd"] == pytest.approx(0, abs=1e-12)
    assert result["mae"] > 0.4
    nothing = intensity_errors(true, true, ~everywhere, everywhere)
    assert nothing == {"rays": 0, "mae": None, "emd": None}


# --- calibration


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_crps_equals_its_double_sum(seed, count):
    rng = np.random.default_rng(seed)
    samples, true = rng.normal(20, 5, (count, 7)), rng.normal(20, 5, 7)
    for fair in (False, True):
        pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / (
            count * (count - 1) if fair else count**2
        )
        expected = np.abs(samples - true).mean(0) - pairs / 2
        np.testing.assert_allclose(crps(samples, true, fair=fair), expected, atol=1e-9)


def test_crps_of_one_sample_is_the_absolute_error():
    np.testing.assert_allclose(crps(np.array([[3.0, 9.0]]), np.array([5.0, 5.0])), [2, 4])
    with pytest.raises(ValueError, match="at least 2"):
        crps(np.ones((1, 2)), np.ones(2), fair=True)


def test_crps_of_many_normal_samples_reaches_the_closed_form():
    """CRPS of N(0, 1) at 0 is 2 phi(0) - 1/sqrt(pi) (Gneiting and Raftery 2007)."""
    samples = np.random.default_rng(0).standard_normal((4000, 200))
    expected = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    assert crps(samples, np.zeros(200), fair=True).mean() == pytest.approx(expected, rel=5e-3)


def test_coverage_of_exchangeable_samples_is_nominal():
    drawn = np.random.default_rng(0).standard_normal((20, 40_000))
    for level in (0.5, 0.8, 0.9):
        assert interval_coverage(drawn[1:], drawn[0], level) == pytest.approx(level, abs=0.01)


def test_coverage_that_so_few_samples_cannot_express():
    samples, true = np.random.default_rng(0).standard_normal((3, 50)), np.zeros(50)
    assert interval_coverage(samples, true, 0.9) is None  # three samples reach 2/4
    low, high = samples.min(0), samples.max(0)
    assert interval_coverage(samples, true, 0.5) == ((true >= low) & (true <= high)).mean()


def test_calibration_counts_rays_where_all_return():
    samples = np.array([[[10.0, 10, 0, 10]], [[12.0, 12, 12, 12]], [[14.0, 14, 14, 14]]])
    result = sample_calibration(samples, np.array([[12.0, 20, 12, 0]]))
    assert result["rays"] == 2
    assert result["coverage"] == {0.5: 0.5, 0.8: None, 0.9: None}
    assert result["spread_m"] == pytest.approx(2)
    assert result["crps_m"] == pytest.approx(
        crps(np.array([[10, 10], [12, 12], [14, 14]]), np.array([12, 20])).mean()
    )
    assert sample_calibration(np.zeros((2, 1, 1)), np.ones((1, 1)))["crps_m"] is None


# --- temporal Chamfer


def pose(yaw, x):
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[0, 3] = x
    return matrix


def test_a_still_world_seen_from_a_moving_sensor_has_no_temporal_distance():
    world = np.random.default_rng(0).uniform(-25, 25, (300, 3)) * [1, 1, 0.1] + [0, 0, 8]
    poses = [pose(0.05 * k, 0.8 * k) for k in range(4)]
    clouds = [carry(world, np.eye(4), p) for p in poses]
    assert len(temporal_chamfer(clouds, poses)) == 3
    assert len(temporal_chamfer(clouds, poses, step=2)) == 2
    for result in temporal_chamfer(clouds, poses):
        assert result.l1_sum_m == pytest.approx(0, abs=1e-9)
    ignoring_motion = temporal_chamfer(clouds, [np.eye(4)] * 4)
    assert min(result.l1_sum_m for result in ignoring_motion) > 0.3


def test_carry_goes_there_and_back():
    points = np.random.default_rng(1).normal(size=(10, 3))
    there = carry(points, pose(0.3, 2), pose(-0.4, 7))
    np.testing.assert_allclose(carry(there, pose(-0.4, 7), pose(0.3, 2)), points, atol=1e-12)
    np.testing.assert_allclose(carry(np.array([[1.0, 0, 0]]), pose(0, 5), np.eye(4)), [[6, 0, 0]])


def test_one_pose_per_cloud():
    with pytest.raises(ValueError, match="2 clouds but 1 poses"):
        temporal_chamfer([np.ones((1, 3))] * 2, [np.eye(4)])
