# SPDX-License-Identifier: Apache-2.0
"""Geometry inside a whole clip: conversion of raw spins, camera poses, model input, decoding and drawing.

Members are read directly, so that these tests say nothing about the clip reader.
"""

import io
import itertools
import json
import re
import tarfile

import numpy as np
import pytest

from lidargen_ros import colour, motion, projection, range_coding
from lidargen_ros.cameras import FThetaCamera
from lidargen_ros.cameras.draw import draw_points
from lidargen_ros.sensors import Sensor, load_sensor

CAMERAS = ("camera_front_wide_120fov", "camera_rear_left_70fov", "camera_rear_right_70fov")
ROWS, COLUMNS, MODEL_COLUMNS = 128, 3600, 1800


@pytest.fixture(scope="session")
def vectors(golden):
    return lambda name: np.load(golden(f"geometry/{name}"))


@pytest.fixture(scope="session")
def members(golden):
    """``members("pose")``: {"FRAME.pose.CAMERA.npy": array or npz} of the clip's tar."""
    clip = golden("geometry/clip/split.lst").read_text().split()[0].split(".")[0]

    def read(kind):
        with tarfile.open(golden(f"geometry/clip/{kind}/{clip}.tar")) as tar:
            return {
                m.name.removeprefix(clip + "."): np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar
            }

    return read


@pytest.fixture(scope="session")
def metadata(golden):
    clip = golden("geometry/clip/split.lst").read_text().split()[0].split(".")[0]
    return np.load(golden(f"geometry/clip/metadata/{clip}.npz"))


def test_raw_spins(vectors, members):
    """Un-compensation by firing column, then the nearest return per cell."""
    v, raw = vectors("clip_raw_expected.npz"), members("lidar_raw")
    spins = [raw[name] for name in sorted(raw)]
    sensor = Sensor("vectors", v["elevations_deg_f32"], COLUMNS)
    calibrated = np.abs(sensor.elevations_deg - load_sensor("pandar128").elevations_deg).max()
    assert calibrated < 0.1
    for k, (spin, after) in enumerate(itertools.pairwise(spins)):
        start, end = (np.float32(s["lidar_to_world"]) for s in (spin, after))
        np.testing.assert_allclose(v["pose_list"][k], [start, end], rtol=0, atol=1e-6)
        m = motion.spin_motion(start, end)
        tau = motion.column_fractions(spin["column"], COLUMNS, reference=True)
        points = motion.uncompensate(np.float32(spin["xyz"]), tau, m, reference=True)
        if k == 0:
            np.testing.assert_allclose(points, v["uncompensated_0"], rtol=0, atol=6e-5)
        ranges, intensity = projection.points_to_range_map(points, sensor, spin["intensity"], reference=True)
        expected, expected_intensity = np.zeros((2, ROWS, COLUMNS), np.float32)
        cells = v["frame"] == k
        expected[v["row"][cells], v["col"][cells]] = v["range"][cells]
        expected_intensity[v["row"][cells], v["col"][cells]] = v["intensity"][cells]
        agree = np.abs(ranges - expected) < 1e-4
        # Points at bin edges may fall on either side.
        assert (~agree).sum() <= 2e-3 * cells.sum()
        np.testing.assert_allclose(intensity[agree], expected_intensity[agree], rtol=0, atol=1e-6)


def test_camera_to_lidar(vectors, members, metadata):
    v, poses = vectors("clip_expected.npz"), members("pose")
    for i, name in enumerate(CAMERAS):
        for k, frame in enumerate(metadata["frame_indices"]):
            camera_to_world = poses[f"{frame}.pose.{name}.npy"]
            found = motion.invert_pose(metadata["pose_list"][k, 0]) @ camera_to_world
            np.testing.assert_allclose(found, v[f"camera_c2lidar_{i}"][k], rtol=0, atol=2e-5)
    for k, (start, end) in enumerate(metadata["pose_list"]):
        m = motion.invert_pose(motion.spin_motion(start, end))
        np.testing.assert_allclose(m, v["pose_sensor_start_end"][k], rtol=0, atol=2e-5)


def expected_frame(v):
    """(frame number, stored range map) of the frame that the vectors hold in full."""
    key = next(k for k in v if re.fullmatch(r"range_map_frame\d+_f16", k))
    return int(re.search(r"\d+", key)[0]), v[key].astype(np.float32)


