# SPDX-License-Identifier: Apache-2.0
"""Losses of tokenizer post-training where no published numbers are needed."""

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import CheckpointError, ConfigError  # noqa: E402
from training import tokenizer_loss as tl  # noqa: E402


def test_vgg_takes_the_names_of_torchvision():
    stages = [*zip((4, 5, 6, 7, 8), tl.VGG16_STAGES, strict=True)]
    state, cin = {"classifier.0.weight": torch.zeros(2)}, 3
    for width, indices in stages:
        for index in indices:
            state |= {
                f"features.{index}.weight": torch.randn(width, cin, 3, 3),
                f"features.{index}.bias": torch.randn(width),
            }
            cin = width
    vgg = tl.Vgg16.from_state(state)
    assert torch.equal(vgg.slice3["14"].weight, state["features.14.weight"])
    features = vgg(torch.rand(2, 3, 32, 48))
    assert [tuple(f.shape) for f in features] == [(2, w, 32 >> k, 48 >> k) for k, (w, _) in enumerate(stages)]
    assert not any(p.requires_grad for p in vgg.parameters())


def test_vgg_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"get vgg16-397923af\.pth"):
        tl.Vgg16.from_file(tmp_path / "vgg16.pth")


def test_equal_images_cost_nothing():
    vgg = tl.Vgg16((2, 2, 2, 2, 2))
    x = torch.rand(2, 3, 16, 16)
    assert all(value == 0 for value in tl.TokenizerLoss(vgg)(x, x, tl.GRAM_START).values())


def test_without_vgg_only_the_colour_remains():
    x = torch.rand(2, 3, 16, 16)
    assert tl.TokenizerLoss(None)(x, x + 0.5, 0) == {"colour": pytest.approx(0.5)}


def test_unknown_reduction():
    with pytest.raises(ConfigError, match="'median' is unknown; use one of mean"):
        tl.reduce(torch.zeros(1), "median")


def test_warm_up_then_constant():
    optimizer = tl.make_optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = tl.make_schedule(optimizer, warmup=4)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_broken_gradient_stops_before_it_does_harm():
    network = torch.nn.Conv2d(3, 3, 1)
    before = network.weight.detach().clone()
    optimizer = tl.make_optimizer(network.parameters())
    with pytest.raises(RuntimeError, match="non-finite"):
        tl.train_step(
            network,
            tl.TokenizerLoss(None),
            optimizer,
            tl.make_schedule(optimizer),
            torch.full((1, 3, 4, 4), torch.nan),
            0,
        )
    assert torch.equal(network.weight, before)


def test_picture_scores_of_equal_pictures():
    a = tl.to_bytes(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert tl.ssim(a, a) == pytest.approx(1) and tl.psnr(a, a) > 100
