# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 of the common drivers, and messages that lie about their sizes."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.bags.pointclouds import MAX_POINTS, cloud_from_message, decode_cloud
from lidargen_ros.errors import InputError

CODES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
XYZ = [("x", "f4", 0), ("y", "f4", 4), ("z", "f4", 8)]
# Field tables of the drivers' own documentation: (fields, point step).
LAYOUTS = {
    "velodyne": ([*XYZ, ("intensity", "f4", 12), ("ring", "u2", 16), ("time", "f4", 18)], 22),
    "ouster": (
        [
            *XYZ,
            ("intensity", "f4", 16),
            ("t", "u4", 20),
            ("reflectivity", "u2", 24),
            ("ring", "u2", 26),
            ("ambient", "u2", 28),
            ("range", "u4", 32),
        ],
        48,
    ),
    "hesai": ([*XYZ, ("intensity", "f4", 16), ("timestamp", "f8", 24), ("ring", "u2", 32)], 48),
    "livox": (
        [*XYZ, ("intensity", "f4", 12), ("tag", "u1", 16), ("line", "u1", 17), ("timestamp", "f8", 18)],
        26,
    ),
    "autoware_xyzirc": (
        [*XYZ, ("intensity", "u1", 12), ("return_type", "u1", 13), ("channel", "u2", 14)],
        16,
    ),
    "autoware_xyzircaedt": (
        [
            *XYZ,
            ("intensity", "u1", 12),
            ("return_type", "u1", 13),
            ("channel", "u2", 14),
            ("azimuth", "f4", 16),
            ("elevation", "f4", 20),
            ("distance", "f4", 24),
            ("time_stamp", "u4", 28),
        ],
        32,
    ),
    "pcl_xyzi": ([*XYZ, ("intensity", "f4", 16)], 32),
    "xyz": (XYZ, 12),
}
STAMP_NS = 1_712_345_678_123_456_789
# Where a driver counts absolute time, float64 seconds resolve about 0.2 us.
TIME = {"time": (1.0, 0.0), "t": (1e-9, 0.0), "time_stamp": (1e-9, 0.0), "timestamp": (1.0, STAMP_NS / 1e9)}


