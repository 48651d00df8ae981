# SPDX-License-Identifier: Apache-2.0
"""The published pipeline with small random networks: both modes, their options, and equal results of the savings."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import CheckpointError, ConfigError, InputError  # noqa: E402
from lidargen_ros.models.dit_config import DiTConfig  # noqa: E402
from lidargen_ros.models.dit_cost import call_flops  # noqa: E402
from lidargen_ros.models.dit_denoiser import DiffusionModel  # noqa: E402
from lidargen_ros.models.dit_graph import GraphedCall  # noqa: E402
from lidargen_ros.models.latents import LatentStats  # noqa: E402
from lidargen_ros.models.published import PublishedPipeline  # noqa: E402
from lidargen_ros.models.published_options import PublishedOptions  # noqa: E402
from lidargen_ros.models.published_sampling import LatentSizes, sample_latent  # noqa: E402
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import NO, SPACE, SPACE_TIME, TokenizerConfig  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402

SIZES = LatentSizes(lidar=(4, 6), camera=(6, 4))
SENSOR = Sensor("test8", np.linspace(5, -20, 8), 52)
CONFIG = DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8)
REFERENCE, CORRECTED = (replace(PublishedOptions.named(m), steps=3) for m in ("reference", "corrected"))


def tokenizer(kind):
    config = TokenizerConfig(
        kind=kind,
        channels=8,
        channels_mult=(1, 1),
        num_res_blocks=1,
        num_groups=4 if kind == "image" else 1,
        encoder_attention=(False, False),
        decoder_attention=(False, False),
        down=(SPACE if kind == "image" else SPACE_TIME, NO),
        up=(NO, SPACE if kind == "image" else SPACE_TIME),
    )
    stats = LatentStats(torch.zeros(16, 1), torch.full((16, 1), 0.5))
    return Tokenizer(build_network(config), stats).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DiffusionModel(CONFIG, rounded_positions=True)
    model.net.init_weights()
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.05)
    return model.bfloat16().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline(model):
    torch.manual_seed(1)
    return PublishedPipeline(
        model, tokenizer("video"), tokenizer("image"), CORRECTED, SIZES, resize_hw=(50, 32), sensor=SENSOR
    )


def with_options(pipeline, options):
    return PublishedPipeline(
        pipeline.model,
        pipeline.camera_tokenizer,
        pipeline.lidar_tokenizer,
        options,
        SIZES,
        pipeline.resize_hw,
        SENSOR,
    )


def images(seed=0, count=3):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(count)]


def cameras(seed=0):
    return torch.randn(1, 16, 3, *SIZES.camera, generator=torch.Generator().manual_seed(seed))


def test_corrected_mode(pipeline):
    got = pipeline(images(), frame="a", stamp_ns=7)
    assert got.latent.shape == (1, 16, 1, *SIZES.lidar)
    assert got.latent.dtype is torch.float32
    assert got.sweep.sensor is SENSOR
    assert got.sweep.stamp_ns == 7
    assert not got.sweep.range_map[:, [0, 1, -2, -1]].any()  # columns that were cropped away
    seen = got.sweep.range_map[got.sweep.returns]
    assert seen.size
    assert seen.min() > 5.5
    assert seen.max() < 99.5
    again = pipeline(images(), frame="a")
    assert np.array_equal(again.sweep.range_map, got.sweep.range_map)
    assert not torch.equal(pipeline(images(), frame="b").latent, got.latent)
    assert not torch.equal(pipeline(images(seed=1), frame="a").latent, got.latent)


def test_reference_mode(pipeline):
    reference = with_options(pipeline, REFERENCE)
    got = reference(images(), frame="a")
    assert got.latent.dtype is torch.bfloat16
    seen = got.sweep.range_map[got.sweep.returns]
    assert seen.min() > 6.5
    assert seen.max() < 90
    assert got.sweep.sensor.shape == (8, 48)
    column = 10
    azimuth = np.pi - 2 * np.pi * column / 48
    assert got.sweep.sensor.azimuths()[column] == pytest.approx(azimuth)
    points = got.sweep.points()
    rows, columns = np.nonzero(got.sweep.returns)
    expected = np.pi - 2 * np.pi * columns / 48
    np.testing.assert_allclose(
        np.angle(np.exp(1j * (np.arctan2(points[:, 1], points[:, 0]) - expected))), 0, atol=1e-5
    )
    assert len(rows)
    # Every frame starts from the noise of the seed, whatever its name.
    assert torch.equal(reference(images(), frame="b").latent, got.latent)


@pytest.mark.parametrize("options", [REFERENCE, CORRECTED], ids=["reference", "corrected"])
def test_savings_change_no_bit(model, options):
    """Skipping the zero-text branch, and the second pass where guidance is a no-op, against all the work."""
    calls = []
    model.call = lambda *a, **k: calls.append(k["text"]) or model.net(*a, **k)
    try:
        cheap = sample_latent(model, cameras(), options, "f", SIZES)
        cheap_calls = list(calls)
        calls.clear()
        full = sample_latent(model, cameras(), options.published_work(), "f", SIZES)
    finally:
        model.call = None
    assert torch.equal(cheap, full)
    evaluations = options.steps + 1
    assert len(calls) == 2 * evaluations
    assert len(cheap_calls) == (2 if options.random_corruption else 1) * evaluations
    assert all(text is None for text in cheap_calls)
    assert all(text is not None and not text.any() for text in calls)


def test_modes_differ(model):
    a = sample_latent(model, cameras(), REFERENCE, "f", SIZES).float()
    b = sample_latent(model, cameras(), CORRECTED, "f", SIZES)
    assert (a - b).abs().max() > 0.05


def test_dropping_padding_changes_the_result_a_little(model):
    full = sample_latent(model, cameras(), CORRECTED, "f", SIZES)
    cropped = sample_latent(model, cameras(), replace(CORRECTED, drop_padding=True), "f", SIZES)
    assert cropped.shape == full.shape
    assert 1e-4 < (cropped - full).abs().max() < 1.0


def test_the_generated_slot_never_depends_on_ground_truth_or_guidance_of_zero_text(model):
    a = sample_latent(model, cameras(), replace(CORRECTED, guidance=0.0), "f", SIZES)
    b = sample_latent(model, cameras(), CORRECTED, "f", SIZES)
    assert torch.equal(a, b)


def test_text_counts(model):
    text = torch.randn(1, 4 * 5, CONFIG.text_width, generator=torch.Generator().manual_seed(3))
    a = sample_latent(model, cameras(), CORRECTED, "f", SIZES, text=text)
    b = sample_latent(model, cameras(), CORRECTED, "f", SIZES)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm_solver_2m"])
def test_other_solvers(model, solver):
    seen = []
    got = sample_latent(
        model,
        cameras(),
        replace(CORRECTED, solver=solver, steps=2),
        "f",
        SIZES,
        progress=lambda i, x0: seen.append(i),
    )
    assert got.isfinite().all()
    assert seen == [0, 1]


def test_truth(pipeline):
    rng = np.random.default_rng(0)
    measured = rng.uniform(0, 110, (8, 104)).astype(np.float32) * (rng.random((8, 104)) > 0.3)
    shown = pipeline.truth(measured)
    assert shown.sensor is SENSOR
    pairs = measured.reshape(8, 52, 2)
    smallest = np.where(pairs == 0, np.inf, pairs).min(-1)
    inside = (smallest > 5) & (smallest < 100)
    np.testing.assert_array_equal(shown.range_map, np.where(inside, smallest, 0).astype(np.float32))
    assert with_options(pipeline, REFERENCE).truth(measured).sensor.columns == 48
    with pytest.raises(InputError, match="52 columns"):
        pipeline.encode_lidar(measured[:, :50])


def test_wrong_pictures(pipeline):
    with pytest.raises(InputError, match="2 images given, the model takes 3"):
        pipeline(images(count=2))
    with pytest.raises(InputError, match="uint8"):
        pipeline([np.zeros((4, 4), np.uint8)] * 3)


def test_wrong_options(pipeline):
    nowhere = {"near_buffer": 60.0, "far_buffer": 40.0}
    nan = float("nan")
    for wrong in (
        {"steps": 0}, {"sigma_min": 0.0}, {"solver": "magic"}, {"guidance": nan}, {"near_buffer": nan},
        {"far_buffer": -1.0}, nowhere,
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            replace(CORRECTED, **wrong)
    with pytest.raises(ConfigError, match="reference or corrected"):
        PublishedOptions.named("better")
    with pytest.raises(ConfigError, match="sensor"):
        PublishedPipeline(
            pipeline.model, pipeline.camera_tokenizer, pipeline.lidar_tokenizer, CORRECTED, SIZES, (50, 32)
        )


def test_tokenizers_are_looked_for(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="camera_tokenizer"):
        PublishedPipeline.load(tmp_path / "model.pt", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_graphs_need_a_gpu(model):
    with pytest.raises(ConfigError, match="CUDA"):
        GraphedCall(model.net)


def test_counted_work_of_the_published_size():
    """The published model's arithmetic, and what each saving takes off it."""
    full, kept = [4928] * 4, [3584, 3520, 3520, 3520]
    for lengths, text, tera in (
        (full, 512, 443.2),
        (full, None, 400.5),
        (kept, 512, 282.1),
        (kept, None, 251.2),
    ):
        assert call_flops(DiTConfig(), lengths, text) / 1e12 == pytest.approx(tera, abs=0.15)
