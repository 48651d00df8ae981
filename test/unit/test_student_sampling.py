# SPDX-License-Identifier: Apache-2.0
"""Samples of a student: as wide as the network says, in any number of steps, on numpy and torch alike."""

import numpy as np
import pytest
from scipy.special import expit

from lidargen_ros.student_sampling import draw, levels

SHAPE = (1, 2, 32, 720)
MEAN, LOGIT = 0.3, 1.0


def exact(spread):
    """The denoiser of independent rays: code normal around ``MEAN``, a return with the log-odds ``LOGIT``."""

    def denoise(x, t):
        keep, variance = 1 - t, spread**2
        total = t**2 + variance * keep**2
        code = (t**2 * MEAN + variance * keep * x[:, 0]) / total
        logit = LOGIT + 2 * keep / t**2 * x[:, 1]
        return code, logit, 0 * code, t * (variance / total) ** 0.5 + 0 * code

    return denoise


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_samples_are_as_wide_as_the_network_says(steps, spread):
    noise = np.random.default_rng(steps).standard_normal(SHAPE)
    code, logit, _ = draw(exact(spread), noise, steps)
    assert abs(code.mean() - MEAN) < 0.05 * spread
    # The last step gives a mean: what lies within its own noise level is lost, most where there are two steps only.
    lost = 1 / (1 + (spread * (1 - levels(steps)[-1]) / levels(steps)[-1]) ** 2)
    assert code.std() / spread == pytest.approx((1 - lost) ** 0.5, rel=0.03)
    assert (logit > 0).mean() == pytest.approx(expit(LOGIT), abs=0.02)


def test_the_first_step_is_the_best_estimate_and_levels_fall():
    seen = []

    def denoise(x, t):
        seen.append((float(abs(x).max()), t))
        return exact(0.1)(x, t)

    draw(denoise, np.ones(SHAPE), 4)
    assert seen[0] == (0.0, 1.0)
    assert [t for _, t in seen] == levels(4) == sorted(levels(4), reverse=True)


def test_torch_draws_the_same():
    torch = pytest.importorskip("torch")
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    expected = draw(exact(0.1), noise, 4)
    found = draw(exact(0.1), torch.from_numpy(noise), 4)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-9)
