# SPDX-License-Identifier: Apache-2.0
"""Write then read gives the same arrays; nothing is left behind when writing fails."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation
from toy_clip import CLIP, members, write_clip
from toy_world import ToyWorld

from lidargen_ros.bags.clips import PUBLISHED_VIEWS, ClipReader, list_clips
from lidargen_ros.errors import DataError
from lidargen_ros.sensors import Sensor, load_sensor
from training.data.clips_writer import ClipWriter, VideoWriter

pytest.importorskip("av")
VECTOR = np.array([15.5, 9.5, 32, 20, 0, 0.02, 0, 0, 0, 0, 1.0])
TIMES = (1_700_000_000_000_000, 1_700_000_000_100_000)


def test_written_clip_reads_back(tmp_path):
    written = write_clip(tmp_path)
    world = ToyWorld()
    with ClipReader(tmp_path, CLIP) as clip:
        assert clip.frames == tuple(written)  # the last spin is there
        assert clip.missing == {}
        assert clip.sensor == world.sensor
        for frame, (ranges, poses, times, intensity) in written.items():
            np.testing.assert_array_equal(clip.range_map(frame), ranges.astype(np.float16).astype(np.float32))
            kept = np.where(ranges > 0, intensity, 0).astype(np.float16)
            np.testing.assert_array_equal(clip.intensity(frame), kept)
            np.testing.assert_array_equal(clip.lidar_to_world(frame), poses)
            assert clip.times_us(frame) == times
            for i, camera in enumerate(clip.cameras):
                picture = world.picture(i, int(frame) / 20)
                error = np.abs(clip.image(frame, camera).astype(int) - picture)
                assert error.mean() < 3  # video is lossy, and halves the resolution of colour
                expected = np.linalg.inv(world.lidar_in_body) @ world.camera_in_body(i)
                np.testing.assert_allclose(clip.camera_to_lidar(frame, camera), expected, atol=1e-5)
    assert list_clips(tmp_path) == [CLIP]
    assert not (tmp_path / ".partial").exists()


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path):
    write_clip(tmp_path / "a", cameras=())
    with (
        ClipReader(tmp_path / "a", CLIP, ()) as clip,
        ClipWriter(tmp_path / "b", CLIP, clip.sensor, {}) as writer,
    ):
        for frame in clip.frames:
            poses, times = clip.lidar_to_world(frame), clip.times_us(frame)
            writer.add_spin(int(frame), clip.range_map(frame), poses, times, clip.intensity(frame))
        writer.finish()
    for name in (f"lidar/{CLIP}.tar", f"metadata/{CLIP}.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_members_are_named_and_typed_as_published(tmp_path):
    """Names, order and types that the published reader expects."""
    sensor = load_sensor("pandar128_3600")
    ranges = np.zeros(sensor.shape, np.float32)
    ranges[[0, 5, 127], [3599, 7, 0]] = 10.5, 20.25, 99.9
    with ClipWriter(tmp_path, CLIP, sensor, {PUBLISHED_VIEWS[0]: VECTOR}) as writer:
        writer.add_spin(0, ranges, np.stack([np.eye(4)] * 2), TIMES, ranges / 100)
        writer.add_image(PUBLISHED_VIEWS[0], np.zeros((20, 32, 3), np.uint8))
        writer.add_camera_pose(PUBLISHED_VIEWS[0], 0, np.eye(4))
        writer.finish()
    content = members(tmp_path / "lidar" / f"{CLIP}.tar")
    fields = ("col", "intensity", "range", "row")
    assert list(content) == [f"{CLIP}.000000.lidar_{field}.npz" for field in fields]
    import io

    types = {f: np.load(io.BytesIO(content[f"{CLIP}.000000.lidar_{f}.npz"]))["arr_0"].dtype for f in fields}
    assert types == {"col": np.uint16, "intensity": np.float16, "range": np.float16, "row": np.uint8}
    assert not (tmp_path / "lidar_sensor_config").exists()  # the published sensor needs none
    pose = members(tmp_path / "pose" / f"{CLIP}.tar")
    assert list(pose) == [f"{CLIP}.000000.pose.{PUBLISHED_VIEWS[0]}.npy"]
    metadata = np.load(tmp_path / "metadata" / f"{CLIP}.npz")
    assert metadata["frame_indices"].dtype == np.dtype("<U6")
    assert metadata["pose_list"].dtype == np.float32
    assert metadata["timestamps_list"].dtype == np.int64


float16 = st.floats(0, 64992, width=16)
maps = hnp.arrays(np.float32, (3, 8), elements=float16).filter(lambda a: a.any())


@settings(max_examples=30, deadline=None)
@given(ranges=maps, turn=hnp.arrays(np.float64, 3, elements=st.floats(-3, 3)), frame=st.integers(0, 999_999))
def test_any_map_and_pose_reads_back(tmp_path_factory, ranges, turn, frame):
    sensor = Sensor("small", [1.0, 0.0, -1.0], 8)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    pose[:3, 3] = turn * 100
    root = tmp_path_factory.mktemp("clip")
    with ClipWriter(root, CLIP, sensor, {}) as writer:
        writer.add_spin(frame, ranges, np.stack([pose, pose]), TIMES)
        writer.finish()
    with ClipReader(root, CLIP, ()) as clip:
        assert clip.frames == (f"{frame:06d}",)
        np.testing.assert_array_equal(clip.range_map(frame), ranges)
        np.testing.assert_array_equal(clip.lidar_to_world(frame)[0], pose)
        assert clip.intensity(frame) is None


def spin(**change):
    given = {
        "frame": 0,
        "range_map": np.ones((3, 8), np.float32),
        "lidar_to_world": np.stack([np.eye(4)] * 2),
    }
    return {**given, "times_us": TIMES, **change}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"range_map": np.ones((3, 9))}, "use its sensor"),
        ({"range_map": np.zeros((3, 8))}, "no return"),
        ({"range_map": np.full((3, 8), np.nan)}, "no return"),
        ({"range_map": np.full((3, 8), 1e5)}, "below 65504"),
        ({"lidar_to_world": np.full((2, 4, 4), np.nan)}, "NaN"),
        ({"lidar_to_world": np.eye(4)}, "start and the end"),
        ({"lidar_to_world": np.stack([np.eye(4) * 2] * 2)}, "not a rotation"),
        ({"times_us": TIMES[::-1]}, "not after"),
    ],
)
def test_spins_that_cannot_be_stored(tmp_path, change, words):
    sensor = Sensor("small", [1.0, 0.0, -1.0], 8)
    with pytest.raises(DataError, match=words) as error, ClipWriter(tmp_path, CLIP, sensor, {}) as writer:
        writer.add_spin(**spin(**change))
    assert CLIP in str(error.value)
    assert list(tmp_path.rglob("*.*")) == []


def test_frames_must_rise(tmp_path):
    with ClipWriter(tmp_path, CLIP, Sensor("small", [1.0, 0.0, -1.0], 8), {}) as writer:
        writer.add_spin(**spin(frame=3))
        with pytest.raises(DataError, match="comes after"):
            writer.add_spin(**spin(frame=3))


def test_a_clip_that_is_not_finished_does_not_exist(tmp_path):
    sensor = Sensor("small", [1.0, 0.0, -1.0], 8)
    with pytest.raises(KeyboardInterrupt), ClipWriter(tmp_path, CLIP, sensor, {"a": VECTOR}) as writer:
        writer.add_spin(**spin())
        writer.add_image("a", np.zeros((20, 32, 3), np.uint8))
        raise KeyboardInterrupt
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with ClipWriter(tmp_path, CLIP, sensor, {"a": VECTOR}) as writer:
        writer.add_spin(**spin())
        with pytest.raises(DataError, match="no picture of a"):
            writer.finish()
    with ClipWriter(tmp_path, CLIP, sensor, {}) as writer, pytest.raises(DataError, match="no spin"):
        writer.finish()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_an_interrupted_run_left_is_removed(tmp_path):
    left = tmp_path / ".partial" / CLIP / "lidar" / "old.tar"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    write_clip(tmp_path, cameras=())
    assert not left.exists()
    assert not (tmp_path / "lidar" / "old.tar").exists()


def test_pictures_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="even sides"):
        VideoWriter(tmp_path / "x.mp4", 31, 20, 30)
    video = VideoWriter(tmp_path / "x.mp4", 32, 20, 30)
    video.add(np.zeros((20, 32, 3), np.uint8))
    with pytest.raises(DataError, match="one camera has one size"):
        video.add(np.zeros((20, 30, 3), np.uint8))
    video.close()
    video.close()


def test_placeholder_pictures_are_left_out_by_readers(tmp_path):
    """A picture without pose holds its place in the video, but its frame does not count."""
    sensor = Sensor("small", [1.0, 0.0, -1.0], 8)
    with ClipWriter(tmp_path, CLIP, sensor, {"a": VECTOR}, fps=10) as writer:
        for frame in range(3):
            writer.add_spin(**spin(frame=frame))
            writer.add_image("a", np.full((20, 32, 3), 80 * frame, np.uint8))
            if frame != 1:
                writer.add_camera_pose("a", frame, np.eye(4), 1000 * frame)
        writer.finish()
    with ClipReader(tmp_path, CLIP, ("a",)) as clip:
        assert clip.frames == ("000000", "000002")
        assert clip.missing == {"pose a": ["000001"]}
        assert abs(int(clip.image(2, "a").mean()) - 160) < 4
        assert clip.fps == 10
    times = np.load(tmp_path / "image_times" / f"{CLIP}.npz")["a"]
    assert times.tolist() == [0, -1, 2000]
