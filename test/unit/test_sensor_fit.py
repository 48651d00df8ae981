# SPDX-License-Identifier: Apache-2.0
"""Known sensors are found again from their clouds; clouds that tell nothing are refused."""

import numpy as np
import pytest
import typer
from toy_bag import ToyBag
from toy_world import ToyWorld
from typer.testing import CliRunner

from lidargen_ros.bags.cloud_files import read_cloud, read_clouds
from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.errors import CalibrationError, DataError
from lidargen_ros.sensor_fit import fit_sensor, register
from lidargen_ros.sensors import Sensor, load_sensor


def scene_cloud(sensor, seed=0, jitter_deg=0.01, noise_m=0.02, offsets=True):
    """Ground and ragged walls seen by a sensor, in firing order, a fifth of the returns missing."""
    rng = np.random.default_rng(seed)
    d = sensor.directions(dtype=np.float64)
    ranges = np.where(d[..., 2] < 0, 1.8 / np.maximum(-d[..., 2], 1e-3), 200.0)
    ranges = np.minimum(ranges, 15 + 40 * rng.random(sensor.columns))
    ranges += rng.normal(0, noise_m, ranges.shape)
    e = sensor.elevations()[:, None] + np.deg2rad(rng.normal(0, jitter_deg, ranges.shape))
    a = np.broadcast_to(sensor.azimuths(), ranges.shape)
    points = ranges[..., None] * np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1)
    times = sensor.ray_times() if offsets else np.broadcast_to(sensor.column_times(), ranges.shape)
    rows = np.broadcast_to(np.arange(sensor.rows)[:, None], ranges.shape)
    seen = rng.random(ranges.shape) > 0.2
    order = np.argsort(times[seen], kind="stable")
    return points[seen][order].astype(np.float32), rows[seen][order].astype(np.int32), times[seen][order]


@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("name", ["pandar128", "at128", "vlp16"])
def test_ready_sensors_are_found_again(name, ring):
    sensor = load_sensor(name)
    points, rows, times = scene_cloud(sensor)
    from_below = sensor.rows - 1 - rows
    fit = fit_sensor([Cloud(points, ring=from_below if ring else None, time_s=times)])
    found = fit.sensor
    np.testing.assert_allclose(found.elevations_deg, sensor.elevations_deg, rtol=0, atol=0.01)
    assert abs(found.columns - sensor.columns) <= 2
    assert found.clockwise == sensor.clockwise
    assert abs(found.azimuth_span_deg - sensor.azimuth_span_deg) < 0.5
    # Offsets of the rows spread the azimuths at which a turn begins.
    assert abs((found.azimuth_start_deg - sensor.azimuth_start_deg + 180) % 360 - 180) < 1.5
    assert abs(found.spin_time_s - sensor.spin_time_s) < 0.002
    if ring:
        np.testing.assert_array_equal(fit.ring_rows, np.arange(sensor.rows)[::-1])
    else:
        assert fit.ring_rows is None
        assert "no ring field" in fit.notes[0]
    assert fit.counts.sum() > 0.5 * len(points)
    assert (fit.residual_deg < 0.02).all()


def test_azimuth_offsets_of_the_rows():
    sensor = load_sensor("pandar128")
    points, rows, times = scene_cloud(sensor)
    found = fit_sensor([Cloud(points, ring=rows, time_s=times)]).sensor
    mean = sensor.azimuth_offsets_deg.mean()
    np.testing.assert_allclose(
        found.azimuth_offsets_deg, sensor.azimuth_offsets_deg - mean, rtol=0, atol=0.25
    )


@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("start", [180.0, 0.0, -90.0])
def test_direction_and_start(clockwise, start):
    sensor = Sensor("s", np.linspace(10, -20, 16), 600, azimuth_start_deg=start, clockwise=clockwise)
    points, rows, times = scene_cloud(sensor)
    for cloud in (Cloud(points, ring=rows, time_s=times), Cloud(points, ring=rows)):  # by time, by order
        found = fit_sensor([cloud]).sensor
        assert found.clockwise == clockwise
        assert abs((found.azimuth_start_deg - start + 180) % 360 - 180) < 1.5


def test_spins_that_begin_anywhere():
    clouds = []
    for start in (0.0, 100.0, 200.0, 300.0):
        sensor = Sensor("s", np.linspace(10, -20, 16), 600, azimuth_start_deg=start)
        points, rows, times = scene_cloud(sensor)
        clouds.append(Cloud(points, ring=rows, time_s=times))
    fit = fit_sensor(clouds)
    assert fit.sensor.azimuth_start_deg == 180.0
    assert any("changing azimuths" in note for note in fit.notes)


@pytest.mark.parametrize("transposed", [False, True])
def test_organised_clouds_tell_rows_without_a_ring_field(transposed):
    """Ouster has rings as rows of the message, Velodyne as columns."""
    sensor = Sensor("s", np.linspace(10, -20, 16), 600)
    points, rows, times = scene_cloud(sensor)
    columns = np.rint(times / sensor.spin_time_s * 600 - 0.5).astype(np.int32)
    cell = np.stack([columns, rows] if transposed else [rows, columns], axis=-1)
    shape = (600, 16) if transposed else (16, 600)
    fit = fit_sensor([Cloud(points, cell=cell, shape=shape)])
    np.testing.assert_allclose(fit.sensor.elevations_deg, sensor.elevations_deg, rtol=0, atol=0.01)
    assert fit.sensor.columns == 600
    assert fit.sensor.clockwise


