# SPDX-License-Identifier: Apache-2.0
"""The sweep before this one: where its points are now, and that host and device agree on it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lidargen_ros.carry import carry
from lidargen_ros.range_coding import encode_log
from lidargen_ros.sensors import Sensor, load_sensor

SENSOR = Sensor("small", np.linspace(10, -20, 16), columns=72)


def pose(yaw_deg: float = 0.0, x: float = 0.0, pitch_deg: float = 0.0) -> np.ndarray:
    m = np.eye(4)
    m[:3, :3] = Rotation.from_euler("zy", [yaw_deg, pitch_deg], degrees=True).as_matrix()
    m[0, 3] = x
    return m


def sweep(seed: int = 0, sensor: Sensor = SENSOR) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ranges = rng.uniform(2, 100, sensor.shape).astype(np.float32)
    return ranges * (rng.random(sensor.shape) > 0.3)


def test_standing_still_changes_nothing():
    ranges = sweep()
    code, sign = carry(ranges, ranges > 0, SENSOR, np.eye(4))
    assert np.array_equal(sign, np.where(ranges > 0, 1, -1))
    assert np.allclose(code[ranges > 0], encode_log(ranges[ranges > 0], 0.5, 120.0), atol=1e-4)
    assert (code[ranges == 0] == 1).all()


def test_turning_by_a_column_shifts_the_columns():
    ranges = sweep()
    code, sign = carry(ranges, ranges > 0, SENSOR, pose(yaw_deg=np.rad2deg(SENSOR.column_step_rad)))
    still = carry(ranges, ranges > 0, SENSOR, np.eye(4))
    assert np.allclose(np.stack([code, sign]), np.roll(still, 1, axis=-1), atol=1e-4)


def test_a_wall_ahead_comes_nearer_when_driving():
    directions = SENSOR.directions()
    ahead = directions[..., 0] > 0.5
    ranges = np.where(ahead, 20 / np.maximum(directions[..., 0], 0.5), 0).astype(np.float32)
    code, sign = carry(ranges, ranges > 0, SENSOR, pose(x=-2.0))
    centre = (directions[..., 0] > 0.9) & (sign > 0)
    assert centre.sum() > 50
    assert np.allclose(code[centre], encode_log(18 / directions[..., 0], 0.5, 120.0)[centre], atol=0.01)


def test_what_is_believed_of_a_return_moves_with_it():
    ranges = np.zeros(SENSOR.shape, np.float32)
    ranges[8, 10] = 20.0
    probability = np.full(SENSOR.shape, 0.1, np.float32)
    probability[8, 10], probability[3, 5] = 0.75, 0.45
    _, belief = carry(ranges, probability, SENSOR, pose(yaw_deg=np.rad2deg(SENSOR.column_step_rad)))
    assert belief[8, 11] == pytest.approx(0.5)
    assert belief[3, 6] == pytest.approx(-0.1)
    assert belief[0, 0] == pytest.approx(-0.8)


def test_the_device_agrees_with_the_host():
    torch = pytest.importorskip("torch")
    from lidargen_ros.models.carry import carry as on_device

    for sensor in (SENSOR, load_sensor("pandar128").with_columns(360)):
        for motion in (np.eye(4), pose(3.0, -1.5), pose(-7.0, 0.4, pitch_deg=1.0)):
            ranges = sweep(1, sensor)
            # Some of the empty rays have a probability above one half: their range was beyond the limits.
            probability = np.random.default_rng(2).random(sensor.shape).astype(np.float32)
            probability = np.where(ranges > 0, 0.5 + probability / 2, 0.7 * probability)
            expected = carry(ranges, probability, sensor, motion)
            found = on_device(
                torch.from_numpy(ranges)[None], torch.from_numpy(probability)[None],
                torch.tensor(sensor.directions())[None], torch.tensor(motion[None], dtype=torch.float32),
                sensor.min_range_m, sensor.max_range_m,
            )[0].numpy()  # fmt: skip
            differs = np.abs(found - expected).max(0) > 1e-3  # float32 at the edge between two rays
            assert differs.mean() < 0.005
