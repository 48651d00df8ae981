# SPDX-License-Identifier: Apache-2.0
"""Raw spins to range maps against the published converter."""

import numpy as np
import pytest

from lidargen_ros.bags.clip_tars import ClipTar
from lidargen_ros.bags.clips import ClipReader, list_clips
from lidargen_ros.sensors import Sensor
from training.data.lidar_raw import convert_clip, read_raw_spin, to_range_map


@pytest.fixture(scope="module")
def raw(golden):
    root = golden("geometry/clip")
    clip = list_clips(root, root / "split.lst")[0]
    return root, clip, np.load(golden("geometry/clip_raw_expected.npz"))


def test_converted_as_published(raw):
    root, clip, v = raw
    tar = ClipTar(root / "lidar_raw" / f"{clip}.tar")
    sensor = Sensor("vectors", v["elevations_deg_f32"], 3600)
    frames = tar.frames(["lidar_raw.npz"])
    assert [f"{frame:06d}" for frame in frames[:-1]] == v["frame_indices"].tolist()
    for k, (start, end) in enumerate(v["pose_list"]):
        spin = read_raw_spin(tar, frames[k], sensor)
        np.testing.assert_allclose(spin.pose, start, rtol=0, atol=1e-6)
        assert spin.start_us == v["timestamps_list"][k, 0]
        ranges, intensity, points = to_range_map(spin, end, sensor, reference=True)
        if k == 0:
            np.testing.assert_allclose(points, v["uncompensated_0"], rtol=0, atol=6e-5)
        cells = v["frame"] == k
        expected = np.zeros((2, *sensor.shape), np.float32)
        expected[:, v["row"][cells], v["col"][cells]] = v["range"][cells], v["intensity"][cells]
        agree = np.abs(ranges - expected[0]) < 1e-4
        assert (~agree).sum() <= 2e-3 * cells.sum()
        np.testing.assert_allclose(intensity[agree], expected[1][agree], rtol=0, atol=1e-6)


def test_a_whole_clip(raw, tmp_path):
    root, clip, v = raw
    spins, left_out = convert_clip(root, tmp_path / "published", clip, reference=True)
    assert spins == len(v["frame_indices"])
    assert len(left_out) == 1
    metadata = np.load(tmp_path / "published" / "metadata" / f"{clip}.npz")
    for key in ("frame_indices", "timestamps_list"):
        np.testing.assert_array_equal(metadata[key], v[key])
    np.testing.assert_allclose(metadata["pose_list"], v["pose_list"], rtol=0, atol=1e-6)


def test_the_last_spin_is_kept_and_pairs_stay(raw, tmp_path):
    """By default nothing is lost, and the clip reads with its pictures."""
    root, clip, v = raw
    spins, left_out = convert_clip(root, tmp_path, clip)
    assert spins == len(v["frame_indices"]) + 1
    assert left_out == []
    with ClipReader(root, clip) as source, ClipReader(tmp_path, clip) as made:
        assert len(made.frames) == spins
        last = made.frames[-1]
        # The whole clip knows where the last of these spins really ended.
        assert made.times_us(last) == source.times_us(last)
        np.testing.assert_allclose(made.lidar_to_world(last), source.lidar_to_world(last), atol=5e-3)
        for frame in made.frames:
            thin, full = made.range_map(frame), source.range_map(frame)
            both = (thin > 0) & (full > 0)
            assert both.sum() > 0.8 * (thin > 0).sum()
            assert np.median(np.abs(thin - full)[both]) < 0.05
            for camera in made.cameras:
                np.testing.assert_array_equal(made.image(frame, camera), source.image(frame, camera))
