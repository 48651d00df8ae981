# SPDX-License-Identifier: Apache-2.0
"""A sweep and its points."""

import numpy as np
import pytest

from lidargen_ros.errors import InputError
from lidargen_ros.sensors import Sensor, load_sensor
from lidargen_ros.sweep import Sweep

SMALL = Sensor("small", [10.0, 0.0, -10.0], 8)


@pytest.fixture
def range_map():
    ranges = np.random.default_rng(1).uniform(1, 50, SMALL.shape).astype(np.float32)
    ranges[1, 3] = ranges[2, 0] = 0
    return ranges


def test_points_are_row_major_along_the_rays(range_map):
    sweep = Sweep(range_map, SMALL)
    points = sweep.points()
    assert points.shape == (22, 3)
    assert points.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), range_map[range_map > 0], rtol=1e-6)
    np.testing.assert_array_equal(sweep.returns, range_map > 0)
    organised = sweep.organised_points()
    np.testing.assert_array_equal(organised[sweep.returns], points)
    assert np.isnan(organised[~sweep.returns]).all()
    assert organised.dtype == np.float32


def test_empty_sweep():
    sweep = Sweep(np.zeros(SMALL.shape), SMALL)
    assert sweep.points().shape == (0, 3)
    assert sweep.range_map.dtype == np.float32
    np.testing.assert_array_equal(sweep.column_times, SMALL.column_times())


@pytest.mark.parametrize("name", ["range_map", "return_probability", "intensity"])
def test_wrong_shape_is_named(range_map, name):
    arrays = {"range_map": range_map, name: range_map[:, 1:]}
    with pytest.raises(InputError, match=name):
        Sweep(sensor=SMALL, **arrays)
    with pytest.raises(InputError, match="pandar128"):
        Sweep(range_map, load_sensor("pandar128"))
