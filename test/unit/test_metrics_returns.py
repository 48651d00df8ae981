# SPDX-License-Identifier: Apache-2.0
"""Return scores against counting by hand, and AUROC against all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.metrics.returns import ReturnCounts, return_scores


def slow_auroc(score, label):
    positive, negative = score[label], score[~label]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def slow_scores(decided, true):
    hits, false_alarms, misses = (decided & true).sum(), (decided & ~true).sum(), (~decided & true).sum()
    precision, recall = hits / (hits + false_alarms), hits / (hits + misses)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "iou": hits / (hits + false_alarms + misses),
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_equal_counting(seed):
    rng = np.random.default_rng(seed)
    true = rng.random((4, 25)) < 0.7
    probability = np.clip(0.5 * true + rng.random(true.shape) * 0.8 - 0.1, 0, 1).round(2)
    mask = rng.random(true.shape) < 0.9
    result = return_scores(probability, true, mask)
    decided = probability >= 0.5
    assert result["rays"] == mask.sum()
    assert result["accuracy"] == pytest.approx((decided == true)[mask].mean())
    assert result["return"] == pytest.approx(slow_scores(decided[mask], true[mask]))
    assert result["drop"] == pytest.approx(slow_scores(~decided[mask], ~true[mask]))
    assert result["auroc"] == pytest.approx(slow_auroc(probability[mask], true[mask]), abs=1e-4)
    rows = [abs((~decided[k][mask[k]]).mean() - (~true[k][mask[k]]).mean()) for k in range(4)]
    assert result["drop_rate_error_rows"] == pytest.approx(np.mean(rows))


def test_a_generator_that_never_drops():
    true = np.array([[True, True, True, False]])
    result = return_scores(np.ones_like(true), true)
    assert result["accuracy"] == 0.75  # flattering
    assert result["return"] == pytest.approx({"precision": 0.75, "recall": 1, "f1": 6 / 7, "iou": 0.75})
    assert result["drop"] == {"precision": None, "recall": 0, "f1": 0, "iou": 0}
    assert result["auroc"] is None  # no probability was given
    assert (result["drop_rate_generated"], result["drop_rate_true"]) == (0, 0.25)


def test_auroc_of_order_reverse_and_no_idea():
    true = np.array([[True, True, False, False]])
    assert return_scores(np.array([[0.9, 0.8, 0.2, 0.1]]), true)["auroc"] == 1
    assert return_scores(np.array([[0.1, 0.2, 0.8, 0.9]]), true)["auroc"] == 0
    assert return_scores(np.full((1, 4), 0.3), true)["auroc"] == 0.5
    assert return_scores(np.full((1, 4), 0.3), np.ones((1, 4), bool))["auroc"] is None


def test_counts_of_sweeps_add_up():
    rng = np.random.default_rng(0)
    score, true = rng.random((6, 3, 10)).astype(np.float32), rng.random((6, 3, 10)) < 0.6
    parts = [ReturnCounts(3), ReturnCounts(3)]
    for k in range(6):
        parts[k % 2].add(score[k], true[k])
    whole = ReturnCounts(18)
    whole.add(score.reshape(18, 10), true.reshape(18, 10))
    summed, expected = (parts[0] + parts[1]).result(), whole.result()
    del summed["drop_rate_error_rows"], expected["drop_rate_error_rows"]  # the rows differ
    assert summed == expected


def test_nothing_counted_has_no_value():
    result = return_scores(np.ones((2, 3)), np.ones((2, 3), bool), np.zeros((2, 3), bool))
    assert result == {"rays": 0, "accuracy": None}
    counts = ReturnCounts(2)
    counts.add(np.array([[True], [False]]), np.array([[True], [True]]), np.array([[True], [False]]))
    np.testing.assert_array_equal(counts.drop_rates(), [[0, 0], [np.nan, np.nan]])
