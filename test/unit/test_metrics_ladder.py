# SPDX-License-Identifier: Apache-2.0
"""The predictors that a model is measured against."""

import statistics

import numpy as np
import pytest

from lidargen_ros.metrics.ladder import SweepLibrary, constant_map


def maps(count, seed=0, shape=(6, 16), drop=0.3):
    rng = np.random.default_rng(seed)
    return [(rng.uniform(1, 80, shape) * (rng.random(shape) > drop)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_constant_map_equals_the_median_of_each_ray(count):
    given = maps(count)
    constant = constant_map(given)
    for row in range(6):
        for column in range(16):
            values = [float(m[row, column]) for m in given if m[row, column] > 0]
            assert constant.return_share[row, column] == pytest.approx(len(values) / count)
            if values:
                assert constant.range_map[row, column] == pytest.approx(statistics.median(values))
    assert (constant.returns == (constant.return_share >= 0.5)).all()


def test_no_constant_has_a_smaller_mean_absolute_error():
    given = maps(7)
    stack, best = np.stack(given), constant_map(given).range_map

    def error(guess):
        return np.abs(stack - guess)[stack > 0].mean()

    rng = np.random.default_rng(1)
    for _ in range(20):
        assert error(best) <= error(best + rng.normal(0, 1, best.shape)) + 1e-6


def test_a_ray_that_never_returned_gets_a_range_from_its_row_and_no_return():
    given = [np.array([[10.0, 0, 30], [0, 0, 0]], np.float32)]
    constant = constant_map(given)
    np.testing.assert_array_equal(constant.range_map, [[10, 20, 30], [20, 20, 20]])
    np.testing.assert_array_equal(constant.returns, [[True, False, True], [False] * 3])
    assert not constant_map([np.zeros((2, 3), np.float32)]).range_map.any()


def test_library_finds_the_sweep_it_holds_also_after_noise():
    given = maps(20, shape=(16, 64))
    library = SweepLibrary(given)
    for k in (0, 7, 19):
        assert library.nearest(given[k] * np.float32(1.02)) is given[k]
