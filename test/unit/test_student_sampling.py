# SPDX-License-Identifier: Apache-2.0
"""Samples of a student: as wide as the network says, in any number of steps, on numpy and torch alike."""

import numpy as np
import pytest
from scipy.special import expit

from lidargen_ros.student_sampling import draw, levels, noise_of

ROWS, COLUMNS = 64, 1800
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
    draws = [draw(exact(spread), noise_of(seed, ROWS, COLUMNS), steps) for seed in range(12)]
    code, logit = (np.stack(values) for values in list(zip(*draws, strict=True))[:2])
    assert abs(code.mean() - MEAN) < 0.1 * spread
    # The last step gives a mean: what lies within its own noise level is lost, most where there are two steps only.
    lost = 1 / (1 + (spread * (1 - levels(steps)[-1]) / levels(steps)[-1]) ** 2)
    assert code.std() / spread == pytest.approx((1 - lost) ** 0.5, rel=0.1)
    assert (logit > 0).mean() == pytest.approx(expit(LOGIT), abs=0.04)


def test_noise_is_white_or_smooth_and_the_same_for_a_seed():
    noise = noise_of(3, 128, COLUMNS)
    assert np.array_equal(noise, noise_of(3, 128, COLUMNS))
    assert np.allclose(noise.std((2, 3)), 1, atol=0.1)

    def along(lag):
        return (noise * np.roll(noise, lag, 3)).mean((0, 2, 3))

    assert np.abs(along(1)[:2]).max() < 0.02
    assert along(1)[2:].min() > 0.85
    assert 0.4 < along(18)[2:].min() < along(18)[2:].max() < 0.8
    assert np.abs(noise[0, 2, :, 0] - noise[0, 2, :, -1]).mean() < 0.5  # no seam


def test_the_first_step_is_the_best_estimate_and_levels_fall():
    seen = []

    def denoise(x, t):
        seen.append((float(abs(x).max()), t))
        return exact(0.1)(x, t)

    draw(denoise, noise_of(0, ROWS, COLUMNS), 4)
    assert seen[0] == (0.0, 1.0)
    assert [t for _, t in seen] == levels(4) == sorted(levels(4), reverse=True)


def test_torch_draws_the_same():
    torch = pytest.importorskip("torch")
    noise = noise_of(0, ROWS, COLUMNS).astype(np.float64)
    expected = draw(exact(0.1), noise, 4)
    found = draw(exact(0.1), torch.from_numpy(noise), 4)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-9)
