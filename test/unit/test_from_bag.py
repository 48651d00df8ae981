# SPDX-License-Identifier: Apache-2.0
"""Bags of the toy world become clips whose content is known exactly; what is lost is counted with its reason."""

import contextlib
import json
import sqlite3
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import yaml
from toy_bag import CONFIG, START_NS, ToyBag
from toy_world import FAR, ToyWorld

from lidargen_ros.bags.clips import PUBLISHED_VIEWS, ClipReader
from lidargen_ros.errors import CalibrationError, ConfigError, DataError, LidargenError
from lidargen_ros.sensors import Sensor
from training.data.bag_config import load_bag_config
from training.data.convert import convert
from training.data.sources.bag import drives
from training.data.summary import as_dict, describe, read_drives, split_of, write_summary

pytest.importorskip("av")
SENSOR = Sensor("toy", np.linspace(8, -20, 8), 180, spin_time_s=0.1, max_range_m=FAR)
WORLD = ToyWorld(sensor=SENSOR, width=64, height=48, focal=40.0)
BAG = ToyBag(world=WORLD, seconds=1.2, picture_hz=10.0)


def config(tmp_path, *overrides, text=CONFIG):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_bag_config(path, ["clips.min_spins=2", *overrides])


def run(path, tmp_path, *overrides, out="data", text=CONFIG):
    """Convert a bag; returns the root and the summary. The bag is closed once its drive has been converted."""
    settings = config(tmp_path, *overrides, text=text)
    for drive in drives(path, settings):
        return tmp_path / out, convert(drive, tmp_path / out, settings.clips)
    raise AssertionError


def check_clip(root, clip, world=WORLD, first=0, count=12, atol=0.02, shift_s=0.0, share=0.99):
    """Range maps, poses and pictures are those of the world."""
    with ClipReader(root, clip) as reader:
        assert len(reader.frames) == count
        origin = np.linalg.inv(world.body(first * 0.1 + shift_s) @ world.lidar_in_body)
        for k, frame in enumerate(reader.frames):
            start = (first + k) * 0.1 + shift_s
            found, expected = reader.range_map(frame), world.spin(start)
            both = (found > 0) & (expected > 0)
            assert both.sum() >= share * (expected > 0).sum()
            assert ((found > 0) & ~both).sum() <= (1 - share) * both.sum()
            error = np.abs(found - expected)[both]
            assert np.quantile(error, 0.97) < atol + 0.001 * FAR  # edges may fall on either side; float16
            for pose, t in zip(reader.lidar_to_world(frame), (start, start + 0.1), strict=True):
                np.testing.assert_allclose(pose, origin @ world.body(t) @ world.lidar_in_body, atol=5e-3)
            assert reader.times_us(frame)[0] == pytest.approx(START_NS / 1000 + start * 1e6, abs=100)
        return reader.frames


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "ros1"])
def test_kinds_of_bags(kind, tmp_path):
    path = BAG.write(tmp_path / ("bag.bag" if kind == "ros1" else "bag"), kind)
    root, summary = run(path, tmp_path)
    assert summary.spins_read == summary.spins_kept == 12  # the last spin is kept
    assert summary.frames == 12
    assert not summary.spins_dropped
    assert not summary.frames_incomplete
    (clip,) = summary.clips
    frames = check_clip(root, clip)
    with ClipReader(root, clip) as reader:
        assert reader.fps == 10
        for i, camera in enumerate(PUBLISHED_VIEWS):
            for k in (0, 5, 11):
                error = np.abs(reader.image(frames[k], camera).astype(int) - WORLD.picture(i, k * 0.1))
                assert np.median(error) < 6  # JPEG, then video, of a small picture
            expected = np.linalg.inv(WORLD.lidar_in_body) @ WORLD.camera_in_body(i)
            np.testing.assert_allclose(reader.camera_to_lidar(frames[3], camera), expected, atol=5e-3)
    assert reader.intensity(frames[0]).max() <= 1


