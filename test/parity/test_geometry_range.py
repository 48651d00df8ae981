# SPDX-License-Identifier: Apache-2.0
"""Range maps, coding and packing equal the reference vectors. Sizes and cases are read from the files."""

import json
import re

import numpy as np
import pytest

from lidargen_ros import projection, range_coding
from lidargen_ros.sensors import Sensor, load_sensor

METHOD = re.compile(r"(scatter_min|scatter_max|every_n)_(\d+)x(\d+)")
NORM = re.compile(r"norm_inv(\d)_min(-?\d)")
UNNORM = re.compile(r"unnorm_(inv(\d)_min(-?\d)_b([\d.]+)_([\d.]+))")


@pytest.fixture(scope="session")
def vectors(golden):
    return lambda name: np.load(golden(f"geometry/{name}"))


def sensor_of(elevations, columns):
    return Sensor("vectors", elevations, columns)


@pytest.mark.parametrize(("name", "ready"), [("HESAI-Pandar128", "pandar128_3600"), ("HESAI-AT128", "at128")])
def test_ready_sensor_equals_table(golden, name, ready):
    table, sensor = (
        json.loads(golden("geometry/sensors.json").read_text())["sensors"][name],
        load_sensor(ready),
    )
    assert sensor.shape == (table["n_rows"], table["n_columns"])
    assert sensor.azimuth_span_deg == table["horizontal_fov_deg"]
    assert sensor.spin_time_s == 1 / table["spin_rate_hz"]
    np.testing.assert_array_equal(sensor.elevations_deg, table["elevation_deg"])
    np.testing.assert_allclose(
        sensor.azimuth_offsets_deg, -np.array(table["azimuth_offset_cw_deg"]), atol=1e-12
    )


def test_calibrations_make_sensors(golden):
    models = json.loads(golden("geometry/sensors.json").read_text())["row_offset_models"]
    nominal = load_sensor("pandar128")
    for name, model in models.items():
        sensor = Sensor.from_dict(
            {
                "name": name,
                "elevations_deg": np.rad2deg(model["elevation_rad"]),
                "azimuth_offsets_deg": np.rad2deg(model["azimuth_offset_ccw_rad"]),
                "columns": model["n_columns"],
            }
        )
        # One vehicle's beams differ little from the nominal table.
        assert np.abs(sensor.elevations_deg - nominal.elevations_deg).max() < 0.1


def test_reference_rays(vectors):
    v = vectors("range_points.npz")
    for key in v:
        if not (match := re.fullmatch(r"rays_(\d+)", key)):
            continue
        rays = projection.reference_directions(v["elevations_deg"], int(match[1]))
        if f"rows_{match[1]}" in v:
            rays = rays[np.ix_(v[f"rows_{match[1]}"], v[f"cols_{match[1]}"])]
        np.testing.assert_allclose(rays, v[key], rtol=0, atol=5e-13)


def test_reference_points(vectors):
    v = vectors("range_points.npz")
    sensor = sensor_of(v["elevations_deg"], v["range_map"].shape[1])
    points = projection.range_map_to_points(v["range_map"], sensor, reference=True)
    np.testing.assert_allclose(points, v["points"], rtol=0, atol=5e-13)
    # The default is half a bin further clockwise, at the same range and height.
    centred = projection.range_map_to_points(v["range_map"], sensor)
    turn = np.arctan2(points[:, 1], points[:, 0]) - np.arctan2(centred[:, 1], centred[:, 0])
    np.testing.assert_allclose(turn % (2 * np.pi), np.pi / sensor.columns, atol=1e-9)
    np.testing.assert_allclose(centred[:, 2], points[:, 2], atol=1e-9)


def test_downsample(vectors):
    v, cases = vectors("downsample.npz"), 0
    extras = [v["extra"], v["extra_mask"]]
    for key in v:
        if match := METHOD.fullmatch(key):
            factors = int(match[2]), int(match[3])
            for reference in (False, True):
                out, moved = projection.downsample(v["x"], *factors, match[1], extras, reference)
                np.testing.assert_array_equal(out, v[key])
                for suffix, got in zip(("_extra", "_extra_mask"), moved, strict=True):
                    if key + suffix in v:
                        np.testing.assert_array_equal(got, v[key + suffix])
            cases += 1
    assert cases > 0


