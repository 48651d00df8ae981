# SPDX-License-Identifier: Apache-2.0
"""The published denoiser as a recipe: published defaults, samples by number, one clip learnt, files that generate."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clip import CLIP, npz, rewrite  # noqa: E402
from toy_clips import HELD_OUT, toy_experiment, write_clips  # noqa: E402

from lidargen_ros.errors import DataError  # noqa: E402
from lidargen_ros.models.checkpoints import load_diffusion  # noqa: E402
from lidargen_ros.models.published import PublishedPipeline, read_sizes  # noqa: E402
from training.config import load_experiment  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.published.config import PublishedExperiment  # noqa: E402
from training.published.data import noised  # noqa: E402
from training.published.recipe import PublishedRecipe  # noqa: E402
from training.recipe import Position  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def recipe(clips):
    return PublishedRecipe(toy_experiment("published_tiny", clips), CPU)


def test_the_published_hyper_parameters_are_the_defaults(golden):
    published = json.loads(golden("dit/ema_lr.json").read_text())
    experiment = load_experiment(PublishedExperiment, "published_7b")
    recipe = PublishedRecipe.__new__(PublishedRecipe)
    recipe.experiment = experiment
    for step, value in published["lr"]["by_step"].items():
        assert recipe.learning_rate(Position(int(step), 0, 0.0)) == pytest.approx(value["lr"], rel=1e-12)
    o = experiment.optimiser
    assert (o.betas, o.eps, o.weight_decay, o.clip_norm, o.ema_width) == ((0.9, 0.99), 1e-10, 0.1, 1.0, 0.10)
    assert experiment.samples == 2000 * experiment.batch
    assert (experiment.random.model.width, experiment.random.model.blocks) == (4096, 28)
    assert (experiment.sizes.lidar_latent, experiment.sizes.camera_latent) == ((64, 224), (88, 160))
    assert experiment.random.camera_tokenizer.spatial_compression == 8
    assert experiment.random.camera_tokenizer.temporal_compression == 8


def test_samples_depend_on_their_number_alone(recipe, clips, tmp_path):
    whole = recipe.batch(4, 4)
    cached = PublishedRecipe(toy_experiment("published_tiny", clips, f"data.cache={tmp_path}"), CPU)
    assert cached.names(4, 4) == recipe.names(4, 4)
    assert all(name.startswith(f"{CLIP} frame 00000") for name in recipe.names(0, 20))
    assert len(set(recipe.names(0, 20))) == 3
    for _ in range(2):  # once made, once read
        for first in (6, 4):
            part = cached.batch(first, 2)
            same = slice(first - 4, first - 2)
            for a, b in (
                (part.clean, whole.clean),
                (part.sigma, whole.sigma),
                (part.noise, whole.noise),
                (part.corruption.sigma, whole.corruption.sigma),
                (part.corruption.noise, whole.corruption.noise),
            ):
                assert torch.equal(a, b[same])
    assert len(list(tmp_path.rglob("*.safetensors"))) <= 3


def test_noise_levels_are_distributed_as_published():
    batch = noised(torch.zeros(2000, 1, 1, 2, 2), range(2000), 0)
    for values, mean, std in ((batch.sigma, 0.0, 1.0), (batch.corruption.sigma, -3.0, 2.0)):
        assert float(values.log().mean()) == pytest.approx(mean, abs=0.1)
        assert float(values.log().std()) == pytest.approx(std, rel=0.05)
    assert abs(float((batch.noise * batch.corruption.noise).mean())) < 0.05  # of one another independent


def test_latents_of_random_tokenizers_have_unit_scale(recipe):
    latent = recipe.held_out.latent(0)
    lidar, camera = latent[:, 0, :8, :18], latent[:, 1:, :8, :12]
    assert float(lidar.std()) == pytest.approx(1, abs=0.1)
    assert float(camera.std()) == pytest.approx(1, abs=0.1)
    assert not latent[:, 1:, :, 12:].any()


def test_cross_attention_without_text_is_left_alone(recipe):
    model = recipe.build_model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".blocks.1." in name}
    recipe.losses(model, recipe.batch(0, 2))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (group,) = recipe.optimiser(model).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - len(frozen)


def test_weights_in_half_precision_give_the_same_losses(recipe):
    """As sharding leaves them during a step: parameters in bfloat16, buffers and noise in float32."""
    model, batch = recipe.build_model(), recipe.batch(0, 2)
    exact = recipe.losses(model, batch)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    for name, value in recipe.losses(model, batch).items():
        assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.02, abs=0.02), name


def test_one_frame_is_learnt_and_its_files_generate(tmp_path):
    """The weighted error at fixed noise falls to half, and what the run wrote generates as its evaluation did."""
    clips = write_clips(tmp_path / "clips", spins=1)
    experiment = toy_experiment(
        "published_tiny", clips, "data.val_split=train", f"data.cache={tmp_path / 'latents'}", "batch=4", "samples=144",
        "eval_every=0", "pictures_every=0", "save_every=0", "log_every=40", "tensorboard=false",
        "optimiser={lr: 6e-3, ema_width: null}", "validation.noise_levels=6",
    )  # fmt: skip
    recipe = PublishedRecipe(experiment, CPU)
    with torch.no_grad():
        before = recipe.validate(recipe.build_model().eval())["weighted_error"]
    result = Trainer(recipe, experiment, tmp_path / "run", CPU).run()
    assert result["model"]["weighted_error"] < before / 2
    assert result["ladder"]["best constant map"]["mae_m"] == pytest.approx(0, abs=1e-5)  # of that very frame
    (pair,) = recipe.pairs(recipe.trained(tmp_path / "run"), 1)
    options = replace(recipe.pipeline.options, steps=experiment.validation.steps)
    pipeline = PublishedPipeline.load(tmp_path / "run" / "checkpoints", "cpu", options)
    generated = pipeline(recipe.held_out.frame(0).images, pair.name).sweep
    assert np.array_equal(generated.range_map, pair.generated)
    assert pair.seen.shape == pair.true.shape == (16, 144)


def test_training_goes_on_from_a_checkpoint(recipe, clips, tmp_path):
    weights = recipe.build_model().state_dict()
    torch.save(recipe.layout(weights, "reg"), tmp_path / "iter_000000001_reg_model.pt")
    torch.save(recipe.layout(weights, "ema"), tmp_path / "iter_000000001_ema_model.pt")
    recipe.export(tmp_path.parent / "run", weights, 2)
    for kind, dtype in (("reg", torch.bfloat16), ("ema", torch.float32)):
        assert load_diffusion(tmp_path / "iter_000000001.pt", kind=kind).dtype is dtype
        start = [f"start.checkpoint={tmp_path / 'iter_000000001.pt'}", f"start.kind={kind}", "seed=5"]
        model = PublishedRecipe(toy_experiment("published_tiny", clips, *start), CPU).build_model()
        assert model.dtype is torch.float32
        assert model.net.rounded_positions == (kind == "reg")
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[name].to(dtype).float()), name
    # sizes and position tables travel with the weights
    assert read_sizes(tmp_path.parent / "run" / "checkpoints" / "pipeline.json")["rounded_positions"] is False


def test_a_frame_that_cannot_be_read_stops_with_its_name(tmp_path):
    write_clips(tmp_path)
    recipe = PublishedRecipe(toy_experiment("published_tiny", tmp_path, "data.cache=null"), CPU)
    name = f"{CLIP}.000002.lidar_range.npz"
    rewrite(
        tmp_path / "lidar" / f"{CLIP}.tar", lambda c: c.update({name: npz(arr_0=np.zeros(1, np.float16))})
    )
    with pytest.raises(DataError, match=f"{CLIP}.*leave the clip out of the split list"):
        PublishedRecipe(toy_experiment("published_tiny", tmp_path), CPU).batch(0, 20)
    assert recipe.held_out.frame(0).clip == HELD_OUT
