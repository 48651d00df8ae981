# SPDX-License-Identifier: Apache-2.0
"""Pictures: what is drawn lies where it should, near things hide far ones, and pages have their rows."""

import cv2
import numpy as np
import pytest

from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import Rig, View
from lidargen_ros.errors import InputError
from lidargen_ros.pictures import (
    DARK,
    PAPER,
    TOP_VIEW,
    PerspectiveView,
    cloud_picture,
    draw_points,
    error_picture,
    range_colours,
    range_picture,
    save_picture,
)
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep
from lidargen_ros.viz import three_row_picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def view(yaw_deg=0.0, name="front", width=160, height=90):
    """A camera at the LiDAR that looks along ``yaw_deg``."""
    yaw = np.deg2rad(yaw_deg)
    forward, left = [np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0]
    pose = np.eye(4)
    pose[:3, :3] = np.stack([np.negative(left), [0, 0, -1], forward], axis=-1)
    return View(name, PinholeCamera(width, height, 80.0, 80.0, (width - 1) / 2, (height - 1) / 2), pose)


def sweep(rows=16, columns=180, radius=20.0):
    sensor = Sensor(name="toy", elevations_deg=np.linspace(10, -20, rows), columns=columns)
    return Sweep(np.full(sensor.shape, radius, np.float32), sensor)


def test_a_point_is_drawn_at_its_pixel_and_nowhere_else():
    image = np.full((90, 160, 3), 100, np.uint8)
    points = np.array([[10.0, 1.0, 0.5]])
    drawn = draw_points(image, view(), points, np.array([RED]), size=1, opacity=1)
    x, y = np.rint(view().project(points)[0][0]).astype(int)
    assert tuple(drawn[y, x]) == RED
    assert (drawn != image).any(axis=2).sum() == 1
    assert (image == 100).all()  # the input is left alone


def test_near_points_hide_far_ones_whatever_their_order():
    image = np.zeros((90, 160, 3), np.uint8)
    points, colours = np.array([[10.0, 0, 0], [30.0, 0, 0]]), np.array([RED, BLUE])
    for order in ([0, 1], [1, 0]):
        drawn = draw_points(image, view(), points[order], colours[order], size=3, opacity=1)
        assert (drawn[..., 0] == 255).sum() == 9
        assert (drawn[..., 2] == 255).sum() == 0


def test_points_behind_the_camera_and_outside_its_image_are_not_drawn():
    image = np.zeros((90, 160, 3), np.uint8)
    assert not draw_points(image, view(), np.array([[-10.0, 0, 0], [1.0, 50.0, 0]])).any()
    assert not draw_points(image, view(), np.zeros((0, 3))).any()


def test_squares_are_cut_at_the_border():
    image = np.zeros((90, 160, 3), np.uint8)
    corner = view().camera.rays(np.array([[0.0, 0.0]]))[0] @ view().camera_to_lidar[:3, :3].T * 10
    drawn = draw_points(image, view(), corner[None], np.array([RED]), size=5, opacity=1)
    assert (drawn[..., 0] > 0).sum() == 9


def test_the_camera_is_scaled_to_the_picture():
    points = np.array([[10.0, 1.0, 0.5]])
    small = draw_points(np.zeros((45, 80, 3), np.uint8), view(), points, np.array([RED]), size=1, opacity=1)
    y, x = np.argwhere(small.any(axis=2))[0]
    full = view().project(points)[0][0]
    assert np.abs(np.array([x, y]) - ((full + 0.5) / 2 - 0.5)).max() <= 0.5


def test_range_colours_go_from_red_to_blue_and_missing_is_dark():
    near, far, missing = range_colours([4.0, 70.0, 0.0])
    assert near[0] > near[2]
    assert far[2] > far[0]
    assert tuple(missing) == DARK


def test_range_picture_keeps_every_pixel_at_a_multiple():
    ranges = np.random.default_rng(0).uniform(0, 50, (4, 6)).astype(np.float32)
    large = range_picture(ranges, width=18, height=8)
    np.testing.assert_array_equal(large[::2, ::3], range_picture(ranges))
    assert range_picture(ranges, 13, 11).shape == (11, 13, 3)


