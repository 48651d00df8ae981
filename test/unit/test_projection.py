# SPDX-License-Identifier: Apache-2.0
"""Range maps and points, down-sampling, packing and range coding: inverse pairs and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lidargen_ros import projection, range_coding
from lidargen_ros.errors import InputError
from lidargen_ros.outliers import inliers
from lidargen_ros.sensors import Sensor, load_sensor

SENSOR = Sensor("small", [14.0, 6.5, 0.0, -3.0, -20.0], 24, min_range_m=1.0, max_range_m=100.0)
FRONT = Sensor("front", [5.0, 0.0, -5.0], 12, azimuth_start_deg=60, azimuth_span_deg=120, min_range_m=1.0)
# Ranges inside the window, or no return.
RANGES = st.one_of(st.just(0.0), st.floats(1.5, 99.0, width=32))


def maps(shape, elements=RANGES):
    return hnp.arrays(np.float32, shape, elements=elements)


@pytest.mark.parametrize("sensor", [SENSOR, FRONT], ids=lambda s: s.name)
@given(data=st.data())
def test_map_to_points_to_map(sensor, data):
    range_map = data.draw(maps(sensor.shape))
    points = projection.range_map_to_points(range_map, sensor)
    assert points.shape == ((range_map > 0).sum(), 3)
    back, _ = projection.points_to_range_map(points, sensor)
    np.testing.assert_allclose(back, range_map, rtol=1e-6)


@given(maps(SENSOR.shape))
def test_rings_place_points_whatever_their_elevation(range_map):
    points = projection.range_map_to_points(range_map, SENSOR)
    rows = np.nonzero(range_map)[0]
    other = Sensor("other", [50.0, 40.0, 30.0, 20.0, 10.0], SENSOR.columns, max_range_m=100.0)
    back, _ = projection.points_to_range_map(points, other, rows=rows)
    np.testing.assert_allclose(back, range_map, rtol=1e-6)


@given(maps(SENSOR.shape), st.integers(0, 2**32 - 1))
def test_nearest_return_wins_and_brings_its_intensity(range_map, seed):
    rng = np.random.default_rng(seed)
    points = projection.range_map_to_points(range_map, SENSOR)
    farther = points * rng.uniform(1.001, 1.01, (len(points), 1))
    order = rng.permutation(2 * len(points))
    both = np.concatenate([points, farther])[order]
    intensity = np.concatenate([np.full(len(points), 0.25), np.full(len(points), 0.75)])[order]
    back, bright = projection.points_to_range_map(both, SENSOR, intensity)
    np.testing.assert_allclose(back, range_map, rtol=1e-6)
    np.testing.assert_array_equal(bright, np.where(range_map > 0, np.float32(0.25), 0))


def test_points_that_belong_to_no_ray():
    points = [[0, 0, 0], [np.nan, 1, 1], [np.inf, 0, 0], [0.5, 0, 0], [101, 0, 0], [10, 0, 10], [10, 0, -10]]
    row, column, _ = projection.assign_rays(points, SENSOR)
    assert (row == -1).all()
    assert (column == -1).all()
    behind = projection.assign_rays([[-10, 0.1, 0]], FRONT)
    assert behind[0][0] == behind[1][0] == -1
    assert projection.assign_rays([[10, 0, 0]], SENSOR, rows=[5])[0][0] == -1
    empty, _ = projection.points_to_range_map(np.zeros((0, 3)), SENSOR)
    assert not empty.any()


def test_crop_gets_its_true_azimuths_back_by_padding():
    sensor = load_sensor("pandar128")
    range_map = np.zeros(sensor.shape, np.float32)
    range_map[41, 10] = 80.0  # rear left
    crop = projection.crop_columns(range_map, 1792)
    true = projection.range_map_to_points(projection.pad_columns(crop, 1800), sensor)
    stretched = projection.range_map_to_points(crop, sensor, reference=True)
    np.testing.assert_allclose(true, projection.range_map_to_points(range_map, sensor))
    # 0.8 deg from the crop and 0.1 deg from the left edge, at 80 m: over a metre.
    assert 1.0 < np.linalg.norm(true - stretched) < 1.4


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="small"):
        projection.range_map_to_points(np.zeros((5, 23)), SENSOR)
    with pytest.raises(InputError, match="crop"):
        projection.crop_columns(np.zeros((2, 10)), 11)
    with pytest.raises(InputError, match="fit"):
        projection.pad_columns(np.zeros((2, 10)), 9)
    with pytest.raises(InputError, match="multiple"):
        projection.downsample(np.zeros((4, 10)), 1, 3)
    with pytest.raises(InputError, match="scatter_min"):
        projection.downsample(np.zeros((4, 10)), 1, 2, "mean")


@given(maps((2, 6, 12)), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]))
def test_downsample_takes_the_nearest_return(x, rows, columns):
    index = np.arange(x.size).reshape(x.shape)
    out, (chosen,) = projection.downsample(x, rows, columns, extras=[index])
    blocks = x.reshape(2, 6 // rows, rows, 12 // columns, columns).swapaxes(2, 3).reshape(*out.shape, -1)
    nearest = np.where(blocks > 0, blocks, np.inf).min(-1)
    np.testing.assert_array_equal(out, np.where(np.isinf(nearest), 0, nearest))
    np.testing.assert_array_equal(x.ravel()[chosen], out)
    assert out.dtype == x.dtype


@given(maps((2, 3, 4)), st.integers(1, 5))
def test_repeat_and_pick(x, times):
    repeated = projection.repeat_rows(x, times)
    np.testing.assert_array_equal(repeated, np.repeat(x, times, axis=-2))
    np.testing.assert_array_equal(projection.pick_rows(repeated, times), x)


@given(maps((2, 5, 7)), st.integers(2, 6))
def test_pad_and_unpad(x, multiple):
    padded = projection.pad_to_multiple(x, multiple)
    assert all(size % multiple == 0 for size in padded.shape[-2:])
    np.testing.assert_array_equal(projection.unpad(padded, 5, 7), x)
    assert padded.sum() == pytest.approx(x.sum())


@given(maps((3, 8)), st.integers(0, 4), st.integers(0, 4))
def test_pad_and_crop(x, left, right):
    total = 8 + left + right
    np.testing.assert_array_equal(projection.crop_columns(projection.pad_columns(x, total, left), 8, left), x)
    np.testing.assert_array_equal(projection.crop_columns(projection.pad_columns(x, total), 8), x)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@settings(max_examples=50)
@given(x=maps((3, 8)))
def test_coding_round_trips(kind, x):
    torch = pytest.importorskip("torch") if kind == "torch" else None
    to = (lambda a: torch.from_numpy(a.copy())) if torch else np.asarray
    open_ends = {"near_m": -1.0, "far_m": -1.0}
    inside = (x >= 5) & (x <= 100)
    for encode, decode, rtol in (
        (range_coding.encode_linear, range_coding.decode_linear, 1e-5),
        (range_coding.encode_inverse, range_coding.decode_inverse, 1e-4),
    ):
        for low in (-1.0, 0.0):
            code = encode(to(x), min_value=low)
            assert float(code.min()) >= low
            assert float(code.max()) <= 1
            back = np.asarray(decode(code, min_value=low, **open_ends))
            assert back.dtype == np.float32
            np.testing.assert_allclose(back[inside], x[inside], rtol=rtol)
    inverse, linear, _ = range_coding.encode_concat(to(x))
    back = np.asarray(range_coding.decode_concat(inverse, linear, **open_ends))
    np.testing.assert_allclose(back[inside], x[inside], rtol=1e-4)
    code = range_coding.encode_log(to(x), 0.5, 120.0)
    back = np.asarray(range_coding.decode_log(code, 0.5, 120.0))
    np.testing.assert_allclose(back[x > 0], x[x > 0], rtol=2e-6)
    assert (np.asarray(code)[x == 0] == -1).all()


@given(hnp.arrays(np.float32, (6,), elements=st.floats(-3, 3, width=32)))
def test_decoders_take_any_code(code):
    for ranges in (range_coding.decode_linear(code), range_coding.decode_inverse(code)):
        assert np.isfinite(ranges).all()
        assert ((ranges == 0) | ((ranges > 6.5) & (ranges < 90))).all()
    assert (
        (range_coding.decode_log(code, 0.5, 120) >= 0.499) & (range_coding.decode_log(code, 0.5, 120) < 120.1)
    ).all()


def test_outlier_filter():
    rng = np.random.default_rng(3)
    cloud = rng.normal(size=(200, 3))
    assert inliers(cloud).mean() > 0.7
    assert not inliers(np.concatenate([cloud, [[50.0, 0, 0]]]))[-1]
    assert not inliers(np.zeros((30, 3))).any()  # all coincide
    assert inliers(np.zeros((0, 3))).shape == (0,)
    assert inliers(np.zeros((1, 3))).tolist() == [False]
    assert inliers(rng.normal(size=(5, 3))).shape == (5,)
