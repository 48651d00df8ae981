# SPDX-License-Identifier: Apache-2.0
"""Bird's-eye histograms, JSD and MMD against loops over cells and pairs."""

import math

import numpy as np
import pytest

from lidargen_ros.metrics.histograms import (
    birds_eye_histogram,
    jensen_shannon_distance,
    jensen_shannon_divergence,
    maximum_mean_discrepancy,
)


def slow_histogram(points):
    counts = np.zeros((100, 100))
    for x, y, z in points:
        if 3 < math.sqrt(x * x + y * y + z * z) < 70:
            counts[math.floor((x + 80) / 1.6), math.floor((y + 80) / 1.6)] += 1
    return counts


def slow_divergence(p, q):
    p, q = p / p.sum(), q / q.sum()
    total = 0.0
    for a, b in zip(p.ravel(), q.ravel(), strict=True):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a else 0) / 2 + (b * math.log(b / m) if b else 0) / 2
    return total


def slow_mmd(p, q):
    def kernel(a, b):
        return math.exp(-(((a / a.sum() - b / b.sum()) ** 2).sum()) / (2 * 0.5**2))

    def mean(a, b):
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    return mean(p, p) + mean(q, q) - 2 * mean(p, q)


def histograms(seed, count):
    rng = np.random.default_rng(seed)
    return [birds_eye_histogram(rng.normal(seed, 20, (400, 3))) for _ in range(count)]


def test_histogram_equals_the_loop():
    points = np.random.default_rng(0).uniform(-79, 79, (3000, 3)) * [1, 1, 0.2]
    np.testing.assert_array_equal(birds_eye_histogram(points), slow_histogram(points))


def test_histogram_leaves_out_its_limits():
    points = np.array([[3.0, 0, 0], [70.0, 0, 0], [3.001, 0, 0], [0, 69.9, 0]])
    assert birds_eye_histogram(points).sum() == 2


def test_jsd_equals_the_loop_and_its_printed_form_is_the_root():
    p, q = histograms(0, 3), histograms(1, 4)
    divergence = slow_divergence(sum(p), sum(q))
    assert jensen_shannon_divergence(p, q) == pytest.approx(divergence)
    assert jensen_shannon_distance(p, q) == pytest.approx(math.sqrt(divergence))


def test_jsd_of_equal_and_of_disjoint_sets():
    left, right = np.zeros((100, 100)), np.zeros((100, 100))
    left[0, 0], right[50, 50] = 7, 3
    assert jensen_shannon_distance([left], [left]) == pytest.approx(0, abs=1e-9)
    assert jensen_shannon_divergence([left], [right]) == pytest.approx(math.log(2))


def test_mmd_equals_the_loop():
    p, q = histograms(0, 3), histograms(1, 4)
    assert maximum_mean_discrepancy(p, q) == pytest.approx(slow_mmd(p, q))
    assert maximum_mean_discrepancy(p, p) == pytest.approx(0, abs=1e-12)


def test_mmd_of_two_single_cells():
    left, right = np.zeros((100, 100)), np.zeros((100, 100))
    left[0, 0], right[50, 50] = 7, 3
    assert maximum_mean_discrepancy([left], [right]) == pytest.approx(2 - 2 * math.exp(-2 / 0.5))
