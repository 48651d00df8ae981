# SPDX-License-Identifier: Apache-2.0
"""Every camera model: rays and pixels are inverse, resizing and cropping move pixels as images do, bad input."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lidargen_ros.cameras import (
    Camera,
    FisheyeCamera,
    FThetaCamera,
    PinholeCamera,
    camera_from_dict,
    load_rig,
)
from lidargen_ros.cameras.preprocess import CROP_HW, preprocess, preprocessed_camera
from lidargen_ros.errors import CalibrationError, InputError

FRONT, REAR_LEFT, _ = (view.camera for view in load_rig("published"))
PLUMB_BOB = (-0.31, 0.12, 0.0008, -0.0005, -0.021)
RATIONAL = (8.2, 3.1, 0.0004, -0.0003, 0.11, 8.6, 5.9, 0.71)
CAMERAS = {
    "ftheta backward": FRONT,
    "ftheta forward": REAR_LEFT,
    "ftheta 14": FThetaCamera.from_vector([*FRONT.vector[:10], 1.0, 1.002, 0.0008, -0.0011]),
    "pinhole": PinholeCamera(640, 480, 500.0, 505.0, 322.0, 239.0),
    "plumb_bob": PinholeCamera(1280, 720, 900.0, 902.0, 640.0, 365.0, PLUMB_BOB),
    "rational": PinholeCamera(1920, 1080, 1000.0, 1002.0, 955.0, 548.0, RATIONAL),
    "thin prism": PinholeCamera(
        640, 480, 500.0, 505.0, 322.0, 239.0, (*PLUMB_BOB, 0, 0, 0, 1e-3, -2e-4, 5e-4, 1e-4)
    ),
    "fisheye": FisheyeCamera(1280, 960, 350.0, 351.0, 640.0, 480.0, (0.02, -0.002, 0.0003, -0.00002)),
}
# The two f-theta polynomials are fits of one another, at most 0.055 pixels apart.
PIXEL_TOLERANCE = {name: 0.06 if name.startswith("ftheta") else 1e-6 for name in CAMERAS}

each = pytest.mark.parametrize("name", CAMERAS)
UNIT = st.floats(0, 1)


def grid(camera, step=17):
    return np.stack(np.meshgrid(np.arange(0.0, camera.width, step), np.arange(0.0, camera.height, step)), -1)


@each
def test_is_a_camera(name):
    assert isinstance(CAMERAS[name], Camera)


@each
@given(hnp.arrays(np.float64, (5, 2), elements=UNIT), st.floats(0.1, 200))
def test_pixel_to_ray_to_pixel(name, share, distance):
    camera = CAMERAS[name]
    pixels = share * (camera.width - 1, camera.height - 1)
    rays = camera.rays(pixels)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)
    back, visible = camera.project(rays * distance)
    if name == "fisheye":  # its corners look beyond 90 degrees
        np.testing.assert_array_equal(visible, rays[:, 2] > 0)
    else:
        assert visible.all()
    np.testing.assert_allclose(back, pixels, rtol=0, atol=PIXEL_TOLERANCE[name])


@each
@given(hnp.arrays(np.float64, (6, 3), elements=st.floats(-100, 100).map(lambda x: round(x, 6))))
def test_point_to_pixel_to_ray(name, points):
    camera = CAMERAS[name]
    pixels, visible = camera.project(points)
    assert pixels.dtype == np.float64
    assert visible.dtype == bool
    assert np.isfinite(pixels).all()
    seen = points[visible]
    rays = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        camera.rays(pixels[visible]), rays, rtol=0, atol=1e-4 if "ftheta" in name else 1e-8
    )


@each
def test_shapes_and_awkward_points(name):
    camera = CAMERAS[name]
    pixels, visible = camera.project(np.ones((2, 3, 4, 3)))
    assert pixels.shape == (2, 3, 4, 2)
    assert visible.shape == (2, 3, 4)
    points = np.array([[0, 0, 0], [0, 0, -5], [np.nan, 0, 1], [np.inf, 1, 1], [0, 0, 1e-300], [1e9, 0, 1e-9]])
    pixels, visible = camera.project(points)
    assert np.isfinite(pixels).all()
    assert not visible[:4].any()
    assert visible[5] == (name == "fisheye")  # 90 degrees off the axis
    ahead, seen = camera.project(np.array([0.0, 0.0, 7.0], np.float32))
    assert seen
    np.testing.assert_allclose(camera.rays(ahead), [0, 0, 1], atol=1e-9)
    far_outside = camera.rays(np.array([[-1e4, 3e4], [1e6, 0]]))
    assert np.isfinite(far_outside).all()
    assert camera.project(np.zeros((0, 3)))[0].shape == (0, 2)


@each
@given(st.integers(16, 4000), st.integers(16, 4000))
def test_scaled_moves_pixels_like_images(name, width, height):
    camera = CAMERAS[name]
    scaled = camera.scaled(width, height)
    assert (scaled.width, scaled.height) == (width, height)
    pixels = grid(camera, 101)
    moved = (pixels + 0.5) * (width / camera.width, height / camera.height) - 0.5
    np.testing.assert_allclose(scaled.rays(moved), camera.rays(pixels), atol=1e-9)
    back = scaled.scaled(camera.width, camera.height)
    np.testing.assert_allclose(back.rays(pixels), camera.rays(pixels), atol=1e-9)


@each
def test_cropped_moves_pixels_like_images(name):
    camera = CAMERAS[name]
    cropped = camera.cropped(10, -20, 300, 200)
    pixels = grid(camera)
    np.testing.assert_allclose(cropped.rays(pixels - (10, -20)), camera.rays(pixels), atol=1e-12)
    points = camera.rays(np.array([[15.0, 100.0], [500.0, 100.0]]))
    expected = camera.project(points)[0] - (10, -20)
    found, visible = cropped.project(points)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert visible.tolist() == [name != "fisheye", False]


@each
def test_dictionary_round_trip(name):
    for camera in (CAMERAS[name], CAMERAS[name].scaled(333, 222).cropped(3, 4, 200, 100)):
        assert camera_from_dict(camera.to_dict()) == camera


def test_visible_is_by_rounded_pixel():
    camera = PinholeCamera(4, 4, 1.0, 1.0, 0.0, 0.0)
    u = np.array([-0.51, -0.49, 3.49, 3.51])
    points = np.stack([u, np.zeros(4), np.ones(4)], -1)
    assert camera.project(points)[1].tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["plumb_bob", "rational", "thin prism"])
def test_pinhole_equals_opencv(name):
    camera = CAMERAS[name]
    k = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    points = np.random.default_rng(0).uniform([-3, -2, 4], [3, 2, 9], (200, 3))
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, np.array(camera.distortion))[0][:, 0]
    np.testing.assert_allclose(camera.project(points)[0], expected, atol=1e-8)


def test_fisheye_equals_opencv():
    camera = CAMERAS["fisheye"]
    k = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    points = np.random.default_rng(0).uniform([-9, -9, 0.5], [9, 9, 9], (200, 1, 3))
    expected = cv2.fisheye.projectPoints(points, np.zeros(3), np.zeros(3), k, np.array(camera.distortion))[0]
    np.testing.assert_allclose(camera.project(points)[0], expected, atol=1e-8)


def test_folded_back_points_are_not_visible():
    """Strong barrel distortion maps far-off points back into the image; they must not be seen there."""
    camera = PinholeCamera(640, 480, 300.0, 300.0, 320.0, 240.0, (-0.35, 0.0, 0.0, 0.0))
    assert camera.max_radius == pytest.approx(np.sqrt(1 / (3 * 0.35)))
    radius = np.linspace(0, 5, 400)
    _, visible = camera.project(np.stack([radius, 0 * radius, 1 + 0 * radius], -1))
    assert not visible[radius > camera.max_radius].any()
    assert visible[radius < 0.5].all()
    fish = FisheyeCamera(640, 480, 200.0, 200.0, 320.0, 240.0, (-0.2, 0.0, 0.0, 0.0))
    angle = np.linspace(0, np.pi, 400)
    _, visible = fish.project(np.stack([np.sin(angle), 0 * angle, np.cos(angle)], -1))
    assert not visible[angle > fish.max_angle].any()


def test_ftheta_forms():
    vector = list(FRONT.vector)
    assert FRONT.is_backward
    assert not REAR_LEFT.is_backward
    short = FThetaCamera.from_vector([*vector[:9], 1.0])
    assert short.is_backward
    assert len(short.forward) == 5
    long = FThetaCamera.from_vector([*vector[:10], 1.0, 1.0, 0.0, 0.0])
    pixels = grid(FRONT, 100)
    np.testing.assert_allclose(long.rays(pixels), FRONT.rays(pixels), atol=1e-12)
    # A flag of 0 at position 10 of 14 numbers is a forward polynomial, whatever the last number is.
    assert not FThetaCamera.from_vector([*REAR_LEFT.vector[:10], 0.0, 1.0, 0.0, 0.001]).is_backward
    bent = CAMERAS["ftheta 14"]
    np.testing.assert_allclose(
        bent.project(FRONT.rays(pixels))[0] - bent.centre,
        (FRONT.project(FRONT.rays(pixels))[0] - FRONT.centre) @ [[1.002, -0.0011], [0.0008, 1]],
        atol=1e-6,
    )


@pytest.mark.parametrize("length", [0, 9, 12, 13, 15])
def test_ftheta_refuses_other_lengths(length):
    with pytest.raises(CalibrationError, match=r"left mirror.*10, 11 or 14"):
        FThetaCamera.from_vector(np.ones(length), "left mirror")


@pytest.mark.parametrize(
    ("index", "number"),
    [(0, np.nan), (2, 0.0), (3, -5.0), (5, -1e-3), (5, 0.0), (7, np.inf), (2, np.nan), (6, -1e-5)],
)
def test_ftheta_refuses_implausible_numbers(index, number):
    vector = list(FRONT.vector)
    vector[index] = number
    with pytest.raises(CalibrationError, match="left mirror"):
        FThetaCamera.from_vector(vector, "left mirror")


@pytest.mark.parametrize("model", [PinholeCamera, FisheyeCamera])
@pytest.mark.parametrize(
    "change",
    [
        {"fx": 0.0},
        {"fy": -3.0},
        {"cx": np.nan},
        {"width": 0},
        {"height": -1},
        {"distortion": (0.1,)},
        {"distortion": (0.1, np.nan, 0.0, 0.0)},
    ],
)
def test_other_models_refuse_implausible_numbers(model, change):
    good = {"width": 64, "height": 48, "fx": 50.0, "fy": 50.0, "cx": 32.0, "cy": 24.0}
    model(**good)
    with pytest.raises(CalibrationError, match="left mirror"):
        model(**(good | change), name="left mirror")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "not known"),
        ({"model": "orthographic"}, "ftheta, pinhole, fisheye"),
        ({"model": "pinhole", "width": 4}, "lacks"),
        ({"model": "pinhole", "width": "x", "height": 4, "fx": 1, "fy": 1, "cx": 0, "cy": 0}, "not a number"),
        ({"model": "ftheta", "vector": ["x"]}, "not a number"),
    ],
)
def test_dictionaries_are_checked(data, message):
    with pytest.raises(CalibrationError, match=f"rear.*{message}"):
        camera_from_dict(data, "rear")


@each
def test_no_size_below_one(name):
    with pytest.raises(CalibrationError, match="positive"):
        CAMERAS[name].scaled(0, 10)
    with pytest.raises(CalibrationError, match="positive"):
        CAMERAS[name].cropped(0, 0, 10, 0)


def test_preprocessing_moves_the_camera_along():
    camera = preprocessed_camera(FRONT)
    assert (camera.height, camera.width) == CROP_HW
    pixels = grid(FRONT, 100)
    moved = (pixels + 0.5) * (1280 / 1920, 720 / 1080) - 0.5 - (0, 8)
    np.testing.assert_allclose(camera.rays(moved), FRONT.rays(pixels), atol=1e-12)
    # A bright dot lands where the moved camera says.
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[300:303, 600:603] = 255
    row, column = np.unravel_index(preprocess(image)[0].argmax(), CROP_HW)
    expected = (np.array([601, 301]) + 0.5) * 2 / 3 - 0.5 - (0, 8)
    np.testing.assert_allclose([column, row], expected, atol=1)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_preprocessing_refuses_other_images(image):
    with pytest.raises(InputError, match="uint8"):
        preprocess(image)
