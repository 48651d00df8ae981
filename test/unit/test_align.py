# SPDX-License-Identifier: Apache-2.0
"""Ray alignment maps against the slow way: project one point at a time."""

import numpy as np
import pytest

from lidargen_ros.cameras.align import align, atlas, supposed_depths
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.sensors import Sensor

TILE = (88, 160)
HYPOTHESES = ("ground", 6.0, 1000.0)


@pytest.fixture(scope="module")
def parts():
    rig = load_rig("published")
    sensor = Sensor("small", np.linspace(10, -25, 16), 72)
    return rig, sensor, align(rig, sensor, tile=TILE, hypotheses=HYPOTHESES, lidar_height=1.8)


def test_each_ray_finds_the_pixel_that_sees_it(parts):
    rig, sensor, aligned = parts
    depths = supposed_depths(sensor, HYPOTHESES, 1.8)
    rng = np.random.default_rng(1)
    checked = 0
    for k, r, c in zip(
        rng.integers(0, 3, 200), rng.integers(0, 16, 200), rng.integers(0, 72, 200), strict=True
    ):
        point = sensor.directions()[r, c] * depths[k, r, c]
        seen = [i for i, view in enumerate(rig.scaled(160, 88)) if view.project(point)[1]]
        assert (aligned.mask[k, r, c] > 0) == bool(seen)
        if not seen:
            continue
        index = int(aligned.view[k, r, c])
        assert index in seen
        pixel, _ = rig.scaled(160, 88).views[index].project(point)
        x = (aligned.grid[k, r, c, 0] + 1) / 2 * 160 - 0.5
        y = (aligned.grid[k, r, c, 1] + 1) / 2 * 88 * 3 - 0.5 - index * 88
        assert np.allclose([x, y], np.clip(pixel, 0, [159, 87]), atol=1e-3)
        checked += 1
    assert checked > 50


def test_the_ground_hypothesis_lies_on_the_ground(parts):
    _, sensor, _ = parts
    points = sensor.directions() * supposed_depths(sensor, HYPOTHESES, 1.8)[0][..., None]
    below = sensor.elevations_deg < -2.5
    assert np.allclose(points[below, :, 2], -1.8, atol=1e-4)


def test_a_missing_view_takes_only_its_own_rays(parts):
    _, _, aligned = parts
    mask = aligned.without([1])
    assert (mask[aligned.view == 1] == 0).all()
    assert (mask[aligned.view != 1] == aligned.mask[aligned.view != 1]).all()


def test_the_atlas_stacks_views():
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 255
    stacked = atlas([red, None, red], TILE)
    assert stacked.shape == (264, 160, 3)
    assert (stacked[:88, :, 0] == 255).all()
    assert not stacked[88:176].any()
