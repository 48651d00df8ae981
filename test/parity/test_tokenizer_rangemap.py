# SPDX-License-Identifier: Apache-2.0
"""Range maps on their way into and out of the LiDAR tokenizer, against the published model's own numbers.

Not covered: repetition along time (``unrepeat5d/*_rt2``, ``*_rt4``, ``loader_video_rt2``), which nothing here has.
"""

import math
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros import projection as pj  # noqa: E402
from lidargen_ros import range_coding as rc  # noqa: E402
from lidargen_ros.metrics.range_errors import range_errors  # noqa: E402
from lidargen_ros.models.tokenizer_config import TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_io import load_tokenizer  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402
from training.tokenizer_loss import to_bytes  # noqa: E402

NEVER = -math.inf  # a buffer that drops nothing


@pytest.fixture
def facts(tokenizer_vectors):
    return tokenizer_vectors("rangemap")[0]["facts"]


@pytest.fixture
def vectors(tokenizer_vectors):
    return {key: value.numpy() for key, value in tokenizer_vectors("rangemap")[1].items()}


def same(actual, expected, what=""):
    np.testing.assert_array_equal(actual, expected, err_msg=what)


def near(actual, expected, what="", tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0, err_msg=what)


def matches(vectors, pattern):
    """``(key, match)`` of every key that the pattern describes in full; there must be some."""
    found = [(key, match) for key in vectors if (match := re.fullmatch(pattern, key))]
    assert found, pattern
    return found


def test_down_sampling(vectors):
    for key, match in matches(vectors, r"down/(\w+)/(scatter_min|scatter_max|every_n)_r(\d)c(\d)"):
        name, method, rows, columns = match[1], match[2], int(match[3]), int(match[4])
        raw = vectors[f"raw/{name}"]
        # The companions were numbered maps, and a mask of which only the chosen cells are known.
        index = np.arange(raw.size, dtype=np.float32).reshape(raw.shape)
        vector = index[..., None] + np.array([0, 0.25, 0.5], np.float32)
        extras = [index, vector, mask_of(vectors, name, raw)]
        actual, (scalar, vec3, mask) = pj.downsample(raw, rows, columns, method, extras, reference=True)
        same(actual, vectors[key], key)
        if method != "every_n":
            same(scalar, vectors[f"{key}/extra_scalar"], key)
            same(vec3, vectors[f"{key}/extra_vec3"], key)
            same(mask, vectors[f"{key}/extra_bool"], key)


def mask_of(vectors, name, raw):
    mask = np.zeros(raw.size, np.uint8)
    for key, _ in matches(vectors, rf"down/{name}/\w+/extra_scalar"):
        mask[vectors[key].astype(int)] |= vectors[key.replace("scalar", "bool")]
    return mask.reshape(raw.shape)


