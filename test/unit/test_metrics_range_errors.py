# SPDX-License-Identifier: Apache-2.0
"""Range errors against a loop over rays, and against cases worked out by hand."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.metrics.range_errors import (
    ErrorSums,
    MaeSums,
    errors_by_range,
    errors_by_row,
    errors_by_seen,
    range_bins,
    range_errors,
    range_labels,
    window,
)


def slow_errors(generated, true, mask):
    """The definitions, one ray after the other."""
    pairs = [
        (float(p), float(d))
        for p, d, m in zip(generated.ravel(), true.ravel(), mask.ravel(), strict=True)
        if p > 0 and d > 0 and m
    ]
    if not pairs:
        return {"rays": 0}
    n = len(pairs)
    logs = [math.log(p) - math.log(d) for p, d in pairs]
    mean_log = sum(logs) / n
    return {
        "rays": n,
        "mae_m": sum(abs(p - d) for p, d in pairs) / n,
        "median_m": statistics.median(abs(p - d) for p, d in pairs),
        "rmse_m": math.sqrt(sum((p - d) ** 2 for p, d in pairs) / n),
        "abs_rel": sum(abs(p - d) / d for p, d in pairs) / n,
        "sq_rel_m": sum((p - d) ** 2 / d for p, d in pairs) / n,
        "rmse_log": math.sqrt(sum(g * g for g in logs) / n),
        "silog": math.sqrt(sum((g - mean_log) ** 2 for g in logs) / n),
        **{f"delta_{k}": sum(max(p / d, d / p) < 1.25**k for p, d in pairs) / n for k in (1, 2, 3)},
    }


def assert_equal(fast, slow):
    for name, value in slow.items():
        tolerance = 1e-3 if name == "median_m" else 2e-5  # the median comes from a histogram
        assert fast[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def random_maps(seed, shape=(5, 12)):
    rng = np.random.default_rng(seed)
    maps = rng.uniform(0.5, 110, (2, *shape)).astype(np.float32)
    maps[rng.random(maps.shape) < 0.25] = 0
    return maps[0], maps[1], rng.random(shape) < 0.8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_all_errors_equal_the_loop(seed):
    generated, true, mask = random_maps(seed)
    assert_equal(range_errors(generated, true, mask), slow_errors(generated, true, mask))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_groups_equal_the_loop_on_each_group(seed):
    generated, true, mask = random_maps(seed)
    edges = [0, 10, 20, 40, 80, math.inf]
    for (low, high), fast in zip(
        pairwise(edges), errors_by_range(generated, true, mask).values(), strict=True
    ):
        assert_equal(fast, slow_errors(generated, true, mask & (true >= low) & (true < high)))
    for row, fast in enumerate(errors_by_row(generated, true, mask)):
        assert_equal(fast, slow_errors(generated[row], true[row], mask[row]))
    seen = np.random.default_rng(seed).random(true.shape) < 0.5
    split = errors_by_seen(generated, true, seen, mask)
    assert_equal(split["seen"], slow_errors(generated, true, mask & seen))
    assert_equal(split["unseen"], slow_errors(generated, true, mask & ~seen))


def test_a_scale_error_of_ten_percent():
    true = np.array([[5, 10, 20, 40]], np.float32)
    errors = range_errors(true * np.float32(1.1), true)
    assert errors["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert errors["mae_m"] == pytest.approx(0.1 * 75 / 4, rel=1e-5)
    assert errors["rmse_log"] == pytest.approx(math.log(1.1), rel=1e-5)
    assert errors["silog"] == pytest.approx(0, abs=1e-3)  # scale does not count
    assert errors["delta_1"] == 1


def test_the_limit_of_delta_is_strict_and_symmetric():
    true = np.array([[8.0, 10.0, 10.0]])
    errors = range_errors(np.array([[10.0, 8.0, 9.0]]), true)  # 1.25, 1.25, 1.11
    assert errors["delta_1"] == pytest.approx(1 / 3)
    assert errors["delta_2"] == 1


def test_equal_maps_have_no_error_and_empty_ones_no_value():
    true = random_maps(1)[1]
    perfect = range_errors(true, true)
    assert perfect["rays"] == (true > 0).sum()
    assert perfect["mae_m"] == perfect["median_m"] == perfect["silog"] == 0
    nothing = range_errors(np.zeros_like(true), true)
    assert nothing.pop("rays") == 0
    assert set(nothing.values()) == {None}


def test_sums_over_sweeps_equal_the_stack():
    sums, mae = ErrorSums(), MaeSums()
    stack = [random_maps(seed) for seed in range(4)]
    for generated, true, mask in stack:
        counted = mask & (generated > 0) & (true > 0)
        sums.add(generated[counted], true[counted])
        mae.add(generated[counted], true[counted], np.zeros(counted.sum(), np.intp))
    whole = range_errors(*(np.stack(column) for column in zip(*stack, strict=True)))
    assert sums.result() == pytest.approx(whole)
    assert mae.mae() == pytest.approx(whole["mae_m"])
    assert MaeSums(3).mae(1) is None


def test_bins_hold_their_lower_edge_and_the_last_is_open():
    ranges = np.array([0.5, 9.999, 10, 39.9, 40, 80, 500], np.float32)
    assert range_bins(ranges).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert range_labels() == ["0-10", "10-20", "20-40", "40-80", "80-"]


def test_window_includes_both_ends_and_no_missing_return():
    assert window(np.array([0, 4.9, 5, 65, 65.1])).tolist() == [False, False, True, True, False]
    assert not window(np.zeros(1), near=0).any()