def test_downsample_oddities(vectors):
    v = vectors("downsample.npz")
    out, _ = projection.downsample(v["big"], 1, 2, reference=True)
    np.testing.assert_array_equal(out, v["big_scatter_min_1x2"])
    pairs = v["big"].reshape(*v["big"].shape[:-1], -1, 2)
    right = np.where(pairs > 0, pairs, np.inf).min(-1)
    np.testing.assert_array_equal(
        projection.downsample(v["big"], 1, 2)[0], np.where(np.isinf(right), 0, right).astype(np.float32)
    )
    extra = np.arange(v["quirk_in"].size, dtype=np.float32).reshape(v["quirk_in"].shape)
    out, (unreduced,) = projection.downsample(v["quirk_in"], 1, 2, extras=[extra], reference=True)
    np.testing.assert_array_equal(out, v["quirk_range_out"])
    np.testing.assert_array_equal(unreduced, v["quirk_extra_out"])
    _, (reduced,) = projection.downsample(v["quirk_in"], 1, 2, extras=[extra])
    np.testing.assert_array_equal(reduced, extra[..., ::2])
    _, moved = projection.downsample(v["x"], 1, 2, "every_n", [v["extra_mask"]], reference=True)
    np.testing.assert_array_equal(moved[0].shape, v["quirk_every_n_extra_shape"])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_coding(vectors, kind):
    v = vectors("normalise.npz")
    if kind == "torch":
        torch = pytest.importorskip("torch")
        to, back = torch.from_numpy, lambda t: t.numpy()
    else:
        to = back = np.asarray
    encode = {"0": range_coding.encode_linear, "1": range_coding.encode_inverse}
    decode = {"0": range_coding.decode_linear, "1": range_coding.decode_inverse}
    cases = 0
    for key in v:
        if match := NORM.fullmatch(key):
            code = back(encode[match[1]](to(v["r"]), min_value=float(match[2])))
            assert code.dtype == v[key].dtype
            np.testing.assert_allclose(code, v[key], rtol=0, atol=5e-7)
        if match := UNNORM.fullmatch(key):
            case, inverse, low, near, far = match.groups()
            codes = to(v[f"norm_inv{inverse}_min{low}"])
            ranges = back(decode[inverse](codes, near_m=float(near), far_m=float(far), min_value=float(low)))
            # A value at a buffer's edge may fall on either side.
            edges = [range_coding.MIN_M + float(near), range_coding.MAX_M - float(far)]
            clear = np.abs(v["r"][..., None] - edges).min(-1) > 1e-3
            np.testing.assert_array_equal((ranges > 0)[clear], v[f"mask_{case}"][clear])
            np.testing.assert_allclose(ranges[clear], v[key][clear], rtol=0, atol=3e-5)
        cases += 1
    assert cases > 0


def test_three_channels(vectors):
    v = vectors("normalise.npz")
    y = v["y"]
    repeat = range_coding.decode_linear(y.mean(axis=1))
    concat = range_coding.decode_concat(y[:, 0], y[:, 1:].mean(axis=1))
    for name, got in (("reduce_repeat", repeat), ("reduce_concat", concat)):
        np.testing.assert_array_equal(got > 0, v[f"{name}_mask"])
        np.testing.assert_allclose(got, v[name], rtol=0, atol=3e-5)
    single = range_coding.encode_linear(v["pack_in"])
    np.testing.assert_allclose(np.stack([single] * 3, axis=1), v["pack_repeat"], rtol=0, atol=5e-7)
    odd = np.stack(range_coding.encode_concat(v["pack_in"], reference=True), axis=1)
    np.testing.assert_allclose(odd, v["pack_concat"], rtol=0, atol=5e-7)
    right = np.stack(range_coding.encode_concat(v["pack_in"]), axis=1)
    np.testing.assert_array_equal(right[:, 1][v["pack_in"] == 0], -1)


def test_picking_of_repeated_rows(vectors):
    v, cases = vectors("normalise.npz"), 0
    for key in v:
        if match := re.fullmatch(r"undo_row(\d+)_col(\d+)", key):
            np.testing.assert_array_equal(
                projection.pick_rows(v["undo_in"], int(match[1]), int(match[2])), v[key]
            )
            cases += 1
    assert cases > 0