def model_code(range_map, width):
    code = range_coding.encode_linear(projection.downsample(range_map, 1, COLUMNS // MODEL_COLUMNS)[0])
    return projection.crop_columns(code, width)


def test_model_input(vectors, members):
    v, lidar = vectors("clip_expected.npz"), members("lidar")
    frames = sorted({name.split(".")[0] for name in lidar})
    k, range_map = expected_frame(v)
    width = v[f"video_frame{k}_rows"].shape[1]
    for number, frame in enumerate(frames):
        own = np.zeros((ROWS, COLUMNS), np.float32)
        row, column, ranges = (lidar[f"{frame}.lidar_{x}.npz"]["arr_0"] for x in ("row", "col", "range"))
        own[row, column] = ranges
        code = model_code(own, width)
        if number == k:
            np.testing.assert_array_equal(own, range_map)
            np.testing.assert_allclose(code, v[f"video_frame{k}_rows"], rtol=0, atol=5e-7)
        # One channel, four rows each.
        total = 4 * code.sum(dtype=np.float64)
        np.testing.assert_allclose(total, v["video_frame_sums"][number], rtol=1e-6, atol=1.0)


def test_pictures(vectors, metadata):
    """Decoding, colours, points, and their drawing into the cameras after compensation."""
    v, e = vectors("clip_visual_expected.npz"), vectors("clip_expected.npz")
    k, range_map = expected_frame(e)
    assert k == v["frame"]
    width = e[f"video_frame{k}_rows"].shape[1]
    ranges = range_coding.decode_linear(model_code(range_map, width))
    stride = -(-width // v["decoded_input_f32"].shape[1])
    np.testing.assert_allclose(ranges[:, ::stride], v["decoded_input_f32"], rtol=0, atol=3e-5)

    rgb = colour.depth_colours(ranges)
    height = int(v["color_shape"][-2]) // 2  # the dataset's map on top of the generated one
    strides = np.array([2 * height, width]) // v["color_stride"].shape[1:]
    top = np.moveaxis(v["color_stride"], 0, -1)[: height // strides[0]]
    np.testing.assert_allclose(rgb[:: strides[0], :: strides[1]], top, rtol=0, atol=1e-6)

    sensor = load_sensor("pandar128")
    points = projection.range_map_to_points(ranges, sensor, reference=True)
    assert len(points) == v["point_counts"][0]
    columns = np.nonzero(ranges)[1]
    tau = motion.column_fractions(columns, MODEL_COLUMNS, (MODEL_COLUMNS - width) // 2, reference=True)
    redone = motion.compensate(points, tau, motion.spin_motion(*metadata["pose_list"][k]))
    step = -(-len(points) // len(v["points_input_stride"]))
    np.testing.assert_allclose(redone[::step], v["points_input_stride"], rtol=0, atol=6e-5)

    colours = colour.height_colours(redone[:, 2])
    for i, name in enumerate(CAMERAS):
        camera = FThetaCamera.from_vector(e[f"camera_intrinsics_{i}"], name)
        seen = motion.transform(redone, motion.invert_pose(e[f"camera_c2lidar_{i}"][k]))
        canvas = draw_points(camera, seen, colours, radius=2, reference=True)
        wrong = (canvas != v[f"canvas_input_{i}"]).any(-1)
        assert wrong.mean() < 2e-3  # a colour or pixel at an edge may fall on either side


def test_true_azimuths_fit_the_cameras_better(golden, vectors, metadata):
    """The crop treated as a full turn shifts points behind the vehicle; the right rays agree with the scene."""
    scene = json.loads(golden("geometry/clip_scene.json").read_text())
    e = vectors("clip_expected.npz")
    k, range_map = expected_frame(e)
    full, _ = projection.downsample(range_map, 1, 2)
    width = e[f"video_frame{k}_rows"].shape[1]
    crop = projection.crop_columns(full, width)
    sensor = load_sensor("pandar128")
    right = projection.range_map_to_points(projection.pad_columns(crop, MODEL_COLUMNS), sensor)
    stretched = projection.range_map_to_points(crop, sensor, reference=True)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), np.linalg.norm(stretched, axis=1), atol=1e-6)
    columns = np.nonzero(crop)[1]
    tau = motion.column_fractions(columns, MODEL_COLUMNS, (MODEL_COLUMNS - width) // 2)
    start, end = metadata["pose_list"][k].astype(np.float64)
    # Share of points within 10 cm of a wall of the scene's boxes, seen in the world frame.
    shares = [
        near_walls(motion.transform(motion.compensate(p, tau, motion.spin_motion(start, end)), start), scene)
        for p in (right, stretched)
    ]
    assert shares[0] > 0.98
    assert shares[0] > shares[1] + 0.05


def near_walls(points, scene):
    above = points[points[:, 2] > 0.3]
    best = np.full(len(above), np.inf)
    for centre, size, yaw, _ in scene["boxes_center_size_yaw_color"]:
        c, s = np.cos(yaw), np.sin(yaw)
        local = (above - centre) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        q = np.abs(local) - np.array(size) / 2
        distance = np.abs(np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0))
        best = np.minimum(best, distance)
    return (best < 0.1).mean()
