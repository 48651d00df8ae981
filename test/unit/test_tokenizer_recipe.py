# SPDX-License-Identifier: Apache-2.0
"""The LiDAR tokenizer as a recipe: published defaults, one clip learnt, files that load with new statistics."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clip import CLIP  # noqa: E402
from toy_clips import toy_experiment, write_clips  # noqa: E402

from lidargen_ros.errors import CheckpointError, ConfigError  # noqa: E402
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_io import load_tokenizer, save_tokenizer  # noqa: E402
from training.config import load_experiment  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.recipe import Position  # noqa: E402
from training.report import read_curve  # noqa: E402
from training.tokenizer.config import TokenizerExperiment  # noqa: E402
from training.tokenizer.data import metres, whole_image  # noqa: E402
from training.tokenizer.recipe import TokenizerRecipe, with_decoder_attention  # noqa: E402
from training.tokenizer_loss import GRAM_START, Vgg16  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def recipe(clips):
    return TokenizerRecipe(toy_experiment("tokenizer_lidar", clips), CPU)


def test_the_published_hyper_parameters_are_the_defaults():
    experiment = load_experiment(TokenizerExperiment, "tokenizer_lidar")
    o, data = experiment.optimiser, experiment.data
    assert (o.lr, o.betas, o.eps, o.weight_decay, o.clip_norm) == (4e-5, (0.5, 0.999), 1e-8, 0.01, 1.0)
    assert (data.columns, data.window, data.frames, data.row_repeat) == (1800, 896, 10, 4)
    assert experiment.samples == 10_000 * experiment.batch
    recipe = TokenizerRecipe.__new__(TokenizerRecipe)
    recipe.experiment = experiment
    steps = {0: 4e-5 / 5000, 2499: 2e-5, 4999: 4e-5, 9999: 4e-5}
    for step, expected in steps.items():
        assert recipe.learning_rate(Position(step, 0, 0.0)) == pytest.approx(expected)
    assert recipe.ema_beta(100) == 0  # weights are not averaged


def test_samples_depend_on_their_number_alone(recipe):
    whole = recipe.batch(4, 4)
    assert whole.pixels.shape == (8, 3, 64, 40)  # 4 clips x 2 frames, rows four times, a window of columns
    assert whole.step == 2
    for first in (6, 4):
        rows = slice(2 * (first - 4), 2 * (first - 2))
        assert torch.equal(recipe.batch(first, 2).pixels, whole.pixels[rows])
    assert not torch.equal(whole.pixels[:2], whole.pixels[2:4])
    assert recipe.names(0, 2) == [CLIP, CLIP]


def test_images_hold_ranges_as_published():
    ranges = np.array([[0.0, 4.0, 5.4, 5.6, 50.0, 99.4, 99.6, 120.0, 7.0]], np.float32).repeat(4, axis=0)
    image = whole_image(ranges, 4, 8)
    assert image.shape == (1, 3, 16, 8)  # the ninth column does not fit, and is cut off
    assert image[0, 0, :4].unique(dim=0).shape[0] == 1
    assert metres(image, 4, 9)[0] == pytest.approx([0, 0, 0, 5.6, 50, 99.4, 0, 0, 0], abs=1e-4)


def test_one_clip_is_learnt_and_its_files_load(clips, tmp_path):
    """The mean absolute error of the pixels falls to half of what it was; the run's files hold weights and statistics."""
    experiment = toy_experiment(
        "tokenizer_lidar", clips, "data.val_split=train", "samples=48", "eval_every=0", "pictures_every=48",
        "save_every=0", "log_every=2", "tensorboard=false",
    )  # fmt: skip
    recipe = TokenizerRecipe(experiment, CPU)
    result = Trainer(recipe, experiment, tmp_path, CPU).run()
    losses = [row["loss"] for row in read_curve(tmp_path) if "loss" in row]
    assert np.mean(losses[-3:]) < losses[0] / 2
    assert result["model"]["mae_m"] < 20
    assert 0 < result["model"]["ssim"] < 1
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 1
    whole = load_tokenizer(tmp_path)
    trained = load_tokenizer(tmp_path / "checkpoints" / "iter_000000024_ema_model.pt")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, trained.network.state_dict()[name])
    images = torch.cat([recipe._image(recipe._reduced(recipe._seen[i].range_map)) for i in (0, 1)])
    latent = whole.encode(images)
    assert latent.mean(dim=(0, 2, 3)).abs().max() < 0.5
    assert (latent.std(dim=(0, 2, 3)) - 1).abs().max() < 0.5
    (pair,) = recipe.pairs(recipe.trained(tmp_path), 1)
    assert pair.generated.shape == pair.true.shape == (16, 72)
    assert pair.true[pair.true > 0].min() > 5 and pair.true.max() < 100


def test_the_perceptual_term_needs_weights(clips, tmp_path):
    widths = (2, 2, 2, 2, 2)
    torch.save({f"{k}": v for k, v in Vgg16(widths).state_dict().items()}, tmp_path / "vgg.pth")
    recipe = TokenizerRecipe(toy_experiment("tokenizer_lidar", clips, f"vgg={tmp_path / 'vgg.pth'}"), CPU)
    model, batch = recipe.build_model(), recipe.batch(0, 2)
    assert set(recipe.losses(model, batch)) == {"loss", "colour", "perceptual"}
    assert set(recipe.losses(model, replace(batch, step=GRAM_START))) == {
        "loss",
        "colour",
        "perceptual",
        "gram",
    }


def test_what_the_published_run_begins_with_gets_decoder_attention(clips, tmp_path):
    small = TokenizerConfig(
        channels=32, channels_mult=(1, 1, 1), num_res_blocks=1, decoder_attention=(False,) * 3
    )
    network = build_network(small)
    extended = with_decoder_attention(network)
    assert extended.config.decoder_attention == (False, False, True)
    for name, value in network.state_dict().items():
        assert torch.equal(extended.state_dict()[name], value)
    file = save_tokenizer(Tokenizer(network), tmp_path / "start.safetensors")
    start = [f"start.tokenizer={file}", "start.add_decoder_attention=true"]
    model = TokenizerRecipe(toy_experiment("tokenizer_lidar", clips, *start), CPU).build_model()
    assert model.config.decoder_attention == (False, False, True)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(CheckpointError, match="the decoder has 2 levels, not 3"):
        with_decoder_attention(build_network(toy_experiment("tokenizer_lidar", clips).layout))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.columns=100", "no multiple of data.columns=100"),
        ("data.window=36", "needs multiples of 8"),
        ("data.window=80", "from at most 72 columns"),
    ],
)
def test_images_that_do_not_fit(clips, settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerRecipe(toy_experiment("tokenizer_lidar", clips, settings), CPU)
