# SPDX-License-Identifier: Apache-2.0
"""The student: a circle without a seam, preconditioning that is exact where it must be, and an export that changes nothing."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros import range_coding  # noqa: E402
from lidargen_ros.models.student import NANO, Student, StudentConfig, precondition  # noqa: E402
from lidargen_ros.models.student_graphs import look_up  # noqa: E402

SMALL = StudentConfig(
    hypotheses=2,
    full=8,
    fine=8,
    patch=16,
    mid=16,
    coarse=16,
    head_width=8,
    encoder_blocks=(1, 1, 1, 1),
    denoiser_blocks=(1, 1, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return Student(SMALL).eval()


def test_turning_the_vehicle_turns_the_sweep(student):
    """Rays carry no column number: rolling the inputs by a multiple of the strides rolls the answer, over the seam too."""
    pixels, rays = torch.randn(1, 8, 16, 144), torch.randn(1, 8, 16, 144)
    with torch.no_grad():
        plain = student.estimate(pixels, rays)
        turned = student.estimate(pixels.roll(36, -1), rays.roll(36, -1))
    assert torch.allclose(plain.code.roll(36, -1), turned.code, atol=1e-5)
    assert torch.allclose(plain.logit.roll(36, -1), turned.logit, atol=1e-5)


def test_nano_is_small_enough_to_ship():
    with torch.device("meta"):
        assert 2 * sum(p.numel() for p in Student(NANO).parameters()) < 12e6


def test_preconditioning():
    raw, x = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 4, 5)
    full = precondition(raw, x, torch.ones(2), 0.5)
    assert torch.equal(full.code, raw[:, 0])
    assert torch.equal(full.logit, raw[:, 1])
    nearly_clean = precondition(raw, x, torch.full((2,), 1e-4), 0.5)
    assert torch.allclose(nearly_clean.code, x[:, 0], atol=2e-3)


def test_range_code_is_the_one_of_the_numpy_side():
    code = torch.linspace(-1, 1, 50)
    expected = range_coding.decode_log(code.numpy(), 0.5, 120.0)
    assert np.allclose(range_coding.decode_log(code, 0.5, 120.0), expected, rtol=1e-5)


def test_look_up_takes_the_colour_at_the_pixel():
    atlas = torch.zeros(1, 6, 4, 3, dtype=torch.uint8)
    atlas[0, 2, 1] = torch.tensor([255, 0, 128], dtype=torch.uint8)
    grid = torch.tensor([(2 * 1.5 / 4) - 1, (2 * 2.5 / 6) - 1]).expand(1, 1, 1, 2, 2)
    mask = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    out = look_up(atlas, grid, mask)[0, :, 0]
    assert torch.allclose(out[:, 0], torch.tensor([1.0, -1.0, 128 / 127.5 - 1, 1.0]), atol=1e-5)
    assert not out[:, 1].any()