def test_humble_bags_without_message_definitions(tmp_path):
    """As Humble writes SQLite: metadata version 5, no hashes, no definitions in the file."""
    path = replace(BAG, seconds=0.5).write(tmp_path / "bag", "sqlite3")
    metadata = yaml.safe_load((path / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    information["version"] = 5
    information.pop("ros_distro", None)
    information.pop("custom_data", None)
    for topic in information["topics_with_message_count"]:
        topic["topic_metadata"].pop("type_description_hash", None)
        topic["topic_metadata"]["offered_qos_profiles"] = ""
    (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    (file,) = path.glob("*.db3")
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        for table in {"message_definitions", "schema", "metadata"} & set(tables):
            database.execute(f"drop table {table}")
    root, summary = run(path, tmp_path)
    check_clip(root, summary.clips[0], count=5)


@pytest.mark.parametrize("cloud", ["ouster", "hesai", "xyzirc", "xyz"])
def test_layouts_of_clouds(cloud, tmp_path):
    path = replace(BAG, cloud=cloud, seconds=0.6, rings_from_below=cloud != "ouster").write(tmp_path / "bag")
    root, summary = run(path, tmp_path)
    assert summary.spins_kept == 6
    check_clip(root, summary.clips[0], count=6)
    assert any("no ring field" in note for note in summary.notes) == (cloud == "xyz")


@pytest.mark.parametrize("cloud", ["velodyne", "xyzirc"])
def test_deskewed_clouds_are_undone(cloud, tmp_path):
    """Range maps hold what each ray measured at its own time, also where the driver moved the points."""
    fast = replace(WORLD, speed=25.0)
    path = replace(BAG, world=fast, deskewed=True, cloud=cloud, seconds=0.6).write(tmp_path / "bag")
    sensor = tmp_path / "sensor.yaml"
    sensor.write_text(yaml.safe_dump(SENSOR.to_dict()))
    options = ["lidar.deskewed=start", f"lidar.sensor={sensor}"]
    root, summary = run(path, tmp_path, *options)
    # Without times they are told by the azimuth, which the driver has changed a little.
    limits = {"atol": 0.05} if cloud == "velodyne" else {"atol": 0.3, "share": 0.98}
    check_clip(root, summary.clips[0], fast, count=6, **limits)
    wrong, summary = run(path, tmp_path, options[1], out="wrong")
    with pytest.raises(AssertionError):
        check_clip(wrong, summary.clips[0], fast, count=6, atol=0.05)


def test_turns_are_cut_where_column_0_begins(tmp_path):
    """The driver cuts ahead, the clip's sensor begins straight back: half a turn of two clouds each."""
    ahead = replace(WORLD, sensor=replace(SENSOR, azimuth_start_deg=0.0))
    path = replace(BAG, world=ahead).write(tmp_path / "bag")
    sensor = tmp_path / "sensor.yaml"
    sensor.write_text(yaml.safe_dump(SENSOR.to_dict()))
    root, summary = run(path, tmp_path, f"lidar.sensor={sensor}", "clips.spin_tolerance_s=0.06")
    assert summary.spins_kept == 11
    assert summary.source_dropped == {"half turn before the first whole one": 1}
    check_clip(root, summary.clips[0], WORLD, count=11, shift_s=0.05)
    # Without a sensor of one's own the clip takes the driver's cut.
    root, summary = run(path, tmp_path, out="own")
    assert summary.spins_kept == 12
    check_clip(root, summary.clips[0], ahead)


@pytest.mark.parametrize(
    ("motion", "overrides"),
    [
        ("tf", ["motion.topic=''"]),
        ("pose", ["motion.topic=/pose", "motion.child_frame=base_link"]),
    ],
)
def test_sources_of_motion(motion, overrides, tmp_path):
    path = replace(BAG, motion=motion, seconds=0.5).write(tmp_path / "bag")
    root, summary = run(path, tmp_path, *overrides)
    check_clip(root, summary.clips[0], count=5)


def test_a_vehicle_that_stands(tmp_path):
    still = replace(WORLD, speed=0.0, yaw_rate=0.0)
    path = replace(BAG, world=still, motion="none", seconds=0.5, log_offset_ns=10**18).write(tmp_path / "bag")
    with pytest.raises(DataError, match=r"motion\.stationary"):
        run(path, tmp_path, "motion.topic=''")
    root, summary = run(path, tmp_path, "motion.topic=''", "motion.stationary=true")
    check_clip(root, summary.clips[0], still, count=5)


def test_raw_pictures_and_recording_time_of_its_own(tmp_path):
    """Played back years later: recording times tell nothing, stamps everything."""
    path = replace(BAG, compressed=False, log_offset_ns=3 * 10**17, seconds=0.5).write(tmp_path / "bag")
    text = CONFIG.replace("/compressed", "")
    root, summary = run(path, tmp_path, text=text)
    check_clip(root, summary.clips[0], count=5)


def test_pictures_at_their_own_rate(tmp_path):
    """All pictures go into the video, spins name theirs."""
    path = replace(BAG, picture_hz=30.0, seconds=0.6).write(tmp_path / "bag")
    root, summary = run(path, tmp_path)
    assert summary.frames >= 16
    with ClipReader(root, summary.clips[0]) as reader:
        assert reader.fps == 30
        assert reader.frames == ("000000", "000003", "000006", "000009", "000012", "000015")
        # A camera is placed where it was when its picture was taken.
        np.testing.assert_allclose(
            reader.camera_to_world(1, PUBLISHED_VIEWS[0]),
            np.linalg.inv(WORLD.lidar_in_body) @ WORLD.body(1 / 30) @ WORLD.camera_in_body(0),
            atol=5e-3,
        )


def test_losses_are_counted_with_their_reasons(tmp_path):
    path = replace(BAG, skip_pictures=((0, 3), (1, 5)), skip_clouds=(7,), corrupt_pictures=((2, 9),)).write(
        tmp_path / "bag"
    )
    root, summary = run(path, tmp_path)
    assert summary.spins_read == 11
    assert summary.spins_kept == 8
    assert sum(summary.spins_dropped.values()) == 3
    assert summary.frames == 11
    reasons = " ".join(summary.frames_incomplete)
    assert sum(summary.frames_incomplete.values()) == 2
    assert "camera_rear_left_70fov: no picture within 0.02 s" in reasons
    assert "camera_rear_right_70fov: picture cannot be used" in reasons
    assert "truncated JPEG" in reasons
    with ClipReader(root, summary.clips[0]) as reader:
        starts = [round(reader.times_us(f)[0] / 1e5 - START_NS / 1e8) for f in reader.frames]
        assert starts == [0, 1, 2, 4, 6, 8, 10, 11]
        ends = [round(reader.times_us(f)[1] / 1e5 - START_NS / 1e8) for f in reader.frames]
        assert ends[4] == 7  # not the start of the next recorded spin, which is 8
        np.testing.assert_array_equal([int(f) for f in reader.frames], [0, 1, 2, 3, 5, 7, 9, 10])
    lines = "\n".join(" ".join(line) for line in describe(summary))
    assert "8 of 11 kept" in lines
    with pytest.raises(LidargenError):
        run(path, tmp_path, "clips.strict=true", out="strict")
    assert not list((tmp_path / "strict").rglob("*.npz"))


def test_late_cameras_are_not_paired(tmp_path):
    path = replace(BAG, camera_delay_s=0.04, seconds=0.5).write(tmp_path / "bag")
    _, summary = run(path, tmp_path)
    assert summary.spins_kept == 0
    assert not summary.clips
    assert summary.clips_dropped == {"fewer than 2 usable spins": 1}
    root, summary = run(path, tmp_path, "clips.camera_tolerance_s=0.045")
    assert summary.spins_kept >= 4
    with ClipReader(root, summary.clips[0]) as reader:
        expected = np.linalg.inv(WORLD.lidar_in_body) @ WORLD.body(0.04) @ WORLD.camera_in_body(1)
        found = reader.camera_to_lidar(0, PUBLISHED_VIEWS[1])
        np.testing.assert_allclose(found, expected, atol=5e-3)


def test_missing_motion_drops_spins(tmp_path):
    path = replace(BAG, odometry_hz=1.25).write(tmp_path / "bag")
    _, summary = run(path, tmp_path)
    assert summary.spins_kept == 0
    assert any("0.5 s between poses" in reason for reason in summary.spins_dropped)
    path = replace(BAG, odometry_hz=0.5).write(tmp_path / "none")
    _, summary = run(path, tmp_path)
    assert any("no motion of the vehicle" in reason for reason in summary.clips_dropped)


def test_clips_of_a_length_and_going_on(tmp_path):
    """Interrupted and started again: finished clips stay as they are, the others are made."""
    path = replace(BAG, seconds=1.5).write(tmp_path / "bag")
    settings = config(tmp_path, "clips.clip_length_s=0.5")

    class Stop(Exception):
        pass

    def stop(share):
        if share > 0.5:
            raise Stop

    root = tmp_path / "data"
    with pytest.raises(Stop):
        for drive in drives(path, settings):
            convert(drive, root, settings.clips, stop)
    done = sorted((root / "metadata").glob("*.npz"))
    assert len(done) == 1
    assert not (root / ".partial").exists()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    for drive in drives(path, settings):
        summary = convert(drive, root, settings.clips)
    assert len(summary.clips_there) == 1
    assert len(summary.clips) == 2
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    clips = sorted((*summary.clips_there, *summary.clips))
    for number, clip in enumerate(clips):
        check_clip(root, clip, first=5 * number, count=5)
    whole, once = run(path, tmp_path, "clips.clip_length_s=0.5", out="whole")
    assert sorted(once.clips) == clips
    for clip in clips:
        name = f"lidar/{clip}.tar"
        assert (whole / name).read_bytes() == (root / name).read_bytes()


def test_memory_does_not_grow_with_the_bag(tmp_path):
    peaks = []
    for number, seconds in enumerate((1.0, 4.0)):
        path = replace(BAG, seconds=seconds, compressed=False).write(tmp_path / f"bag{number}", "sqlite3")
        text = CONFIG.replace("/compressed", "")
        run(path, tmp_path, "clips.clip_length_s=0.5", out=f"warm{number}", text=text)
        tracemalloc.start()
        run(path, tmp_path, "clips.clip_length_s=0.5", out=f"out{number}", text=text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    pictures = 3 * 10 * 3.0 * WORLD.width * WORLD.height * 3  # what three more seconds hold
    assert peaks[1] - peaks[0] < 0.4 * pictures


def test_cut_off_bag(tmp_path):
    path = BAG.write(tmp_path / "bag")
    (file,) = path.glob("*.mcap")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * 0.7)])
    root, summary = run(path, tmp_path)
    assert 3 <= summary.spins_kept <= 10
    assert any("cut off or damaged" in note for note in summary.notes)
    check_clip(root, summary.clips[0], count=summary.spins_kept)


@pytest.mark.parametrize(
    ("bag", "overrides", "error", "words"),
    [
        ({}, ["lidar.topic=/other"], DataError, "set lidar.topic to one of /lidar/points"),
        (
            {},
            ["cameras.camera_rear_left_70fov.topic=/no"],
            DataError,
            "set cameras.camera_rear_left_70fov.topic",
        ),
        (
            {},
            ["cameras.camera_rear_left_70fov.topic=/camera/front/image_raw/compressed"],
            DataError,
            "two cameras have the same topic",
        ),
        ({}, ["motion.topic=/no"], DataError, "motion.topic"),
        ({"static_tf": False}, [], CalibrationError, "no transform from 'front_optical' to 'lidar'"),
        ({"camera_info": False}, [], CalibrationError, "no CameraInfo on /camera/front/camera_info"),
        ({"motion": "pose"}, ["motion.topic=/pose"], CalibrationError, "set motion.child_frame"),
        ({}, ["lidar.sensor=nothing"], ConfigError, "not known"),
    ],
)
def test_what_is_wrong_is_said(bag, overrides, error, words, tmp_path):
    path = replace(BAG, seconds=0.3, **bag).write(tmp_path / "bag")
    with pytest.raises(error, match=words):
        run(path, tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lidar.topik=/x"], "did you mean 'topic'"),
        (["cameras.front.topic=5"], "cameras.front.topic"),
        (["cameras.front.axes=up", "cameras.front.topic=/x"], "axes"),
        (["cameras.front.camera_to_lidar=[1, 2]", "cameras.front.topic=/x"], "2 numbers, expected 16"),
        (["val_fraction=2"], "expected 0 to 1"),
    ],
)
def test_configuration_errors(overrides, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, *overrides)


