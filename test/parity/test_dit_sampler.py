# SPDX-License-Identifier: Apache-2.0
"""Noise levels, preconditioning and the whole sampler against the published model's numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.dit_denoiser import (  # noqa: E402
    AUGMENT_MEAN,
    AUGMENT_STD,
    Condition,
    Corruption,
    FixedCorruption,
    RandomCorruption,
    guided,
)
from lidargen_ros.preconditioning import coefficients, lognormal_sigma, loss_weight  # noqa: E402
from lidargen_ros.sampling import adams_bashforth_2, karras_sigmas  # noqa: E402

EXACT = {"atol": 0, "rtol": 0}


def test_schedules(dit_vectors):
    vectors = dit_vectors("schedule")
    for name, expected in vectors.items():
        if not name.startswith("sigmas_"):
            continue
        steps = int(name.split(".")[0].removeprefix("sigmas_"))
        levels = torch.tensor(
            karras_sigmas(steps + 1, 0.002 if "sigma_min_0.002" in name else 0.02), dtype=torch.float64
        )
        if name.endswith("bf16"):
            torch.testing.assert_close(levels.bfloat16().float(), expected, **EXACT)
        else:
            torch.testing.assert_close(levels, expected, atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize("variant", ["float64", "float32", "bf16"])
def test_coefficients(dit_vectors, variant):
    """Torch in three precisions (bfloat16 exact, a rounding after every operation) and numpy in float64."""
    vectors = dit_vectors("schedule")
    sigma = vectors["precond.sigma.float64"]
    dtype = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}[variant]
    tolerance = {"float64": {"atol": 1e-9, "rtol": 0}, "float32": {"atol": 1e-6, "rtol": 1e-6}, "bf16": EXACT}
    got = coefficients(sigma.to(dtype))
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        expected = vectors[f"precond.{variant}.{name}"]
        torch.testing.assert_close(getattr(got, name).to(expected.dtype), expected, **tolerance[variant])
        if variant == "float64":
            np.testing.assert_allclose(getattr(coefficients(sigma.numpy()), name), expected, atol=1e-9)
            assert getattr(coefficients(float(sigma[3])), name) == pytest.approx(float(expected[3]))
    if f"loss_weight.{variant}" in vectors:
        expected = vectors[f"loss_weight.{variant}"]
        weight = loss_weight(sigma.to(dtype)).to(expected.dtype)
        torch.testing.assert_close(
            weight, expected, **({"atol": 0, "rtol": 1e-12} if variant == "float64" else EXACT)
        )


def test_random_levels(dit_vectors):
    vectors = dit_vectors("schedule")
    uniforms = vectors["numpy_seed0_uniforms_72"].numpy()
    for name, mean, std in (("augment", AUGMENT_MEAN, AUGMENT_STD), ("training", 0.0, 1.0)):
        expected = vectors[f"{name}_sigma_from_uniforms.float64"].numpy()
        np.testing.assert_allclose(lognormal_sigma(uniforms, mean, std), expected, rtol=1e-9)
    draw = RandomCorruption("cpu", seed=0)
    like = torch.zeros(1, 16, 4, 2, 2, dtype=torch.float64)
    levels = [float(draw(like).sigma) for _ in uniforms]
    np.testing.assert_allclose(levels, vectors["augment_sigma_from_uniforms.float64"], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampler_alone(dit_vectors, dit_config, dtype):
    vectors, analytic = dit_vectors("sampler_analytic"), dit_config["analytic_denoiser"]
    mu, s = analytic["mu"], analytic["s"]
    precision = {torch.float32: ("f32", 1e-4), torch.float64: ("f64", 1e-10)}
    name, tolerance = precision[dtype]
    cases = sorted({k.rsplit(f".{name}.", 1)[0] for k in vectors if f".{name}." in k})
    assert cases
    for case in cases:
        steps = int(case.split("steps")[1])
        sigma_min = 0.002 if case.startswith("default_sigma_min") else analytic["sigma_min"]
        states = []

        def denoiser(x, sigma, states=states):
            x = x.to(dtype)  # the model's type; the solver's state is float64
            states.append(x)
            sigma = torch.tensor(sigma, dtype=dtype)
            shrunk = mu + (x - mu) * s**2 / (s**2 + sigma**2)
            return (shrunk + 0.05 * torch.sin(3 * x / torch.sqrt(1 + sigma**2))).double()

        levels = karras_sigmas(steps + 1, sigma_min, analytic["sigma_max"])
        x = adams_bashforth_2(denoiser, vectors["x_T"].double(), levels)
        torch.testing.assert_close(x.to(dtype), vectors[f"{case}.{name}.sample"], atol=tolerance, rtol=0)
        if f"{case}.{name}.states" in vectors:
            expected = vectors[f"{case}.{name}.states"]
            stacked = torch.stack(states).reshape(expected.shape)
            torch.testing.assert_close(stacked, expected, atol=tolerance, rtol=0 if name == "f64" else 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("corruption", ["fixed_corruption", "random_corruption"])
@pytest.mark.parametrize("text", ["text", "zerotext"])
@pytest.mark.parametrize("steps", [4, 35])
def test_whole_sampling(dit_model, dit_vectors, corruption, text, steps):
    vectors = dit_vectors("sampler")
    case = f"{corruption}.{text}.steps{steps}"
    if f"{case}.sample" not in vectors:
        pytest.skip(f"this set of vectors has no {case}")
    model = dit_model()
    condition = Condition(vectors["gt_latent"], vectors["t5_text_embeddings"] if text == "text" else None)
    calls = 0

    def corrupt(x):
        nonlocal calls
        calls += 1
        if corruption == "fixed_corruption":
            return Corruption(vectors["fixed_corruption.augment_sigma"], vectors["fixed_corruption.noise"])
        noise = vectors[f"{case}.augment_noise_slots123"][calls - 1 : calls]
        noise = torch.cat([torch.zeros_like(noise[:, :, :1]), noise], dim=2)  # slot 0 is never read
        return Corruption(vectors[f"{case}.augment_sigma"][calls - 1 : calls], noise)

    evaluations = []

    def denoiser(x, sigma):
        x, sigma = x.float(), torch.tensor([sigma], dtype=torch.float32)
        conditional = model.denoise(x, sigma, condition, corrupt(x)).x0
        unconditional = model.denoise(x, sigma, condition.without_text(), corrupt(x)).x0
        evaluations.append((conditional, unconditional))
        return guided(conditional, unconditional, 1.5).double()

    sample = adams_bashforth_2(
        denoiser, vectors["initial_noise"].double() * 80, karras_sigmas(steps + 1, 0.02)
    )
    torch.testing.assert_close(sample.float(), vectors[f"{case}.sample"], atol=1e-4, rtol=0)
    if f"{case}.x0_cond" in vectors:
        for i, name in enumerate(("x0_cond", "x0_uncond")):
            got = torch.cat([e[i] for e in evaluations])
            torch.testing.assert_close(got, vectors[f"{case}.{name}"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_guidance_is_a_no_op_for_zero_text_and_fixed_corruption(dit_model, dit_vectors):
    vectors, model = dit_vectors("sampler"), dit_model()
    x, sigma = vectors["initial_noise"], torch.tensor([1.0])
    corruption = FixedCorruption(0.0)(x)
    zeros = Condition(vectors["gt_latent"], torch.zeros_like(vectors["t5_text_embeddings"]))
    conditional = model.denoise(x, sigma, zeros, corruption).x0
    unconditional = model.denoise(x, sigma, zeros.without_text(), corruption).x0
    assert torch.equal(guided(conditional, unconditional, 1.5), conditional)


def test_fixed_noise_is_the_published_one(dit_vectors):
    vectors = dit_vectors("sampler")
    draw = FixedCorruption(float(vectors["fixed_corruption.augment_sigma"]))
    corruption = draw(torch.zeros_like(vectors["fixed_corruption.noise"]))
    assert torch.equal(corruption.noise, vectors["fixed_corruption.noise"])
    assert torch.equal(corruption.sigma, vectors["fixed_corruption.augment_sigma"])
