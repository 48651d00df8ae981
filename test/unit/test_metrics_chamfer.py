# SPDX-License-Identifier: Apache-2.0
"""Chamfer distances against all pairs of points, and against shifted grids whose distance is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.metrics.chamfer import chamfer, nearest_distances, summarise


def slow_distances(a, b):
    return np.array([min(float(np.sqrt(((p - q) ** 2).sum())) for q in b) for p in a])


def cloud(seed, count=40, size=80.0):
    return np.random.default_rng(seed).uniform(-size, size, (count, 3))


def inside(points, near=5.0, far=65.0):
    return np.array([p for p in points if near <= np.sqrt((p**2).sum()) <= far])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 2), st.booleans())
def test_every_form_equals_all_pairs(seed, outside):
    a, b = cloud(seed), cloud(seed + 1)
    result = chamfer(a, b, outside_neighbours=outside, thresholds=(10.0, 25.0))
    forward = slow_distances(inside(a), b if outside else inside(b))
    backward = slow_distances(inside(b), a if outside else inside(a))
    values = result.to_dict()
    assert (values["generated_points"], values["true_points"]) == (len(forward), len(backward))
    assert values["accuracy_m"] == pytest.approx(forward.mean())
    assert values["completeness_m"] == pytest.approx(backward.mean())
    assert values["l1_sum_m"] == pytest.approx(forward.mean() + backward.mean())
    assert values["l1_half_sum_m"] == pytest.approx((forward.mean() + backward.mean()) / 2)
    assert values["l2_sum_m2"] == pytest.approx((forward**2).mean() + (backward**2).mean())
    assert values["l2_half_sum_m2"] == pytest.approx(((forward**2).mean() + (backward**2).mean()) / 2)
    precision, recall = (forward < 10).mean(), (backward < 10).mean()
    assert values["precision_10m"] == pytest.approx(precision)
    assert values["recall_10m"] == pytest.approx(recall)
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert values["fscore_10m"] == pytest.approx(expected)


def test_a_grid_shifted_by_a_tenth_of_a_metre():
    grid = (
        np.stack(np.meshgrid(np.arange(6, 16), np.arange(6, 16), [0]), axis=-1).reshape(-1, 3).astype(float)
    )
    result = chamfer(grid + np.array([0, 0, 0.1]), grid)
    assert result.accuracy_m == pytest.approx(0.1)
    assert result.l1_sum_m == pytest.approx(0.2)
    assert result.l2_half_sum_m2 == pytest.approx(0.01)
    assert result.fscore == {0.25: 1, 0.5: 1, 1.0: 1}


def test_a_hard_window_punishes_a_neighbour_just_outside():
    generated, true = np.array([[64.9, 0, 0]]), np.array([[65.1, 0, 0], [-30.0, 0, 0]])
    assert chamfer(generated, true).accuracy_m == pytest.approx(94.9)
    assert chamfer(generated, true, outside_neighbours=True).accuracy_m == pytest.approx(0.2)


def test_the_window_includes_its_ends_and_leaves_out_what_is_not_finite():
    points = np.array([[5.0, 0, 0], [0, 65.0, 0], [4.9, 0, 0], [np.nan, 1, 1], [np.inf, 0, 0]])
    assert chamfer(points, points).generated_points == 2


@pytest.mark.parametrize("empty", [np.zeros((0, 3)), np.full((2, 3), np.nan), np.ones((5, 3))])
def test_nothing_in_the_window_gives_no_distance(empty):
    assert chamfer(empty, cloud(0)) is None
    assert chamfer(cloud(0), empty) is None


def test_thinned_queries_estimate_the_full_mean():
    a, b = cloud(0, 20_000), cloud(1, 20_000)
    full, thin = chamfer(a, b), chamfer(a, b, queries=4000)
    assert thin.generated_points == full.generated_points
    assert thin.l1_sum_m == pytest.approx(full.l1_sum_m, rel=0.03)
    assert thin.l1_sum_m != full.l1_sum_m
    assert chamfer(a, b, queries=20_000).l1_sum_m == full.l1_sum_m


def test_single_precision_points_lose_nothing_that_matters():
    a, b = cloud(2, 500).astype(np.float32), cloud(3, 500).astype(np.float32)
    expected = np.sqrt(((a[:, None].astype(float) - b[None]) ** 2).sum(-1)).min(1)
    np.testing.assert_allclose(nearest_distances(a, b), expected, rtol=1e-6)


def test_summary_counts_empty_frames_apart():
    shifts = [0.1, 0.2, 0.6]
    found = [chamfer(np.array([[10.0, 0, 0]]), np.array([[10.0 + s, 0, 0]])) for s in shifts]
    summary = summarise([found[0], None, *found[1:]])
    assert (summary["frames"], summary["empty"]) == (3, 1)
    assert summary["l1_sum_m"]["mean"] == pytest.approx(0.6)
    assert summary["l1_sum_m"]["median"] == pytest.approx(0.4)
    assert summary["l1_sum_m"]["best"] == pytest.approx(0.2)
    assert summary["fscore_0.25m"]["best"] == 1
    low, high = summary["l1_sum_m"]["mean_95"]
    assert 0.19 < low < 0.6 < high < 1.21
    assert summarise([None]) == {"frames": 0, "empty": 1}
