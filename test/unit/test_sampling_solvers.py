# SPDX-License-Identifier: Apache-2.0
"""Solvers against the exact solution of the probability-flow ODE for Gaussian data."""

import math

import numpy as np
import pytest

from lidargen_ros.errors import ConfigError
from lidargen_ros.preconditioning import coefficients, input_scale, loss_weight
from lidargen_ros.sampling import (
    SOLVERS,
    adams_bashforth_2,
    dpm_solver_2m,
    euler,
    heun,
    karras_sigmas,
    to_zero,
)

MEAN, STD = 0.3, 0.7


def gaussian(x, sigma):
    """Exact denoiser of data ~ Normal(MEAN, STD^2)."""
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + sigma**2)


def exact(x, start, end):
    """Exact solution: distances from the mean shrink with the total standard deviation."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + end**2) / (STD**2 + start**2))


def start(sigma_max=80.0):
    return np.linspace(-3, 3, 13) * sigma_max


@pytest.mark.parametrize(("solver", "steps"), [(euler, 60000), (heun, 1200), (dpm_solver_2m, 800)])
def test_reaches_the_exact_solution(solver, steps):
    sigmas = karras_sigmas(steps + 1, 0.002)
    got = solver(gaussian, start(), sigmas)
    np.testing.assert_allclose(got, exact(start(), 80.0, 0.002), atol=1e-4)


def test_adams_bashforth_returns_the_denoised_exact_solution():
    sigmas = karras_sigmas(1500, 0.002)
    got = adams_bashforth_2(gaussian, start(), sigmas)
    np.testing.assert_allclose(got, gaussian(exact(start(), 80.0, 0.002), 0.002), atol=1e-4)


@pytest.mark.parametrize("solver", [euler, heun, dpm_solver_2m])
def test_a_last_step_to_zero_gives_clean_data(solver):
    got = solver(gaussian, start(), to_zero(karras_sigmas(80000 if solver is euler else 1200, 0.002)))
    np.testing.assert_allclose(got, exact(start(), 80.0, 0.0), atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "order"), [(euler, 1), (heun, 2), (dpm_solver_2m, 2), (adams_bashforth_2, 2)]
)
def test_order_of_convergence(solver, order):
    def error(steps):
        end = exact(start(), 80.0, 0.05)
        target = gaussian(end, 0.05) if solver is adams_bashforth_2 else end
        return np.abs(solver(gaussian, start(), karras_sigmas(steps + 1, 0.05)) - target).max()

    measured = math.log2(error(200) / error(400))
    assert order - 0.15 < measured < order + 0.35


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_from_pure_noise_is_the_denoised_noise(name):
    sigmas = [80.0, 1e-9] if name == "adams_bashforth_2" else to_zero([80.0])
    np.testing.assert_allclose(SOLVERS[name](lambda x, s: x * 0 + 4.0, start(), sigmas), 4.0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_and_progress(name):
    levels, seen = [], []

    def denoiser(x, sigma):
        levels.append(sigma)
        return gaussian(x, sigma)

    sigmas = karras_sigmas(6)
    SOLVERS[name](denoiser, start(), sigmas, progress=lambda i, x0: seen.append((i, x0.shape)))
    expected = {"euler": 5, "heun": 10, "dpm_solver_2m": 5, "adams_bashforth_2": 6}[name]
    assert len(levels) == expected
    assert [i for i, _ in seen] == list(range(6 if name == "adams_bashforth_2" else 5))
    assert all(isinstance(level, float) for level in levels)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_state_keeps_its_type(name):
    x = start().astype(np.float32)
    assert SOLVERS[name](gaussian, x, karras_sigmas(5)).dtype == np.float32


def test_schedule():
    sigmas = karras_sigmas(36, 0.02)
    assert sigmas[0] == pytest.approx(80.0)
    assert sigmas[-1] == pytest.approx(0.02)
    roots = np.array(sigmas) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0])
    assert karras_sigmas(1) == pytest.approx([80.0])


@pytest.mark.parametrize(
    "sigmas",
    [[80.0], [1.0, 2.0], [1.0, 1.0], [1.0, -0.1], []],
    ids=["one", "up", "equal", "negative", "none"],
)
def test_bad_schedules_are_refused(sigmas):
    with pytest.raises(ConfigError, match="decrease"):
        euler(gaussian, start(), sigmas)


def test_bad_ends_are_refused():
    with pytest.raises(ConfigError, match="too short"):
        karras_sigmas(0)
    with pytest.raises(ConfigError, match="sigma_min"):
        karras_sigmas(5, 0.0)
    with pytest.raises(ConfigError, match="sigma_min"):
        karras_sigmas(5, 90.0)


def test_preconditioning_keeps_unit_variance():
    """Input and training target of the network have variance 1 at every level (EDM appendix B.6)."""
    for sigma in (0.002, 0.3, 5.0, 80.0):
        c = coefficients(sigma)
        assert c.c_in**2 * (0.5**2 + sigma**2) == pytest.approx(1)
        target = ((1 - c.c_skip) ** 2 * 0.5**2 + c.c_skip**2 * sigma**2) / c.c_out**2
        assert target == pytest.approx(1)
        assert loss_weight(sigma) * c.c_out**2 == pytest.approx(1)
        assert c.c_noise == pytest.approx(math.log(sigma) / 4)
    assert input_scale(0.0) == 2.0
