# SPDX-License-Identifier: Apache-2.0
"""LidarGenerator: images in, Sweep out; and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from lidargen_ros import LidarGenerator
from lidargen_ros.errors import BundleError, ConfigError, EngineError, InputError


@pytest.fixture(scope="module")
def generator():
    return LidarGenerator.from_bundle("constant", engine="onnxruntime-cpu", threads=1)


def images(shape=(352, 640, 3), count=3):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def test_a_sweep_of_three_pictures(generator):
    sweep = generator(images(), stamp_ns=123)
    assert sweep.range_map.shape == (128, 1800)
    assert sweep.range_map.dtype == np.float32
    assert sweep.stamp_ns == 123
    assert sweep.points().shape == (sweep.returns.sum(), 3)
    returned = sweep.range_map[sweep.returns]
    assert (returned >= 0.5).all()
    assert (returned <= 120).all()
    assert np.allclose(np.linalg.norm(sweep.points(), axis=1), returned, rtol=1e-5)


def test_the_ground_is_where_it_should_be(generator):
    sweep = generator(images())
    heights = sweep.points()[:, 2]
    assert abs(np.median(heights[heights < -1]) + 1.9) < 0.3  # the bundle's LiDAR stands 1.9 m above it


def test_a_cloud_is_the_points_of_the_sweep(generator):
    cloud, sweep = generator.cloud(images()), generator(images())
    assert cloud.shape == (128, 1800, 4)
    assert cloud.dtype == np.float32
    np.testing.assert_allclose(cloud[..., :3], sweep.organised_points(), rtol=1e-6)
    np.testing.assert_array_equal(cloud[..., 3], sweep.intensity)


def test_any_size_and_a_missing_camera(generator):
    assert generator([*images((200, 300, 3), 2), None]).returns.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (images(count=2), "2 images for a rig of 3"),
        ([None, None, None], "every camera is missing"),
        ([np.zeros((4, 4), np.uint8), *images(count=2)], "image 0"),
        ([np.zeros((4, 4, 3), np.float32), *images(count=2)], "float32"),
    ],
)
def test_what_it_refuses(generator, given, words):
    with pytest.raises(InputError, match=words):
        generator(given)


def test_steps_and_engines_are_checked(generator):
    with pytest.raises(ConfigError, match="steps is 0"):
        generator(images(), steps=0)
    with pytest.raises(ConfigError, match="steps is 2, but bundle constant gives a best estimate only"):
        generator.check_steps(2)
    with pytest.raises(EngineError, match="unknown"):
        LidarGenerator.from_bundle("constant", engine="warp-drive")
    with pytest.raises(BundleError):
        LidarGenerator.from_bundle("nowhere")


def test_no_ros_and_no_torch_on_this_path():
    code = (
        "import sys, numpy as np; from lidargen_ros import LidarGenerator;"
        "s = LidarGenerator.from_bundle('constant')([np.zeros((8, 8, 3), np.uint8)] * 3);"
        "assert not {'rclpy', 'torch'} & set(sys.modules), sorted(sys.modules); print(s.points().shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
