# SPDX-License-Identifier: Apache-2.0
"""Public data sets in their folder layouts, made of the toy world: the clips hold what its rays measured."""

import gzip
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from toy_folders import T0_US, NuScenes, write_kitti, write_pandaset
from toy_world import FAR, ToyWorld

from lidargen_ros.bags.clips import ClipReader
from lidargen_ros.errors import ConfigError, DataError
from lidargen_ros.sensors import Sensor
from training.data.convert import ConvertOptions, convert
from training.data.sources import folder_drives, list_sources, load_source
from training.data.summary import write_summary

pytest.importorskip("av")
SENSOR = Sensor("toy", np.linspace(8, -20, 8), 180, spin_time_s=0.1, max_range_m=FAR)
WORLD = ToyWorld(sensor=SENSOR, width=64, height=48, focal=40.0, speed=12.0)


def options(defaults=None, **more):
    return ConvertOptions(**{"min_spins": 2, **(defaults or {}), **more})


def check(root, clip, world, shift_s=0.0, t0_us=T0_US, share=0.98, atol=0.15):
    """Spins, by their own start times, are those of the world; returns the reader's frames."""
    with ClipReader(root, clip, ()) as reader:
        first = None
        for frame in reader.frames:
            start = (reader.times_us(frame)[0] - t0_us) * 1e-6 + shift_s
            turns = start / world.sensor.spin_time_s
            assert abs(turns - round(turns)) < 0.02
            start = round(turns) * world.sensor.spin_time_s
            found, expected = reader.range_map(frame), world.spin(start)
            both = (found > 0) & (expected > 0)
            assert both.sum() >= share * (expected > 0).sum()
            assert np.quantile(np.abs(found - expected)[both], 0.95) < atol
            first = start if first is None else first
            origin = np.linalg.inv(world.body(first) @ world.lidar_in_body)
            expected_pose = origin @ world.body(start) @ world.lidar_in_body
            np.testing.assert_allclose(reader.lidar_to_world(frame)[0], expected_pose, atol=0.03)
        return reader.frames


def test_kitti(tmp_path):
    world = replace(WORLD, sensor=replace(SENSOR, clockwise=False))
    sensor = tmp_path / "toy.yaml"
    sensor.write_text(yaml.safe_dump(world.sensor.to_dict()))
    root = write_kitti(tmp_path / "kitti", world)
    drives, _ = folder_drives("kitti_raw", root, ["image_02=camera_front_wide_120fov"], str(sensor))
    (drive,) = drives
    summary = convert(drive, tmp_path / "out", options())
    assert drive.name == drive.group == "2011_09_26_drive_0001_sync"
    assert summary.spins_kept == 8
    check(tmp_path / "out", summary.clips[0], world)
    with ClipReader(tmp_path / "out", summary.clips[0], ("camera_front_wide_120fov",)) as reader:
        expected = np.linalg.inv(world.lidar_in_body) @ world.camera_in_body(0)
        found = reader.camera_to_lidar(reader.frames[3], reader.cameras[0])
        np.testing.assert_allclose(found, expected, atol=5e-3)
        error = np.abs(reader.image(3, reader.cameras[0]).astype(int) - world.picture(0, 0.3))
        assert np.median(error) < 6


def test_kitti_with_its_own_scanner(tmp_path):
    """Without a sensor file: the nominal HDL-64E, counter-clockwise from straight back."""
    root = write_kitti(tmp_path, replace(WORLD, sensor=replace(SENSOR, clockwise=False)), frames=3)
    (drive,) = folder_drives("kitti_raw", root / "2011_09_26")[0]
    assert drive.sensor.rows == 64
    assert not drive.sensor.clockwise
    assert drive.sensor.spin_time_s == pytest.approx(0.1)
    summary = convert(drive, tmp_path / "out", options())
    assert summary.spins_kept == 3
    assert any("nominal table" in note for note in summary.notes)


def test_nuscenes(tmp_path):
    world = replace(WORLD, sensor=replace(SENSOR, spin_time_s=0.05, azimuth_start_deg=90.0))
    root = NuScenes(world).write(tmp_path / "nuscenes")
    (first, _), _ = folder_drives("nuscenes", root)
    np.testing.assert_allclose(first.sensor.elevations_deg, SENSOR.elevations_deg, atol=0.15)
    assert abs(first.sensor.columns - 180) <= 2
    assert abs(first.sensor.azimuth_start_deg - 90) < 4
    sensor = tmp_path / "toy.yaml"
    sensor.write_text(yaml.safe_dump(world.sensor.to_dict()))
    drives, defaults = folder_drives("nuscenes", root, sensor=str(sensor))
    found = []
    for drive in drives:
        assert drive.group == "n015-toy"
        assert drive.sensor.rows == 8
        assert drive.sensor.clockwise
        summary = convert(drive, tmp_path / "out", options(defaults))
        # Pictures come at 12 Hz, turns at 20 Hz: each picture goes with one turn.
        assert 8 <= summary.spins_kept <= 13
        check(tmp_path / "out", summary.clips[0], world, share=0.97, atol=0.25)
        with ClipReader(tmp_path / "out", summary.clips[0], tuple(drive.views)) as reader:
            start = (reader.times_us(reader.frames[2])[0] - T0_US) * 1e-6
            times = np.load(tmp_path / "out" / "image_times" / f"{summary.clips[0]}.npz")
            for i, camera in enumerate(reader.cameras):
                t = (times[camera][int(reader.frames[2])] - T0_US) * 1e-6
                then = np.linalg.inv(world.body(start) @ world.lidar_in_body) @ world.body(t)
                expected = then @ world.camera_in_body(i)
                np.testing.assert_allclose(
                    reader.camera_to_lidar(reader.frames[2], camera), expected, atol=0.01
                )
        write_summary(tmp_path / "out", summary, 0.5)
        found.append(summary.clips[0])
    assert len(found) == 2
    lists = [(tmp_path / "out" / f"{name}.lst").read_text().split() for name in ("train", "val")]
    assert sorted(lists, key=len) == [[], sorted(found)] or sorted(lists, key=len) == [[], found]