def test_companion_quirks(facts):
    """Published: companions come back at full width where the first column always wins, or with every_n."""
    fact = facts["down_all_first_column_wins"]
    frames, rows, columns = fact["extra_shape"]
    falling = np.broadcast_to(np.arange(1, columns + 1, dtype=np.float32), (frames, rows, columns))
    actual, (extra,) = pj.downsample(
        falling, 1, columns // fact["range_shape"][2], extras=[falling], reference=True
    )
    assert [list(actual.shape), list(extra.shape)] == [fact["range_shape"], fact["extra_shape"]]
    _, (extra,) = pj.downsample(falling, 1, columns // fact["range_shape"][2], extras=[falling])
    assert list(extra.shape) == fact["range_shape"]
    fact = facts["down_every_n_companion"]
    x = np.ones(fact["extra_shape"], np.float32)
    factor = fact["extra_shape"][2] // fact["range_shape"][2]
    actual, (extra,) = pj.downsample(x, 1, factor, "every_n", [x], reference=True)
    assert [list(actual.shape), list(extra.shape)] == [fact["range_shape"], fact["extra_shape"]]


def test_coding(vectors):
    for key, match in matches(vectors, r"norm/(\w+)/min(-1|0)_inv([01])"):
        encode = rc.encode_inverse if match[3] == "1" else rc.encode_linear
        actual = encode(vectors[f"raw/{match[1]}"], min_value=float(match[2]))
        (near if match[3] == "1" else same)(actual, vectors[key], key)


def test_decoding(vectors):
    for key, match in matches(vectors, r"unnorm/((\w+)/min(-1|0)_inv([01]))/near([\d.]+)_far([\d.]+)"):
        decode = rc.decode_inverse if match[4] == "1" else rc.decode_linear
        buffers = {"near_m": float(match[5]), "far_m": float(match[6])}
        actual = decode(vectors[f"norm/{match[1]}"], min_value=float(match[3]), **buffers)
        near(actual, vectors[key], key, tolerance=2e-4)
        same(actual > 0, vectors[f"{key}/valid"].astype(bool), key)


def test_decoding_with_a_given_mask(vectors):
    ranges = rc.decode_linear(vectors["unnorm_given_mask/normalised"], near_m=NEVER, far_m=NEVER)
    near(np.where(vectors["unnorm_given_mask/mask"] > 0, ranges, 0), vectors["unnorm_given_mask/metres"])


def repeat(x, rows, columns):
    return pj.repeat_rows(np.swapaxes(pj.repeat_rows(np.swapaxes(x, -1, -2), columns), -1, -2), rows)


def test_packing_there_and_back(vectors):
    maps = pj.downsample(vectors["raw/random"], 1, 2)[0]
    for key, match in matches(vectors, r"loader/(repeat|concat)_rr(\d)_rc(\d)/undone"):
        mode, rows, columns = match[1], int(match[2]), int(match[3])
        prefix = key.removesuffix("/undone")
        single = rc.encode_linear(maps)
        channels = [single] * 3 if mode == "repeat" else rc.encode_concat(maps, reference=True)
        packed = repeat(np.stack(channels, axis=1), rows, columns)
        if prefix in vectors:
            near(packed, vectors[prefix], prefix)
        undone = pj.pick_rows(packed, rows, columns)
        near(undone, vectors[key], key)
        metres = unpack(undone, mode, near_m=0.5, far_m=0.5)
        near(metres, vectors[f"{prefix}/metres"], prefix, tolerance=5e-4)
        same(metres > 0, vectors[f"{prefix}/valid"].astype(bool), prefix)


def unpack(x, mode, **buffers):
    """Three channels to metres."""
    if mode == "repeat":
        return rc.decode_linear(x.mean(1), **buffers)
    return rc.decode_concat(x[:, 0], x[:, 1:].mean(1), **buffers)


def test_reduction_of_channels(vectors):
    for key, match in matches(vectors, r"reduce/(repeat|concat)/near([\d.]+)_far([\d.]+)"):
        metres = unpack(vectors["reduce/input"], match[1], near_m=float(match[2]), far_m=float(match[3]))
        near(metres, vectors[key], key, tolerance=5e-4)
        same(metres > 0, vectors[f"{key}/valid"].astype(bool), key)


def test_picking_of_rows(vectors):
    for key, match in matches(vectors, r"(unrepeat|unrepeat5d)/rr(\d)_rc(\d)(_rt1)?"):
        same(pj.pick_rows(vectors[f"{match[1]}/input"], int(match[2]), int(match[3])), vectors[key], key)


def test_full_width(vectors):
    halved = pj.downsample(vectors["fullwidth/raw"], 1, 2)[0]
    single = rc.encode_linear(halved)
    same(single, vectors["fullwidth/nocrop"].reshape(single.shape))
    for key, match in matches(vectors, r"fullwidth/crop(\d+)"):
        expected = vectors[key]
        packed = pj.repeat_rows(np.stack([single] * 3, axis=1), expected.shape[-2] // single.shape[-2])
        same(pj.crop_columns(packed, int(match[1])), expected, key)


def test_padding(facts):
    for name, fact in facts.items():
        if not (match := re.fullmatch(r"pad_image_(\d+)x(\d+)", name)):
            continue
        x = np.random.default_rng(0).random((3, int(match[1]), int(match[2])), np.float32) + 1
        padded = pj.pad_to_multiple(x)
        top, left, bottom, right = fact["crop_region_y1x1y2x2"]
        assert list(padded.shape[1:]) == fact["padded"]
        same(padded[:, top:bottom, left:right], x, name)
        assert padded.sum(dtype=np.float64) == pytest.approx(x.sum(dtype=np.float64))
        same(pj.unpad(padded, *x.shape[1:]), x, name)
        assert [top, left] == [fact["first_row"], fact["first_col"]]


def test_rays_and_points(vectors):
    elevations = vectors["rays/elevations_deg"]
    for key, match in matches(vectors, r"rays/w(\d+)"):
        near(pj.reference_directions(elevations, int(match[1])), vectors[key], key, tolerance=1e-6)
    ranges = vectors["points/range"]
    sensor = Sensor("reference", elevations, ranges.shape[1])
    near(pj.range_map_to_points(ranges, sensor, reference=True), vectors["points/xyz"], tolerance=1e-4)


def test_pictures(vectors):
    pixels = torch.from_numpy(vectors["uint8/image_nhwc"]).permute(0, 3, 1, 2)
    same(to_bytes(torch.from_numpy(vectors["uint8/tensor_nchw"])).numpy(), pixels.numpy())
    same(
        to_bytes(torch.from_numpy(vectors["uint8/noisy"])).permute(0, 2, 3, 1).numpy(),
        vectors["uint8/noisy_back"],
    )


def test_lidar_tokenizer_end_to_end(golden, tokenizer_vectors):
    """The published tokenizer program: raw maps to maps that went through the tokenizer, and its scores."""
    description, tensors = tokenizer_vectors("lidar_pipeline")
    options = tokenizer_vectors("jit_vae")[0]["facts"]["lidar_config"]
    elevations = tokenizer_vectors("rangemap")[1]["rays/elevations_deg"].numpy()
    num_groups = TokenizerConfig.from_options(options).num_groups
    tokenizer = load_tokenizer(golden("tokenizer/jit/lidar"), num_groups=num_groups)
    for name, fact in description["facts"].items():
        raw, expected = tensors[f"{name}/raw"].numpy(), tensors[f"{name}/recon"].numpy()
        seen = (raw > rc.MIN_M + 0.1) & (raw < rc.MAX_M - 0.1)
        rays = np.broadcast_to(pj.reference_directions(elevations, raw.shape[-1]), (*raw.shape, 3))
        factor = fact["columns_in"] // fact["columns_out"]
        maps, (rays, seen) = pj.downsample(raw, 1, factor, extras=[rays, seen], reference=True)
        original = maps.clip(rc.MIN_M, rc.MAX_M)
        same(original, tensors[f"{name}/original_clipped"].numpy())
        same(seen, tensors[f"{name}/valid"].numpy().astype(bool))
        near(rays[0, 0], tensors[f"{name}/rays_frame0_row0"].numpy(), tolerance=1e-6)

        packed = pj.repeat_rows(np.stack([rc.encode_linear(maps)] * 3, axis=1))
        padded = pj.pad_to_multiple(packed)
        assert padded.shape[-1] == fact["padded_to"]
        codes = pj.unpad(through(tokenizer, padded), *packed.shape[-2:])
        recon = rc.decode_linear(pj.pick_rows(codes).mean(1).clip(-1, 1), near_m=NEVER, far_m=NEVER)
        near(np.where(seen, recon, 0), expected, tolerance=5e-3)
        compare_scores(range_errors(recon, original, mask=seen), fact)

        # Validation in post-training scores otherwise: no padding, each channel clamped, both sides within a window,
        # so that errors which leave it drop out.
        window = {"near_m": 0.5, "far_m": 0.5}
        codes = pj.pick_rows(through(tokenizer, packed).clip(-1, 1)).mean(1)
        scores = range_errors(
            rc.decode_linear(codes, **window), rc.decode_linear(rc.encode_linear(maps), **window)
        )
        theirs = fact["training_callback_metrics"]
        assert scores["rays"] == pytest.approx(theirs["n"], abs=2)  # a return may lie on the window's edge
        compare_scores(scores, theirs)


def through(tokenizer, x):
    """Encoded and decoded; the published programs normalise the latent and back, which changes rounding only."""
    return tokenizer.decode(tokenizer.encode(torch.from_numpy(np.ascontiguousarray(x)))).numpy()


def compare_scores(scores, published):
    for ours, theirs in (("rmse_m", "rmse"), ("mae_m", "mae"), ("abs_rel", "relative")):
        assert scores[ours] == pytest.approx(published[theirs], rel=2e-4)
