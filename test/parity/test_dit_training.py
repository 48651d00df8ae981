# SPDX-License-Identifier: Apache-2.0
"""Training loss, gradients, averages and learning rate against the published model's numbers."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.dit_denoiser import Condition, Corruption  # noqa: E402
from training.loop.averages import update_averages  # noqa: E402
from training.published_loss import (  # noqa: E402
    EMA_WIDTHS,
    LEARNING_RATE,
    clean_and_clip_gradients,
    ema_beta,
    ema_exponent,
    learning_rate_factor,
    published_loss,
    training_sigma,
)


def evaluated(model, vectors, stored, text):
    """Prediction and loss of one stored case."""
    clean, sigma = vectors["gt_latent"], stored["sigma"]
    noisy = clean + sigma.reshape(-1, 1, 1, 1, 1) * stored["epsilon"]
    corruption = Corruption(stored["augment_sigma"], stored["augment_noise"])
    made = model.denoise(noisy, sigma, Condition(clean, text), corruption)
    return made, published_loss(clean, made.x0, model.log_variance(made.noise_level), sigma)


def test_loss_and_gradients(dit_model, dit_vectors, dit_config):
    vectors = dit_vectors("training")
    for case in sorted({k.split(".")[0] for k in vectors if k.endswith(".sigma")}):
        stored = {k.removeprefix(f"{case}."): v for k, v in vectors.items() if k.startswith(f"{case}.")}
        model = dit_model()
        made, got = evaluated(model, vectors, stored, vectors["t5_text_embeddings"])
        for actual, name in (
            (made.network_input, "net_in"),
            (made.network_output, "net_out"),
            (made.x0, "x0_pred"),
            (got.log_variance, "logvar"),
        ):
            torch.testing.assert_close(actual, stored[name], atol=1e-4, rtol=0)
        for actual, name in (
            (got.weight, "weight_per_sigma"),
            (got.weighted_error, "edm_loss_mean"),
            (got.squared_error, "mse_mean"),
            (got.loss, "loss"),
        ):
            torch.testing.assert_close(actual, stored[name], atol=1e-6, rtol=1e-4)
        got.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        for name, expected in stored.items():
            if name.startswith("grad."):
                actual = gradients[name.removeprefix("grad.")]
                assert (actual - expected).norm() < 1e-3 * expected.norm(), name
        norms = torch.stack([gradients[n].norm() for n in dit_config["training_grad_norm_order"]])
        torch.testing.assert_close(norms.double(), stored["grad_norms"], atol=1e-7, rtol=1e-3)
        total = clean_and_clip_gradients(model.parameters())
        torch.testing.assert_close(total.double(), stored["grad_norm_total"], atol=0, rtol=1e-3)


def test_zero_text_gives_cross_attention_no_gradient(dit_model, dit_vectors):
    vectors = dit_vectors("training")
    model = dit_model()
    stored = {k.removeprefix("a."): v for k, v in vectors.items() if k.startswith("a.")}
    evaluated(model, vectors, stored, torch.zeros_like(vectors["t5_text_embeddings"]))[1].loss.backward()
    cross = [p for n, p in model.named_parameters() if n.startswith("net.blocks") and ".blocks.1." in n]
    assert cross
    assert all(p.grad is None or not p.grad.any() for p in cross)


def test_training_noise_levels(dit_vectors):
    vectors = dit_vectors("schedule")
    uniforms = vectors["numpy_seed0_uniforms_72"].numpy()
    levels = training_sigma(len(uniforms), np.random.RandomState(0).uniform)
    np.testing.assert_allclose(levels, vectors["training_sigma_from_uniforms.float64"], rtol=1e-9)


def test_averages(golden):
    expected = json.loads(golden("dit/ema_lr.json").read_text())
    for i, width in enumerate(EMA_WIDTHS):
        replica = expected["ema_power"][f"replica{i}"]
        assert replica["s"] == width
        exponent = ema_exponent(width)
        assert exponent == pytest.approx(replica["exponent"], rel=1e-9)
        assert width**2 == pytest.approx((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))
        for iteration, beta in replica["beta_by_iteration"].items():
            assert ema_beta(int(iteration), exponent) == pytest.approx(beta, rel=1e-8, abs=1e-15)
    toy, exponent = expected["ema_toy_replica0"], ema_exponent(EMA_WIDTHS[0])
    average = [torch.tensor([toy["initial_target"]])]
    for i, (source, after) in enumerate(
        zip(toy["source"], toy["target_after_each_update_float32"], strict=True)
    ):
        update_averages(average, [torch.tensor([source], dtype=torch.bfloat16)], ema_beta(i, exponent))
        assert float(average[0]) == pytest.approx(after, rel=1e-6)


def test_learning_rate(golden):
    expected = json.loads(golden("dit/ema_lr.json").read_text())["lr"]
    assert pytest.approx(expected["base_lr"], rel=1e-12) == LEARNING_RATE
    for step, value in expected["by_step"].items():
        factor = learning_rate_factor(int(step))
        assert factor == pytest.approx(value["factor"], rel=1e-12)
        assert factor * LEARNING_RATE == pytest.approx(value["lr"], rel=1e-12)


def test_bad_gradients_are_zeroed():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0])
    norm = clean_and_clip_gradients([parameter])
    assert float(norm) == 3.0
    assert parameter.grad.tolist() == pytest.approx([0, 0, 0, 1.0], rel=1e-5)
