# SPDX-License-Identifier: Apache-2.0
"""Rigs, CameraInfo and drawing."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lidargen_ros.cameras import (
    FisheyeCamera,
    PinholeCamera,
    Rig,
    View,
    camera_from_info,
    list_rigs,
    load_rig,
)
from lidargen_ros.cameras.draw import draw_points, z_buffer
from lidargen_ros.colour import depth_colours, depth_limits, height_colours, table, to_uint8
from lidargen_ros.errors import CalibrationError, ConfigError
from lidargen_ros.sensors import load_sensor

CAMERA = PinholeCamera(64, 48, 50.0, 50.0, 31.5, 23.5)
# Looks along +x of the LiDAR, one metre ahead of it.
FORWARD = np.array([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("name", list_rigs())
def test_ready_rigs_round_trip(name, tmp_path):
    rig = load_rig(name)
    rig.save(tmp_path / "copy.yaml")
    again = load_rig(tmp_path / "copy.yaml")
    assert again == rig
    scaled = rig.scaled(320, 180)
    scaled.save(tmp_path / "small.yaml")
    assert load_rig(tmp_path / "small.yaml") == scaled


def test_published_rig_looks_where_it_should():
    rig = load_rig("published")
    assert [v.name for v in rig] == ["front_wide_120fov", "rear_left_70fov", "rear_right_70fov"]
    ahead, left_rear, right_rear = np.array([[20, 0, 0], [-15, 9, 0], [-15, -9, 0]])
    for view, point in zip(rig, (ahead, left_rear, right_rear), strict=True):
        _, visible = view.project(np.stack([ahead, left_rear, right_rear]))
        np.testing.assert_array_equal(visible, [(point == p).all() for p in (ahead, left_rear, right_rear)])
    horizontal = [np.degrees(v.camera.fields_of_view()[0]) for v in rig]
    np.testing.assert_allclose(horizontal, [120, 70, 70], atol=2)
    # Up in the world is up in every picture.
    for view in rig:
        assert view.lidar_to_camera[1, 2] < -0.9


def test_view_projects_from_the_lidar_frame():
    view = View("front", CAMERA, FORWARD)
    pixels, visible = view.project(np.array([[11.0, 0, 0], [11, 2, 1], [-11, 0, 0]]))
    np.testing.assert_allclose(pixels[:2], [[31.5, 23.5], [21.5, 18.5]])
    assert visible.tolist() == [True, True, False]
    np.testing.assert_allclose(view.lidar_to_camera @ FORWARD, np.eye(4), atol=1e-12)
    assert Rig((view,))["front"] is view
    with pytest.raises(ConfigError, match="no camera 'side'"):
        Rig((view,))["side"]


@pytest.mark.parametrize(
    "pose",
    [
        np.full((4, 4), np.nan),
        np.eye(3),
        np.diag([1, 1, 1.1, 1.0]),
        np.diag([1, 1, -1, 1.0]),
        np.zeros((4, 4)),
        np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [5, 0, 0, 1.0]]),
        np.diag([1, 1, 1, np.inf]),
    ],
)
def test_poses_that_are_none(pose):
    with pytest.raises(CalibrationError, match="'left'"):
        View("left", CAMERA, pose)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda d: d.update(views=[]), CalibrationError, "at least one"),
        (lambda d: d["views"].append(d["views"][0]), CalibrationError, "distinct"),
        (lambda d: d["views"][0].pop("camera_to_lidar"), CalibrationError, "front_wide.*camera_to_lidar"),
        (lambda d: d["views"][0].update(camera_to_lidar="x"), CalibrationError, "front_wide.*numbers"),
        (lambda d: d["views"][1]["camera"].pop("vector"), CalibrationError, "rear_left.*vector"),
        (lambda d: d["views"][1]["camera"]["vector"].pop(), CalibrationError, "rear_left"),
        (
            lambda d: d["views"][2]["camera"]["vector"].__setitem__(0, float("nan")),
            CalibrationError,
            "rear_right",
        ),
        (lambda d: d.pop("views"), ConfigError, "list of views"),
    ],
)
def test_broken_rig_files_are_named(tmp_path, edit, error, message):
    data = load_rig("published").to_dict()
    edit(data)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.dump(data))
    with pytest.raises(error, match=message):
        load_rig(path)


def test_absent_rigs():
    with pytest.raises(ConfigError, match="published"):
        load_rig("nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rig("nonsense.yaml")


def test_documented_files_load(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text()
    blocks = re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", text, re.S)
    assert [name for name, _ in blocks] == ["sensor", "rig"]
    for name, block in blocks:
        (tmp_path / f"{name}.yaml").write_text(block)
    assert load_sensor(tmp_path / "sensor.yaml").shape == (64, 1024)
    _, visible = load_rig(tmp_path / "rig.yaml")["front"].project(np.array([[10.0, 1, 0], [-10, 1, 0]]))
    assert visible.tolist() == [True, False]


def info(model="plumb_bob", d=(-0.1, 0.01, 0, 0, 0), k=(500.0, 0, 320, 0, 500, 240, 0, 0, 1), **more):
    """A ``sensor_msgs/CameraInfo`` by its attributes."""
    p = (400.0, 0, 310, 0, 0, 410, 230, 0, 0, 0, 1, 0)
    base = {"width": 640, "height": 480, "distortion_model": model, "d": d, "k": k, "p": p}
    return SimpleNamespace(**(base | more))


def test_camera_info_models():
    plumb = camera_from_info(info())
    assert plumb == PinholeCamera(640, 480, 500.0, 500.0, 320.0, 240.0, (-0.1, 0.01, 0, 0, 0))
    rational = camera_from_info(info("rational_polynomial", (0.1,) * 8))
    assert rational.distortion == (0.1,) * 8
    fish = camera_from_info(info("equidistant", (0.01, 0, 0, 0)))
    assert isinstance(fish, FisheyeCamera)
    assert fish.distortion == (0.01, 0, 0, 0)
    assert camera_from_info(info("", ())).distortion == ()
    assert camera_from_info(info(d=(0.0,) * 5)).distortion == ()
    rectified = camera_from_info(info(), rectified=True)
    assert rectified == PinholeCamera(640, 480, 400.0, 410.0, 310.0, 230.0)
    ros1 = SimpleNamespace(
        width=640, height=480, distortion_model="plumb_bob", D=(0.0,) * 5, K=info().k, P=info().p
    )
    assert camera_from_info(ros1) == PinholeCamera(640, 480, 500.0, 500.0, 320.0, 240.0)


def test_camera_info_region_and_binning():
    roi = SimpleNamespace(x_offset=100, y_offset=40, width=400, height=300)
    camera = camera_from_info(info(roi=roi, binning_x=2, binning_y=2))
    assert (camera.width, camera.height) == (200, 150)
    full = camera_from_info(info())
    pixels = np.array([[140.0, 90.0], [300.0, 200.0]])
    moved = (pixels - (100, 40) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(camera.rays(moved), full.rays(pixels), atol=1e-9)
    nothing = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    assert camera_from_info(info(roi=nothing, binning_x=0, binning_y=0)) == full


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("focal", {"k": (0.0,) * 9}),
        ("NaN", {"k": (float("nan"), 0, 320, 0, 500, 240, 0, 0, 1)}),
        ("NaN", {"d": (float("nan"), 0, 0, 0, 0)}),
        ("skew", {"k": (500.0, 3, 320, 0, 500, 240, 0, 0, 1)}),
        ("size", {"width": 0}),
        ("not known", {"model": "cylindrical"}),
        ("coefficients", {"model": "plumb_bob", "d": (0.1,) * 8}),
        ("4", {"model": "equidistant", "d": (0.1,) * 5}),
    ],
)
def test_bad_camera_info_names_the_camera(message, change):
    with pytest.raises(CalibrationError, match=f"/front/camera_info.*{message}"):
        camera_from_info(info(**change), "/front/camera_info")


def test_near_covers_far():
    points = np.array([[0, 0, 9.0], [0, 0, 3.0], [0, 0, 5.0], [2, 0, 10.0], [0, 0, -1.0]])
    colours = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]], np.uint8)
    camera = PinholeCamera(64, 48, 50.0, 50.0, 32.0, 24.0)
    buffer = z_buffer(camera, points)
    assert buffer[24, 32] == 3
    assert buffer[24, 42] == 10
    assert np.count_nonzero(buffer) == 2
    canvas = draw_points(camera, points, colours, radius=1)
    assert canvas[24, 32].tolist() == [2, 2, 2]
    assert np.count_nonzero(canvas.any(-1)) == 2
    assert draw_points(camera, points[:0], colours[:0]).max() == 0


@pytest.mark.parametrize("radius", [2, 3, 4, 5])
def test_squares(radius):
    camera = PinholeCamera(64, 48, 50.0, 50.0, 32.0, 24.0)
    rng = np.random.default_rng(radius)
    points = camera.rays(rng.uniform((0, 0), (63, 47), (60, 2))) * rng.uniform(2, 50, (60, 1))
    colours = rng.integers(1, 255, (60, 3)).astype(np.uint8)
    dots = draw_points(camera, points, colours, radius=1)
    reach = range(-math.ceil(radius / 2), radius // 2 + 1)
    shifts = [(i, j) for i in reach for j in reach]
    rolled = np.max([np.roll(dots, s, (0, 1)) for s in shifts], axis=0)
    np.testing.assert_array_equal(draw_points(camera, points, colours, radius, reference=True), rolled)
    # The default covers the same pixels but those that wrapped round, and never mixes two colours.
    canvas = draw_points(camera, points, colours, radius)
    assert not (canvas.any(-1) & ~rolled.any(-1)).any()
    known = {tuple(c) for c in colours} | {(0, 0, 0)}
    assert {tuple(c) for c in canvas.reshape(-1, 3)} <= known


@given(st.floats(5, 100), st.sampled_from(["Spectral", "turbo"]))
def test_depth_colours_follow_the_table(range_m, name):
    rgb = depth_colours(np.array([[range_m, 0.0]]), name=name)
    np.testing.assert_array_equal(rgb[0, 1], np.float32([0.82] * 3))
    assert np.abs(table(name) - rgb[0, 0]).sum(-1).min() < 1e-6
    assert to_uint8(rgb).dtype == np.uint8


def test_colours_of_edge_cases():
    rgb = depth_colours(np.array([1.0, 5.0, 100.0, 500.0]))
    np.testing.assert_allclose(rgb[[0, 1]], np.float32(table("Spectral")[[255, 255]]))
    np.testing.assert_allclose(rgb[[2, 3]], np.float32(table("Spectral")[[0, 0]]))
    assert depth_limits(np.zeros((3, 4))) == (1.0, 2.0)
    near, far = depth_limits(np.full((3, 4), 7.0))
    assert near < far
    np.testing.assert_array_equal(height_colours([-5, 9]), [[127, 0, 255], [255, 0, 0]])
    with pytest.raises(ConfigError, match="turbo"):
        table("jet")