def test_pandaset(tmp_path):
    pytest.importorskip("pandas")
    root = write_pandaset(tmp_path / "pandaset", WORLD)
    drives, defaults = folder_drives("pandaset", root, ["front_camera=a", "left_camera=b", "right_camera=c"])
    (drive,) = drives
    summary = convert(drive, tmp_path / "out", options(defaults))
    assert drive.name == "001"
    assert summary.spins_kept == 8
    check(tmp_path / "out", summary.clips[0], WORLD)
    with ClipReader(tmp_path / "out", summary.clips[0], ("a", "b", "c")) as reader:
        for i, camera in enumerate(reader.cameras):
            expected = np.linalg.inv(WORLD.lidar_in_body) @ WORLD.camera_in_body(i)
            np.testing.assert_allclose(reader.camera_to_lidar(0, camera), expected, atol=5e-3)


def test_pickles_run_no_code(tmp_path):
    pytest.importorskip("pandas")
    root = write_pandaset(tmp_path, WORLD, frames=3)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    with gzip.open(root / "001" / "lidar" / "00.pkl.gz", "wb") as file:
        pickle.dump(Evil(), file)
    with pytest.raises(DataError, match="does not belong into a table"):
        list(folder_drives("pandaset", root)[0])
    assert not marker.exists()
    with gzip.open(root / "001" / "lidar" / "00.pkl.gz", "wb") as file:
        pickle.dump({"x": 1}, file)
    with pytest.raises(DataError, match="not a table with"):
        list(folder_drives("pandaset", root)[0])
    (root / "001" / "lidar" / "00.pkl.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match="not a cloud of PandaSet"):
        list(folder_drives("pandaset", root)[0])


def test_damaged_folders(tmp_path):
    for name in ("kitti_raw", "nuscenes", "pandaset"):
        with pytest.raises(DataError, match=str(tmp_path)):
            list(folder_drives(name, tmp_path)[0])
    world = replace(WORLD, sensor=replace(SENSOR, spin_time_s=0.05))
    root = NuScenes(world, seconds=0.4, scenes=1).write(tmp_path / "nuscenes")
    table = root / "v1.0-mini" / "sample_data.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([{**row, "ego_pose_token": "gone"} for row in rows]))
    with pytest.raises(DataError, match="do not fit together"):
        list(folder_drives("nuscenes", root)[0])
    table.write_text("[{")
    with pytest.raises(DataError, match=r"sample_data\.json"):
        list(folder_drives("nuscenes", root)[0])
    kitti = write_kitti(tmp_path / "kitti", WORLD, frames=3)
    drive = kitti / "2011_09_26" / "2011_09_26_drive_0001_sync"
    (drive / "velodyne_points" / "data" / "0000000001.bin").unlink()
    with pytest.raises(DataError, match="2 bin files for 3 times"):
        list(folder_drives("kitti_raw", kitti)[0])
    shutil.rmtree(drive / "image_02")
    with pytest.raises(DataError, match=r"incomplete|no list of times"):
        list(folder_drives("kitti_raw", kitti)[0])


def test_a_damaged_file_costs_its_spin_alone(tmp_path):
    world = replace(WORLD, sensor=replace(SENSOR, clockwise=False))
    sensor = tmp_path / "toy.yaml"
    sensor.write_text(yaml.safe_dump(world.sensor.to_dict()))
    root = write_kitti(tmp_path / "kitti", world)
    drive_folder = root / "2011_09_26" / "2011_09_26_drive_0001_sync"
    (drive_folder / "velodyne_points" / "data" / "0000000004.bin").write_bytes(b"12345")
    (drive_folder / "image_02" / "data" / "0000000006.png").write_bytes(b"broken")
    (drive,) = folder_drives("kitti_raw", root, ["image_02"], str(sensor))[0]
    summary = convert(drive, tmp_path / "out", options())
    assert summary.spins_kept == 6
    assert sum(summary.source_dropped.values()) == 1
    assert "0000000004.bin" in next(iter(summary.source_dropped))
    assert "0000000006.png" in next(iter(summary.frames_incomplete))


def test_loaders_are_found_by_file_name():
    assert {"kitti_raw", "nuscenes", "pandaset", "bag"} <= set(list_sources())
    with pytest.raises(ConfigError, match="choose one of"):
        load_source("waymo")
    with pytest.raises(ConfigError, match="from_bag"):
        folder_drives("bag", ".")
    with pytest.raises(ConfigError, match="twice"):
        folder_drives("nuscenes", ".", ["CAM_FRONT=a", "CAM_BACK=a"])