def test_error_picture_tells_six_cases_apart():
    true = np.array([[10.0, 10, 10, 10, 0, 0]])
    generated = np.array([[10.0, 14, 6, 0, 10, 0]])
    right, far, near, missed, invented, neither = error_picture(generated, true)[0].astype(int)
    assert np.ptp(right) < 10  # grey
    assert far[0] > far[2] + 50
    assert near[2] > near[0] + 50
    assert tuple(missed) == (147, 51, 234)
    assert tuple(invented) == (250, 204, 21)
    assert tuple(neither) == DARK


def test_perspective_is_a_pinhole_that_looks_at_its_target():
    looking = PerspectiveView()
    assert looking.focal_px == pytest.approx(869.117, abs=1e-3)
    positions, depth, shown = looking.project(np.array([looking.target, (-70, 0, 45), (0, 0, 101)]))
    np.testing.assert_allclose(positions[0], [640, 360])
    assert depth[0] == pytest.approx(np.sqrt(80**2 + 40**2))
    assert shown.tolist() == [True, False, False]  # the second lies behind, the third outside the cube
    np.testing.assert_allclose(looking.axes() @ looking.axes().T, np.eye(3), atol=1e-12)


def test_from_above_forward_is_up_and_left_is_left():
    (ahead, left), _, _ = TOP_VIEW.project(np.array([[20.0, 0, 0], [0, 20.0, 0]]))
    assert ahead[0] == pytest.approx(640)
    assert ahead[1] < 360
    assert left[0] < 640
    assert left[1] == pytest.approx(360)


def test_cloud_picture_hides_far_points_and_ignores_missing_ones():
    eye_to_target = np.array([[0.0, 0, 10], [20.0, 0, 0]])  # both on the line of sight
    for order in ([0, 1], [1, 0]):
        picture = cloud_picture(eye_to_target[order], rgb=np.array([RED, BLUE])[order], rings_m=())
        centre = picture[358:362, 638:642].reshape(-1, 3).max(axis=0)
        assert centre[0] > 150
        assert centre[2] < 60
    empty = cloud_picture(np.full((3, 3), np.nan), rings_m=())
    assert empty.shape == (720, 1280, 3)
    assert (empty == PAPER).all()


def test_save_picture_keeps_colours_and_names_what_it_cannot_write(tmp_path):
    path = save_picture(tmp_path / "new" / "red.png", np.full((4, 4, 3), RED, np.uint8))
    np.testing.assert_array_equal(cv2.imread(str(path))[0, 0], RED[::-1])
    with pytest.raises(InputError, match=r"red\.unknown"):
        save_picture(tmp_path / "red.unknown", np.zeros((4, 4, 3), np.uint8))


def test_page_orders_cameras_as_the_columns_of_the_map():
    rig = Rig((view(0, "front"), view(120, "rear_left"), view(-120, "rear_right")), "toy")
    images = [np.full((90, 160, 3), shade, np.uint8) for shade in (200, 40, 120)]
    empty = sweep()
    empty.range_map[:] = 0
    page = three_row_picture(images, rig, empty, sweep(), width=960)
    assert page.dtype == np.uint8
    assert page.shape[1] == 960
    row = page[120]
    assert [int(row[x, 0]) for x in (160, 480, 800)] == [40, 200, 120]


def test_page_shows_the_generated_points_in_the_images_and_the_truth_above_the_generated_map():
    rig = Rig((view(),), "toy")
    image = np.zeros((90, 160, 3), np.uint8)
    page = three_row_picture([image], rig, sweep(radius=6), sweep(radius=60), width=640)
    height = 360
    counts = (page[:height].astype(int) @ [1, 0, -1] > 60).sum()  # red: near
    assert counts > 300
    maps = page[height + 10 :]
    middle = maps[:, 400].astype(int)
    assert middle[30, 2] > middle[30, 0]  # true, far: blue
    below = round(0.095 * 640) + 3 + 30
    assert middle[below, 0] > middle[below, 2]  # generated, near: red


def test_pages_without_truth_and_with_many_cameras():
    rig = Rig(tuple(view(60 * k, f"camera_{k}") for k in range(6)), "ring")
    images = [np.zeros((90, 160, 3), np.uint8)] * 6
    assert three_row_picture(images, rig, sweep(), width=600).shape[1] == 600
    with pytest.raises(InputError, match="2 images for rig 'ring' of 6 cameras"):
        three_row_picture(images[:2], rig, sweep())