def message(layout, points, height=1, padding=0, order="<", livox_ns=False, **values):
    """A PointCloud2 as rosbags gives it, packed field by field."""
    fields, step = layout
    width = len(points) // height
    row_step = width * step + padding
    data = bytearray(row_step * height)
    columns = {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2], **values}
    for name, kind, offset in fields:
        for i in range(len(points)):
            value = columns.get(name, np.zeros(len(points)))[i]
            code = {"f4": "f", "f8": "d", "u1": "B", "u2": "H", "u4": "I"}[kind]
            at = (i // width) * row_step + (i % width) * step + offset
            struct.pack_into(order + code, data, at, float(value) if kind[0] == "f" else int(value))
    return SimpleNamespace(
        header=SimpleNamespace(
            stamp=SimpleNamespace(sec=STAMP_NS // 10**9, nanosec=STAMP_NS % 10**9), frame_id="lidar"
        ),
        height=height,
        width=width,
        fields=[SimpleNamespace(name=n, offset=o, datatype=CODES[k], count=1) for n, k, o in fields],
        is_bigendian=order == ">",
        point_step=step,
        row_step=row_step,
        data=np.frombuffer(bytes(data), np.uint8),
        is_dense=True,
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("height", "padding"), [(1, 0), (4, 0), (4, 6)])
def test_layouts(name, order, height, padding):
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 50, (12, 3)).astype(np.float32)
    ring = np.arange(12) % 4
    seconds = np.linspace(0, 0.09, 12)
    layout = LAYOUTS[name]
    names = [f[0] for f in layout[0]]
    values = {"ring": ring, "channel": ring, "line": ring, "intensity": np.arange(12) * 20}
    time = next((n for n in names if n in TIME), None)
    if time == "timestamp" and name == "livox":
        values[time] = seconds * 1e9 + STAMP_NS  # Livox counts nanoseconds in float64
    elif time:
        unit, zero = TIME[time]
        values[time] = seconds / unit + zero
    cloud = cloud_from_message(message(layout, points, height, padding, order, **values))
    np.testing.assert_array_equal(cloud.points, points)
    assert cloud.stamp_ns == STAMP_NS
    assert cloud.frame_id == "lidar"
    assert cloud.shape == (height, 12 // height)
    if name == "xyz":
        assert cloud.intensity is None
        assert cloud.ring is None
        assert cloud.time_s is None
        return
    scale = 255 if name.startswith("autoware") else 1
    np.testing.assert_allclose(cloud.intensity, np.arange(12) * 20 / scale, rtol=1e-6)
    if name != "pcl_xyzi":
        np.testing.assert_array_equal(cloud.ring, ring)
    if time:
        np.testing.assert_allclose(cloud.time_s, seconds, rtol=0, atol=1e-6)
    if height > 1:
        np.testing.assert_array_equal(cloud.cell, np.argwhere(np.ones(cloud.shape)))


def test_points_without_return_are_left_out_and_keep_their_cells():
    points = np.arange(18, dtype=np.float32).reshape(6, 3) + 1
    points[1] = np.nan
    points[4] = 0
    points[5, 2] = np.inf
    cloud = cloud_from_message(message(LAYOUTS["ouster"], points, height=2, ring=np.arange(6)))
    np.testing.assert_array_equal(cloud.cell, [[0, 0], [0, 2], [1, 0]])
    np.testing.assert_array_equal(cloud.ring, [0, 2, 3])
    assert cloud.empty_cells == 3


def test_double_precision_coordinates():
    fields = [("x", "f8", 0), ("y", "f8", 8), ("z", "f8", 16)]
    points = np.array([[1.5, -2.25, 3.0]])
    np.testing.assert_array_equal(cloud_from_message(message((fields, 24), points)).points, points)


def good(**changes):
    arguments = {"width": 2, "height": 1, "point_step": 12, "row_step": 24}
    fields = [(name, offset, 7, 1) for name, _, offset in XYZ]
    return {"data": bytes(24), "fields": fields, **arguments, **changes}


def test_empty_cloud():
    assert len(decode_cloud(**good(data=b"", width=0, row_step=0))) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 3}, "cannot hold"),
        ({"width": 3, "row_step": 36}, "cannot hold"),
        ({"height": 2}, "cannot hold"),
        ({"height": 2**31, "width": 2**31}, "at most"),
        ({"width": MAX_POINTS + 1, "row_step": 0}, "at most"),
        ({"width": -1}, "at most"),
        ({"point_step": 0, "row_step": 24}, "cannot hold"),
        ({"point_step": 8, "row_step": 24}, "outside a point"),
        ({"fields": [("x", 0, 7, 1), ("y", 4, 7, 1)]}, "needs x, y and z"),
        ({"fields": []}, "needs x, y and z"),
        ({"fields": [("x", 0, 5, 1), ("y", 4, 7, 1), ("z", 8, 7, 1)]}, "as floats"),
        ({"fields": [("x", 0, 77, 1), ("y", 4, 7, 1), ("z", 8, 7, 1)]}, "cannot be read"),
        ({"fields": [("x", 0, 7, 5), ("y", 4, 7, 1), ("z", 8, 7, 1)]}, "cannot be read"),
        ({"fields": [("x", 0, 7, 1), ("x", 4, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1)]}, "doubled"),
        ({"fields": [("x", -4, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1)]}, "outside"),
        ({"fields": [("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1), ("ring", 10, 6, 1)]}, "outside"),
    ],
)
def test_messages_that_contradict_themselves(change, words):
    with pytest.raises(InputError, match=words):
        decode_cloud(**good(**change))


def test_impossible_rings_and_times():
    layout = LAYOUTS["velodyne"]
    points = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="ring numbers"):
        cloud_from_message(message(layout, points, ring=np.array([1, 60000])))
    with pytest.raises(InputError, match="unit of the time field"):
        cloud_from_message(message(layout, points, time=np.array([0.0, 100_000.0])))
    cloud = cloud_from_message(message(layout, points, time=np.array([0.0, 100_000.0])), time_unit_s=1e-6)
    np.testing.assert_allclose(cloud.time_s, [0, 0.1], rtol=1e-6)
    with pytest.raises(InputError, match="NaN"):
        cloud_from_message(message(layout, points, time=np.array([0.0, np.nan])))


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200),
    width=st.integers(-2, 2**33),
    height=st.integers(-2, 2**33),
    point_step=st.integers(-1, 100),
    row_step=st.integers(0, 2**33),
    fields=st.lists(
        st.tuples(
            st.sampled_from(["x", "y", "z", "ring", "time", "intensity", "other"]),
            st.integers(-5, 100),
            st.integers(0, 10),
            st.integers(-1, 3),
        ),
        max_size=8,
    ),
)
def test_any_message_gives_a_cloud_or_an_input_error(data, width, height, point_step, row_step, fields):
    try:
        cloud = decode_cloud(
            data, fields, width=width, height=height, point_step=point_step, row_step=row_step
        )
    except InputError:
        return
    assert np.isfinite(cloud.points).all()
    assert len(cloud) <= width * height
