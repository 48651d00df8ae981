# SPDX-License-Identifier: Apache-2.0
"""Tokenizer post-training against the published code's own numbers: losses, schedule, and a run of a few steps."""

import re

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.tokenizer_config import TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_io import network_from_state  # noqa: E402
from training import tokenizer_loss as tl  # noqa: E402

NAMES = {"color": "colour", "lpips": "perceptual", "gram": "gram"}


@pytest.fixture
def description(tokenizer_vectors):
    return tokenizer_vectors("training")[0]


@pytest.fixture
def vectors(tokenizer_vectors):
    return tokenizer_vectors("training")[1]


@pytest.fixture
def loss(description, vectors):
    """The loss with the vectors' narrow stand-in for VGG-16."""
    vgg = tl.Vgg16.from_state({k.removeprefix("vgg/"): v for k, v in vectors.items() if k.startswith("vgg/")})
    assert [
        stage[str(first)].out_channels
        for stage, (first, *_) in zip(vgg.children(), tl.VGG16_STAGES, strict=True)
    ] == (description["vgg_widths"])
    return tl.TokenizerLoss(vgg)


def near(value, expected, tolerance=1e-4):
    assert float(value) == pytest.approx(expected, rel=tolerance)


def test_terms_by_iteration(loss, description, vectors):
    for iteration, expected in description["facts"]["loss_by_iteration"].items():
        terms = loss(vectors["loss/input"], vectors["loss/recon"], int(iteration))
        assert set(terms) == {NAMES[name] for name in expected if name != "total"}
        for name, value in expected.items():
            near(sum(terms.values()) if name == "total" else terms[NAMES[name]], value)


def test_terms_of_clips(loss, description, vectors):
    (key,) = (key for key in description["facts"] if key.startswith("loss5d_at_"))
    terms = loss(vectors["loss5d/input"], vectors["loss5d/recon"], int(key.rsplit("_", 1)[1]))
    for name, (_, value) in description["facts"][key].items():
        near(terms[NAMES[name]], value)


def test_divergence(description, vectors):
    value = tl.KL_WEIGHT * tl.kl(vectors["kl/mean"], vectors["kl/logvar"]).mean()
    near(value, description["facts"]["kl_weighted_mean"])


def test_reductions(description, vectors):
    modes = description["facts"]["reduce_modes_on_colour_map"]
    for mode, expected in modes.items():
        for name, value in zip(("loss", "loss5d"), expected, strict=True):
            difference = (vectors[f"{name}/input"] - vectors[f"{name}/recon"]).abs()
            near(tl.reduce(difference, mode.lower()), value)


def test_picture_scores(description, vectors):
    a, b = tl.to_bytes(vectors["loss/input"]), tl.to_bytes(vectors["loss/recon"])
    near(tl.psnr(a, b), description["facts"]["psnr"])
    near(tl.ssim(a, b), description["facts"]["ssim"])


def test_a_few_steps(loss, description, vectors):
    facts = description["facts"]["train"]
    prefix = (
        "train/initial/"  # copied, because the network takes the tensors themselves and training changes them
    )
    initial = {k.removeprefix(prefix): v.clone() for k, v in vectors.items() if k.startswith(prefix)}
    network = network_from_state(
        initial, TokenizerConfig.from_options(description["network_config"])
    ).requires_grad_(True)
    lr, betas, weight_decay = re.search(
        r"lr=(\S+) betas=\((\S+)\) eps=1e-8 weight_decay=(\S+)", facts["optimizer"]
    ).groups()
    assert [float(b) for b in betas.split(",")] == list(tl.BETAS) and float(weight_decay) == tl.WEIGHT_DECAY
    assert facts["grad_clip"] == tl.GRADIENT_NORM
    optimizer = tl.make_optimizer(network.parameters(), lr=float(lr))
    schedule = tl.make_schedule(optimizer, warmup=facts["warmup"])
    for step in facts["steps"]:
        batch = vectors[f"train/batch{step['iteration']}"].squeeze(0)
        if step["iteration"] == 0:
            compare_gradients(network, loss, batch, vectors)
        report = tl.train_step(network, loss, optimizer, schedule, batch, step["iteration"])
        near(report["lr"], step["lr"], 1e-6)
        near(report["loss"], step["loss"], 5e-4)
        near(report["grad_norm"], step["grad_norm_before_clip"], 5e-3)
        for name in ("color", "lpips"):
            near(report[NAMES[name]], step[name], 5e-4)
    compare_weights(network, vectors)


def compare_gradients(network, loss, batch, vectors):
    """Gradients of the first step, before clipping."""
    sum(loss(batch, network(batch), 0).values()).backward()
    for name, parameter in network.named_parameters():
        if (expected := vectors.get(f"train/grad_step0/{name}")) is not None:
            difference = (parameter.grad - expected).norm() / expected.norm()
            assert difference <= 1e-4, f"{name}: {difference:.1e}"


def compare_weights(network, vectors):
    """Final weights, without those whose gradient is rounding noise that Adam blows up to full steps.

    These are the bias of attention keys (softmax ignores it) and the first convolution's inputs that are identically
    zero because rows come in fours.
    """
    live = [12 * b2 + 3 * b1 + c for b2 in (0, 2) for b1 in (0, 2) for c in range(3)]
    for name, parameter in network.named_parameters():
        if name.endswith(".k.bias"):
            continue
        actual, expected = parameter.detach(), vectors[f"train/final/{name}"]
        initial = vectors[f"train/initial/{name}"]
        if name == "encoder.conv_in.weight":
            actual, expected, initial = (t[:, live] for t in (actual, expected, initial))
        # Against the way the weights went, which is what training did.
        way = (expected - initial).norm()
        assert (actual - expected).norm() <= 1e-2 * way, f"{name}: {(actual - expected).norm() / way:.1e}"