def test_model_input(vectors):
    v = vectors("range_pipeline.npz")
    range_map = np.zeros((128, 3600), np.float32)
    range_map[v["row"], v["col"]] = v["range"]
    _, channels, height, width = (0, *v["model_input_shape"])[-4:]
    code = range_coding.encode_linear(projection.downsample(range_map, 1, 2)[0])
    image = projection.crop_columns(projection.repeat_rows(code, height // 128), width)
    assert image.shape == (height, width)
    assert channels in (1, 3)
    for repeat in range(height // 128):
        np.testing.assert_allclose(image[repeat :: height // 128], v["model_input_rows"], rtol=0, atol=5e-7)


def test_points_to_range_map(vectors):
    v, cases = vectors("points_to_rangemap.npz"), 0
    for key in v:
        if not (match := re.fullmatch(r"(\d+)_points", key)):
            continue
        n = match[1]
        sensor = sensor_of(v["elevations_deg_f32"], int(n))
        ranges, intensity = projection.points_to_range_map(
            v[key], sensor, v[f"{n}_intensity_in"], reference=True
        )
        row, column = np.nonzero(ranges)
        np.testing.assert_array_equal(row, v[f"{n}_row"])
        np.testing.assert_array_equal(column, v[f"{n}_col"])
        np.testing.assert_allclose(ranges[row, column], v[f"{n}_range"], rtol=0, atol=3e-5)
        np.testing.assert_array_equal(intensity[row, column], v[f"{n}_intensity"])
        # Within the range window the default agrees; beyond it keeps what the reference drops.
        default, _ = projection.points_to_range_map(v[key], sensor)
        near = (ranges >= sensor.min_range_m) & (ranges > 0)
        np.testing.assert_allclose(default[near], ranges[near], rtol=0, atol=3e-5)
        cases += 1
    assert cases > 0


def test_special_points(vectors):
    v = vectors("points_to_rangemap.npz")
    sensor = sensor_of(v["elevations_deg_f32"], 3600)
    row, column, ranges = projection.assign_rays(v["special_points"], sensor, reference=True)
    expected = v["special_row_col_range"]
    np.testing.assert_array_equal(np.stack([row, column], axis=1), expected[:, :2])
    kept = row >= 0
    np.testing.assert_allclose(ranges[kept], expected[kept, 2], rtol=0, atol=3e-5)


def test_tokenizer_path(vectors):
    """Mask and rays follow the nearest return; an identity auto-encoder that adds noise per column gives the rest."""
    v = vectors("tokenizer_path.npz")
    full = v["range_map"]
    frames, rows, columns = full.shape
    low, high = range_coding.MIN_M, range_coding.MAX_M
    mask = (full > low + 0.1) & (full < high - 0.1)
    rays = projection.reference_directions(load_sensor("pandar128").elevations_deg, columns)
    rays = np.broadcast_to(rays, (frames, *rays.shape)).astype(np.float32)
    reduced, (mask, rays) = projection.downsample(
        full, 1, columns // v["input_clipped"].shape[2], extras=[mask, rays]
    )
    clipped = reduced.clip(low, high)
    np.testing.assert_allclose(clipped, v["input_clipped"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(mask, v["valid_mask"])
    if rows == 128:  # the table of the reference has 128 rows
        np.testing.assert_allclose(rays[0], v["rays"], rtol=0, atol=2e-6)
    image = projection.repeat_rows(range_coding.encode_linear(clipped), 4)
    padded = projection.pad_to_multiple(image, 16)
    assert (1, *padded.shape[-2:], 3) == tuple(v["padded_shape"])
    left = (padded.shape[-1] - image.shape[-1]) // 2
    noise = np.pad(v["ae_noise"], (left, padded.shape[-1] - image.shape[-1] - left))
    code = projection.pick_rows(projection.unpad(padded + noise, *image.shape[-2:])).clip(-1, 1)
    ranges = np.where(mask, range_coding.decode_linear(code, near_m=-1, far_m=-1), 0)
    np.testing.assert_allclose(ranges, v["reconstructed"], rtol=0, atol=6e-5)