def test_rings_with_too_few_points_are_named():
    sensor = Sensor("s", np.linspace(10, -20, 16), 600)
    points, rows, _ = scene_cloud(sensor)
    kept = (rows != 4) | (np.cumsum(rows == 4) <= 5)
    fit = fit_sensor([Cloud(points[kept], ring=rows[kept])])
    assert fit.sensor.rows == 15
    assert fit.ring_rows[4] == -1
    assert any("rings [4]" in note for note in fit.notes)


def test_clouds_that_tell_nothing():
    with pytest.raises(CalibrationError, match="no cloud with points"):
        fit_sensor([Cloud(np.zeros((0, 3), np.float32))])
    rng = np.random.default_rng(0)
    ball = rng.normal(0, 1, (20_000, 3))
    ball = (ball / np.linalg.norm(ball, axis=1, keepdims=True) * 10).astype(np.float32)
    with pytest.raises(CalibrationError, match="form no rows"):
        fit_sensor([Cloud(ball)])
    with pytest.raises(CalibrationError, match="no ring has"):
        fit_sensor([Cloud(ball[:5], ring=np.arange(5, dtype=np.int32))])


def test_real_keyframe(golden):
    """A public HDL-32E keyframe, if it lies beside the vectors: nominal rows are 1.33 deg apart from 10.67 deg."""
    path = golden("geometry").parents[1] / "real" / "nuscenes_sample" / "lidar.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    fit = fit_sensor([read_cloud(path)])
    assert fit.sensor.rows == 32
    nominal = 10.67 - np.arange(32) * 1.333
    assert np.abs(fit.sensor.elevations_deg - nominal).max() < 0.35


def write_pcd(path, table, kind):
    names = "x y z intensity ring"
    head = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {names}\nSIZE 4 4 4 4 2\nTYPE F F F F U\nCOUNT 1 1 1 1 1\n"
        f"WIDTH {len(table)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(table)}\nDATA {kind}\n"
    ).encode()
    if kind == "ascii":
        body = "".join(" ".join(f"{v:g}" for v in row) + "\n" for row in table).encode()
    else:
        dtype = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("i", "<f4"), ("ring", "<u2")])
        body = np.array([tuple(row) for row in table], dtype).tobytes()
    path.write_bytes(head + body)


def test_cloud_files(tmp_path):
    table = np.array([[1, 2, 3, 0.5, 7], [4, 5, 6, 0.25, 8], [7, 8, 9, 1, 9]], np.float32)
    np.save(tmp_path / "a.npy", table)
    np.savez(tmp_path / "b.npz", points=table)
    np.savez(tmp_path / "c.npz", xyz=table[:, :3], intensity=table[:, 3], ring=table[:, 4].astype(int))
    np.savez(
        tmp_path / "d.npz", x=table[:, 0], y=table[:, 1], z=table[:, 2], row=table[:, 4].astype(np.uint8)
    )
    table[:, :4].tofile(tmp_path / "e.bin")
    table.tofile(tmp_path / "f.pcd.bin")
    write_pcd(tmp_path / "g.pcd", table, "ascii")
    write_pcd(tmp_path / "h.pcd", table, "binary")
    for path in sorted(tmp_path.iterdir()):
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.points, table[:, :3])
        if path.name != "d.npz":
            np.testing.assert_array_equal(cloud.intensity, table[:, 3])
        if path.name != "e.bin":
            np.testing.assert_array_equal(cloud.ring, [7, 8, 9])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"nothing"),
        ("b.npz", b"nothing"),
        ("c.bin", b"12345"),
        ("d.pcd", b"nothing"),
        ("e.pcd", b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 9\nHEIGHT 1\nDATA binary\n1234"),
        ("f.pcd", b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 1\nHEIGHT 1\nDATA binary_compressed\n1234"),
        ("g.pcd", b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 1\nHEIGHT 1\nDATA ascii\n1 two 3\n"),
        ("h.txt", b"1 2 3"),
    ],
)
def test_damaged_cloud_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_clouds([tmp_path / name])


def test_command(tmp_path):
    bag = ToyBag(seconds=0.3).write(tmp_path / "bag")
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(
        app, ["sensors", "fit", str(bag), "--out", str(tmp_path / "my.yaml"), "--name", "my"]
    )
    assert result.exit_code == 0, result.output
    found = load_sensor(tmp_path / "my.yaml")
    assert found.name == "my"
    np.testing.assert_allclose(found.elevations_deg, ToyWorld().sensor.elevations_deg, atol=1e-3)
    assert found.columns == 360
    listed = CliRunner().invoke(app, ["sensors", "list"])
    assert "pandar128" in listed.output
    with pytest.raises(DataError, match="/lidar/points"):
        CliRunner().invoke(app, ["sensors", "fit", str(bag), "--topic", "/other"], catch_exceptions=False)
