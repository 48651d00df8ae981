# SPDX-License-Identifier: Apache-2.0
"""Sensors: tables, rays, times, look-ups of rays, and what is refused."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lidargen_ros.errors import CalibrationError, ConfigError
from lidargen_ros.sensors import Sensor, list_sensors, load_sensor


@st.composite
def sensors(draw):
    top = draw(st.floats(-40, 60))
    steps = draw(st.lists(st.floats(0.05, 5), min_size=0, max_size=12))
    elevations = top - np.cumsum([0.0, *steps])
    span = draw(st.sampled_from([360.0, 120.0, 33.3]))
    return Sensor(
        "drawn",
        np.clip(elevations, -90, 90) if elevations[-1] > -90 else elevations[elevations > -90],
        draw(st.integers(1, 50)),
        azimuth_start_deg=draw(st.floats(-180, 180)),
        azimuth_span_deg=span,
        clockwise=draw(st.booleans()),
    )


@pytest.mark.parametrize("name", list_sensors())
def test_ready_sensors(name):
    sensor = load_sensor(name)
    assert sensor.name == name
    assert sensor.source
    assert Sensor.from_dict(sensor.to_dict()) == sensor
    assert not np.shares_memory(sensor.directions(edge=True), sensor.directions())


def test_the_nine_sensors_of_the_trade():
    names = (
        "Pandar128",
        "AT128",
        "OS1-128",
        "OS1-64",
        "OS0-128",
        "VLP-16",
        "VLP-32C",
        "HDL-64E",
        "Alpha Prime",
    )
    rows = [load_sensor(n).rows for n in names]
    assert rows == [128, 128, 128, 64, 128, 16, 32, 64, 128]


def test_default_sensor_conventions():
    sensor = load_sensor("pandar128")
    assert sensor.shape == (128, 1800)
    rays = sensor.directions()
    assert rays.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-6)
    horizon = int(np.abs(sensor.elevations_deg).argmin())
    # Column 0 just right of straight back, a quarter later left, then forward, then right: clockwise from above.
    quarter = rays[horizon, [0, 450, 900, 1350]]
    np.testing.assert_allclose(quarter, [[-1, 0, 0], [0, 1, 0], [1, 0, 0], [0, -1, 0]], atol=2e-3)
    assert rays[horizon, 0, 1] > 0
    assert rays[horizon, 899, 1] > 0 > rays[horizon, 900, 1]
    assert (np.diff(rays[:, 0, 2]) < 0).all()
    with pytest.raises(ValueError, match="read-only"):
        rays[0] = 0


def test_offsets_move_times_not_rays():
    sensor = load_sensor("pandar128")
    plain = Sensor("plain", sensor.elevations_deg, sensor.columns)
    np.testing.assert_array_equal(plain.directions(), sensor.directions())
    np.testing.assert_allclose(
        plain.ray_times(), np.broadcast_to(plain.column_times(), plain.shape), atol=1e-12
    )
    times = sensor.ray_times()
    assert times.min() >= 0
    assert times.max() <= sensor.spin_time_s
    late = (times - plain.ray_times() + 0.05) % 0.1 - 0.05
    # A clockwise head reaches an azimuth later with a beam that points counter-clockwise of it.
    np.testing.assert_allclose(late[:, 7], sensor.azimuth_offsets_deg / 360 * 0.1, atol=1e-9)
    assert np.abs(late).max() == pytest.approx(2.16e-3, rel=0.05)


@given(sensors())
def test_round_trip(sensor):
    assert Sensor.from_dict(sensor.to_dict()) == sensor
    assert hash(Sensor.from_dict(sensor.to_dict())) == hash(sensor)


@given(sensors())
def test_rays_find_their_own_row_and_column(sensor):
    rays = sensor.directions(dtype=np.float64)
    azimuth = np.arctan2(rays[0, :, 1], rays[0, :, 0])
    np.testing.assert_array_equal(sensor.columns_of(azimuth), np.arange(sensor.columns))
    elevation = np.arcsin(rays[:, 0, 2])
    np.testing.assert_array_equal(sensor.rows_of(elevation), np.arange(sensor.rows))


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=20), sensors())
def test_columns_of_any_azimuth(azimuths, sensor):
    columns = sensor.columns_of(np.array(azimuths))
    low = 0 if sensor.full_turn else -1
    assert (columns >= low).all()
    assert (columns < sensor.columns).all()
    inside = columns >= 0
    gap = np.array(azimuths)[inside] - sensor.azimuths()[columns[inside]]
    gap = (gap + np.pi) % (2 * np.pi) - np.pi
    assert (np.abs(gap) <= abs(sensor.column_step_rad) / 2 + 1e-9).all()


@settings(max_examples=60)
@given(sensors(), sensors())
def test_nearest_rays_are_the_nearest(mine, other):
    assume(abs(mine.column_step_rad) < np.pi)  # wider columns have their nearest ray past the pole
    rows, columns = mine.nearest_rays(other)
    assert rows.shape == columns.shape == other.shape
    own, theirs = mine.directions(dtype=np.float64), other.directions(dtype=np.float64)
    best = np.einsum("ijk,xyk->xyij", own, theirs).max(axis=(2, 3))
    found = (own[rows, columns] * theirs).sum(-1)
    # Rays past the poles' neighbourhood of a partial turn are documented to get the outermost one.
    inside = mine.covers(other)
    np.testing.assert_allclose(found[inside], best[inside], atol=1e-9)
    assert ((rows >= 0) & (rows < mine.rows) & (columns >= 0) & (columns < mine.columns)).all()


def test_nearest_rays_between_real_sensors():
    mine, puck = load_sensor("pandar128"), load_sensor("vlp16")
    rows, columns = mine.nearest_rays(puck)
    assert mine.covers(puck)[1:13].all()
    gap = np.degrees(np.arccos((mine.directions()[rows, columns] * puck.directions()).sum(-1).clip(-1, 1)))
    assert gap[1:].max() < 0.5
    np.testing.assert_array_equal(mine.nearest_rays(mine)[0], np.arange(128)[:, None] + np.zeros(1800, int))


def test_covers_leaves_out_the_rest():
    front, turn = load_sensor("at128"), load_sensor("pandar128")
    seen = front.covers(turn)
    azimuth = np.degrees(turn.azimuths())
    np.testing.assert_array_equal(seen.any(axis=0), np.abs(azimuth) < 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elevations_deg": [1.0, 2.0]}, "highest beam"),
        ({"elevations_deg": [1.0, 1.0]}, "highest beam"),
        ({"elevations_deg": [float("nan"), 2.0]}, "90"),
        ({"elevations_deg": [100.0, 2.0]}, "90"),
        ({"elevations_deg": []}, "list"),
        ({"azimuth_offsets_deg": [1.0]}, "one number per row"),
        ({"azimuth_offsets_deg": [1.0, float("inf")]}, "finite"),
        ({"columns": 0}, "columns"),
        ({"azimuth_span_deg": 361.0}, "span"),
        ({"azimuth_span_deg": float("nan")}, "finite"),
        ({"min_range_m": 10.0, "max_range_m": 5.0}, "range limits"),
        ({"min_range_m": -1.0}, "range limits"),
        ({"spin_time_s": 0.0}, "spin_time"),
    ],
)
def test_implausible_sensors_are_refused(change, message):
    data = {"name": "broken", "elevations_deg": [1.0, 0.0], "columns": 4} | change
    with pytest.raises(CalibrationError, match=message) as e:
        Sensor.from_dict(data)
    assert "broken" in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ncolumns: 3\n", "missing"),
        ("name: x\ncolumns: 3\nelevations_deg: [1.0]\nelevation_deg: 3\n", "unknown"),
        ("name: x\ncolumns: many\nelevations_deg: [1.0]\n", "number"),
        ("name: x\ncolumns: 3\nelevations_deg: [a]\n", "number"),
        ("name: x\ncolumns: 3\nelevations_deg: {top: 1}\n", "rows"),
        ("- 1\n", "mapping"),
        ("a: [", "cannot be read"),
        ("base: nothing\nname: x\n", "not known"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_sensor(path)


def test_own_sensor_from_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nbase: vlp16\ncolumns: 900\nelevations_deg: {top: 10, bottom: -10, rows: 5}\n")
    sensor = load_sensor(path)
    np.testing.assert_allclose(sensor.elevations_deg, [10, 5, 0, -5, -10])
    assert sensor.columns == 900
    assert sensor.max_range_m == load_sensor("vlp16").max_range_m
    with pytest.raises(ConfigError, match="cannot be read"):
        load_sensor(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="pandar128"):
        load_sensor("no such sensor")