def test_extrinsics_from_the_configuration(tmp_path):
    path = replace(BAG, static_tf=False, motion="tf", seconds=0.4).write(tmp_path / "bag")
    poses = [np.linalg.inv(WORLD.lidar_in_body) @ WORLD.camera_in_body(i) for i in range(3)]
    given = [
        f"cameras.{name}.camera_to_lidar={json.dumps(pose.ravel().tolist())}"
        for name, pose in zip(PUBLISHED_VIEWS, poses, strict=True)
    ]
    with pytest.raises(CalibrationError, match=r"no transform from 'lidar' to 'odom'"):
        run(path, tmp_path, "motion.topic=''", *given)


def test_drives_are_never_divided(tmp_path):
    path = replace(BAG, seconds=1.0).write(tmp_path / "first")
    root, summary = run(path, tmp_path, "clips.clip_length_s=0.5")
    write_summary(root, summary, 0.1, "val")
    other = replace(BAG, seconds=1.0).write(tmp_path / "second")
    root, again = run(other, tmp_path, "clips.clip_length_s=0.5")
    write_summary(root, again, 0.1, "train")
    assert (root / "val.lst").read_text().split() == sorted(summary.clips)
    assert (root / "train.lst").read_text().split() == sorted(again.clips)
    assert set(summary.clips).isdisjoint(again.clips)
    assert read_drives(root).keys() == {"first", "second"}
    saved = json.loads((root / "summaries" / "first.json").read_text())
    assert saved == json.loads(json.dumps(as_dict(summary)))
    assert saved["sync_error_ms"]["p50"] == pytest.approx(0, abs=0.01)
    shares = [split_of(f"drive {n}", 0.3) for n in range(2000)].count("val") / 2000
    assert 0.25 < shares < 0.35
    (root / "drives.json").write_text("{broken")
    with pytest.raises(DataError, match=r"drives\.json is damaged"):
        write_summary(root, summary, 0.1)


def test_frame_of_the_lidar_turned(tmp_path):
    """A LiDAR whose y axis points forwards gives the same clip once that is said."""

    class Turned(ToyBag):
        def _cloud(self, start):
            message = super()._cloud(start)
            data = message.data.view(np.dtype((np.void, message.point_step)))
            xy = np.ndarray((len(data), 2), "<f4", message.data, strides=(message.point_step, 4))
            xy[:] = np.stack([-xy[:, 1], xy[:, 0]], axis=-1)
            return message

        def _static(self):
            message = super()._static()
            q = message.transforms[0].transform.rotation
            q.z, q.w = -np.sqrt(0.5), np.sqrt(0.5)
            return message

    path = Turned(world=WORLD, seconds=0.5, picture_hz=10.0).write(tmp_path / "bag")
    root, summary = run(path, tmp_path, "lidar.yaw_deg=90")
    check_clip(root, summary.clips[0], count=5)
    with ClipReader(root, summary.clips[0]) as reader:
        expected = np.linalg.inv(WORLD.lidar_in_body) @ WORLD.camera_in_body(0)
        np.testing.assert_allclose(reader.camera_to_lidar(0, PUBLISHED_VIEWS[0]), expected, atol=5e-3)
