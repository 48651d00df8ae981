# SPDX-License-Identifier: Apache-2.0
"""The clip reader against what the published reader returned, and beyond where that one fails."""

import json
import re
import tarfile

import numpy as np
import pytest

from lidargen_ros.bags.clip_tars import SPIN_FIELDS, ClipTar, read_spin
from lidargen_ros.bags.clips import ClipReader, list_clips
from lidargen_ros.sensors import load_sensor

pytest.importorskip("av")


@pytest.fixture(scope="session")
def clip(golden):
    root = golden("geometry/clip")
    with ClipReader(root, list_clips(root, root / "split.lst")[0]) as reader:
        yield reader


@pytest.fixture(scope="session")
def expected(golden):
    return np.load(golden("geometry/clip_expected.npz"))


def test_names_times_and_motion(clip, expected):
    assert clip.clip == str(expected["key"])
    assert list(clip.frames) == expected["rgb_frame_indices"].tolist()  # the last spin is there as well
    assert clip.missing == {}
    np.testing.assert_array_equal([clip.times_us(f) for f in clip.frames], expected["timestamp_list"])
    motions = [clip.motion(f) for f in clip.frames]
    np.testing.assert_allclose(motions, expected["pose_sensor_start_end"], rtol=0, atol=2e-5)


def test_range_maps(clip, expected):
    maps = np.stack([clip.range_map(f) for f in clip.frames])
    assert maps.shape == tuple(expected["range_maps_shape"])
    np.testing.assert_array_equal(maps.sum(axis=(1, 2), dtype=np.float64), expected["range_map_frame_sums"])
    np.testing.assert_array_equal((maps > 0).sum(axis=(1, 2)), expected["range_map_frame_counts"])
    key = next(k for k in expected if re.fullmatch(r"range_map_frame\d+_f16", k))
    number = int(re.search(r"\d+", key)[0])
    np.testing.assert_array_equal(maps[number], expected[key].astype(np.float32))


def test_cameras(clip, expected):
    for i, camera in enumerate(clip.cameras):
        np.testing.assert_array_equal(clip.intrinsics(camera), expected[f"camera_intrinsics_{i}"])
        poses = [clip.camera_to_lidar(f, camera) for f in clip.frames]
        np.testing.assert_allclose(poses, expected[f"camera_c2lidar_{i}"], rtol=0, atol=2e-5)
        # The frame number, not the position of the spin, tells the picture.
        pictures = np.stack([clip.image(f, camera) for f in clip.frames]).astype(np.int16)
        difference = np.abs(pictures - expected[f"rgb_u8_{i}"])
        assert difference.max() <= 2
        assert difference.mean() < 0.05


def test_pictures_in_any_order(clip):
    """Seeking, going on and going back give the same picture."""
    camera, count = clip.cameras[0], 20
    ahead = [clip.image(n, camera) for n in range(count)]
    for n in (count - 1, 0, 13, 7, 8, 1, 19):
        np.testing.assert_array_equal(clip.image(n, camera), ahead[n])


def test_clip_whose_name_the_published_reader_cannot_read(golden):
    v = np.load(golden("geometry/reader_quirks.npz"))
    tar = ClipTar(golden("geometry/rangemap_leading_letter.tar"))
    assert tar.clip == str(v["leading_letter_clip"])
    assert tar.clip[0].isalpha()
    check_cells(tar, v, "leading_letter", v["leading_letter_range_f16"])


def test_spins_with_intensity(golden):
    v = np.load(golden("geometry/points_to_rangemap.npz"))
    tar = ClipTar(golden("geometry/rangemap_example.tar"))
    check_cells(tar, v, "tar", v["tar_range_readback"])
    sensor = load_sensor("pandar128_3600")
    frames = tar.frames([*SPIN_FIELDS, "lidar_intensity.npz"])
    for k, frame in enumerate(frames):
        cells = v["tar_frame"] == k
        intensity = read_spin(tar, frame, sensor, "intensity")[v["tar_row"][cells], v["tar_col"][cells]]
        np.testing.assert_allclose(intensity, v["tar_intensity_f32"][cells], rtol=1e-3, atol=1e-7)


def check_cells(tar, v, prefix, ranges):
    sensor = load_sensor("pandar128_3600")
    for k, frame in enumerate(tar.frames(SPIN_FIELDS)):
        cells = v[f"{prefix}_frame"] == k
        expected = np.zeros(sensor.shape, np.float32)
        expected[v[f"{prefix}_row"][cells], v[f"{prefix}_col"][cells]] = ranges[cells]
        np.testing.assert_array_equal(read_spin(tar, frame, sensor), expected)
    assert k == v[f"{prefix}_frame"].max()


def test_folder_prefix_and_order_of_members_do_not_matter(golden, clip, tmp_path):
    """``./`` before names and frames out of order fail or mispair in the published reader."""
    source = golden("geometry/clip") / "lidar" / f"{clip.clip}.tar"
    with tarfile.open(source) as tar, tarfile.open(tmp_path / "x.tar", "w") as out:
        for member in reversed(tar.getmembers()):
            content = tar.extractfile(member)
            member.name = f"./lidar/{member.name}"
            out.addfile(member, content)
    tar = ClipTar(tmp_path / "x.tar")
    assert tar.frames(SPIN_FIELDS) == [int(f) for f in clip.frames]
    for frame in clip.frames[:2]:
        np.testing.assert_array_equal(read_spin(tar, frame, clip.sensor), clip.range_map(frame))


def test_scene_description_agrees(golden, clip):
    scene = json.loads(golden("geometry/clip_scene.json").read_text())
    width, height = scene["image_wh"]
    assert clip.clip == scene["clip"]
    for camera in clip.cameras:
        assert clip.image(clip.frames[0], camera).shape == (height, width, 3)
        assert clip.camera(camera).calibration_size == (width, height)
