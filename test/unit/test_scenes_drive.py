# SPDX-License-Identifier: Apache-2.0
"""The sample drive as shipped, and synthetic clips: complete, small, and true to their calibration."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lidargen_ros.bags.reader import BagReader, header_stamp_ns
from lidargen_ros.cameras import load_rig
from lidargen_ros.cameras.convert import camera_from_info
from lidargen_ros.sensors import load_sensor

DRIVE = Path(__file__).resolve().parents[2] / "samples" / "sample_drive"
CAMERAS = ("front", "rear_left", "rear_right")


@pytest.fixture(scope="module")
def messages():
    found = {}
    with BagReader(DRIVE) as bag:
        for message in bag.messages():
            found.setdefault(message.topic, []).append(message)
    return found


def cloud(message):
    """``[rows, columns, 4]`` x y z intensity."""
    m = message.decode()
    assert [f.name for f in m.fields] == ["x", "y", "z", "intensity"] and m.header.frame_id == "lidar"
    return np.asarray(m.data).view(np.float32).reshape(m.height, m.width, 4)


def test_drive_is_complete_and_small(messages):
    expected = {f"/{c}/{t}" for c in CAMERAS for t in ("image/compressed", "camera_info")}
    assert messages.keys() == expected | {"/lidar/points", "/tf_static", "/tf"}
    stamps = {t: [header_stamp_ns(m.cdr()) for m in messages[t]] for t in expected | {"/lidar/points"}}
    first = stamps["/front/image/compressed"]
    assert len(first) == 50 and set(np.diff(first)) == {100_000_000}
    assert all(s == first for s in stamps.values())
    assert sum(p.stat().st_size for p in DRIVE.iterdir()) < 5_500_000


def test_images_fit_the_rig(messages):
    for name, view in zip(CAMERAS, load_rig(DRIVE / "rig.yaml"), strict=True):
        image = cv2.imdecode(
            np.asarray(messages[f"/{name}/image/compressed"][0].decode().data), cv2.IMREAD_COLOR
        )
        assert image.shape == (view.camera.height, view.camera.width, 3) and image.std() > 20
        info = messages[f"/{name}/camera_info"][0].decode()
        fisheye = camera_from_info(info)
        grid = np.stack(np.meshgrid(np.arange(0, 640, 40), np.arange(0, 352, 32)), -1).astype(float)
        back, _ = fisheye.project(view.camera.rays(grid))
        assert np.abs(back - grid).max() < 0.1  # the equidistant model stands for the f-theta lens


def test_clouds_lie_on_the_rays(messages):
    sensor = load_sensor(DRIVE / "lidar.yaml")
    full = load_sensor("pandar128")
    np.testing.assert_allclose(sensor.directions(), full.directions()[3::4, 3::8], atol=1e-6)
    for message in messages["/lidar/points"][::10]:
        points = cloud(message)[..., :3].astype(float)
        assert points.shape[:2] == sensor.shape
        seen = np.isfinite(points).all(-1)
        assert 0.5 < seen.mean() < 0.95
        across = np.linalg.norm(np.cross(points, sensor.directions()), axis=-1)[seen]
        assert across.max() < 0.02  # coordinates are rounded to 1/64 m


def test_transforms_agree_with_the_rig(messages):
    from scipy.spatial.transform import Rotation

    transforms = {t.child_frame_id: t for t in messages["/tf_static"][0].decode().transforms}
    assert transforms["lidar"].header.frame_id == "base_link"
    assert 1.6 <= transforms["lidar"].transform.translation.z <= 2.2
    for name, view in zip(CAMERAS, load_rig(DRIVE / "rig.yaml"), strict=True):
        t = transforms[f"{name}_optical"]
        q, x = t.transform.rotation, t.transform.translation
        assert t.header.frame_id == "lidar"
        np.testing.assert_allclose([x.x, x.y, x.z], view.camera_to_lidar[:3, 3], atol=1e-6)
        np.testing.assert_allclose(
            Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), view.camera_to_lidar[:3, :3], atol=1e-3
        )


def test_the_vehicle_moves_and_turns(messages):
    poses = [m.decode().transforms[0].transform for m in messages["/tf"]]
    steps = np.diff([[p.translation.x, p.translation.y] for p in poses], axis=0)
    speed = np.linalg.norm(steps, axis=1) * 10
    assert speed.min() > 6.5 and speed.max() < 9.5
    yaw = [2 * np.arctan2(p.rotation.z, p.rotation.w) for p in poses]
    assert 0.15 < abs(yaw[-1] - yaw[0]) < 0.6


def test_synthetic_clips_are_read_back(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("av")
    import torch

    from lidargen_ros.bags.clips import list_clips
    from training.data.synthesize import f_theta_rig, spins, write_clip

    sensor = load_sensor("pandar128").with_columns(30)
    rig, vectors = f_theta_rig("published", 64)
    name = write_clip(tmp_path, 1_000_003, 2, rig, vectors, sensor, "cpu")
    assert list_clips(tmp_path) == [name]
    metadata = np.load(tmp_path / "metadata" / f"{name}.npz")
    assert metadata["frame_indices"].tolist() == ["000000", "000003"]
    poses = metadata["pose_list"]
    np.testing.assert_array_equal(poses[0, 1], poses[1, 0])
    again = list(spins(1_000_003, sensor, 2, "cpu"))
    np.testing.assert_allclose(again[1][2], poses[1], atol=1e-6)
    assert torch.tensor(again[0][0]).gt(0).float().mean() > 0.3
    before = (tmp_path / "lidar" / f"{name}.tar").read_bytes()
    write_clip(tmp_path, 1_000_003, 2, rig, vectors, sensor, "cpu")  # there already: left alone
    assert (tmp_path / "lidar" / f"{name}.tar").read_bytes() == before
