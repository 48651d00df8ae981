# SPDX-License-Identifier: Apache-2.0
"""Denoiser, corruption of the condition, guidance and joint latent against the published model's numbers."""

import pytest

torch = pytest.importorskip("torch")
from einops import rearrange  # noqa: E402

from lidargen_ros.models.dit_denoiser import Condition, Corruption, guided  # noqa: E402
from lidargen_ros.models.dit_latents import (  # noqa: E402
    condition_indicator,
    encode_views,
    join,
    padded_size,
    split,
)

TOLERANCE = 1e-4


def close(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def branches(vectors):
    """Prefixes of the stored cases: ``text.sigma80`` and so on."""
    return sorted({k.rsplit(".xt", 1)[0] for k in vectors if k.endswith(".xt")})


def text_of(vectors, case):
    text = vectors["batch.t5_text_embeddings"]
    return torch.zeros_like(text) if case.startswith("zerotext") else text


@torch.no_grad()
def test_denoiser_with_corrupted_condition_and_guidance(dit_model, dit_vectors):
    vectors, model = dit_vectors("denoise"), dit_model()
    cases = [c for c in branches(vectors) if not c.startswith("input_guidance")]
    assert len(cases) >= 4
    for case in cases:
        condition = Condition(
            vectors["gt_latent"],
            text_of(vectors, case),
            vectors["batch.padding_mask"],
            vectors["view_indices_B_T"],
        )
        results = []
        for branch, told in (("cond", condition), ("uncond", condition.without_text())):
            name = f"{case}.{branch}"
            corruption = Corruption(vectors[f"{name}.augment_sigma"], vectors[f"{name}.augment_noise"])
            got = model.denoise(vectors[f"{case}.xt"], vectors[f"{case}.sigma"], told, corruption)
            results.append(got.x0)
            close(got.x0, vectors[f"{name}.x0"])
            if f"{name}.net_in" in vectors:
                close(got.network_input, vectors[f"{name}.net_in"])
                close(got.noise_level, vectors[f"{name}.timestep"], 1e-6)
                close(got.network_output, vectors[f"{name}.net_out"])
                close(got.unreplaced, vectors[f"{name}.x0_unreplaced"])
        close(guided(*results, 1.5), vectors[f"{case}.x0_cfg1.5"])
        close(model.log_variance(got.noise_level), vectors[f"{case}.logvar"])


@torch.no_grad()
def test_input_guidance_blanks_cameras_and_mask(dit_model, dit_vectors):
    vectors, model = dit_vectors("denoise"), dit_model()
    case = "input_guidance.sigma3"
    sigma = vectors["text.sigma3.sigma"]
    condition = Condition(vectors["gt_latent"], vectors["batch.t5_text_embeddings"])
    corruption = Corruption(vectors[f"{case}.cond.augment_sigma"], vectors[f"{case}.cond.augment_noise"])
    conditional = model.denoise(vectors[f"{case}.xt"], sigma, condition, corruption)
    close(conditional.x0, vectors[f"{case}.cond.x0"])
    blank = model.denoise(
        vectors[f"{case}.xt"], sigma, condition.without_text(), corruption, drop_condition=True
    )
    close(blank.network_input, vectors[f"{case}.uncond.net_in"])
    close(blank.x0, vectors[f"{case}.uncond.x0"])
    close(guided(conditional.x0, blank.x0, 1.5), vectors[f"{case}.x0_cfg1.5"])


@torch.no_grad()
def test_bfloat16_run(dit_model, dit_vectors):
    """Wholly in bfloat16 with rounded tables: 1.5 % relative to the root mean square; inputs bit for bit."""
    vectors, model = dit_vectors("denoise_bf16"), dit_model(torch.bfloat16, rounded=True)
    text = dit_vectors("denoise")["batch.t5_text_embeddings"]
    half = {k: v.bfloat16() for k, v in vectors.items()}
    condition = Condition(half["gt_latent"], text.bfloat16())
    for case in branches(vectors):
        sigma = torch.tensor([float(case.removeprefix("sigma"))], dtype=torch.bfloat16)
        results = []
        for branch, told in (("cond", condition), ("uncond", condition.without_text())):
            name = f"{case}.{branch}"
            corruption = Corruption(half[f"{name}.augment_sigma"], half[f"{name}.augment_noise"])
            got = model.denoise(half[f"{case}.xt"], sigma, told, corruption)
            assert got.x0.dtype is torch.bfloat16
            assert torch.equal(got.network_input.float(), vectors[f"{name}.net_in"])
            for mine, key in ((got.network_output, "net_out"), (got.x0, "x0")):
                expected = vectors[f"{name}.{key}"]
                assert (mine.float() - expected).norm() < 0.015 * expected.norm()
            results.append(got.x0)
        expected = vectors[f"{case}.x0_cfg1.5"]
        assert (guided(*results, 1.5).float() - expected).norm() < 0.015 * expected.norm()


def test_joint_latent(dit_vectors, dit_config):
    vectors, latents = dit_vectors("concat"), dit_config["latents"]
    joint = join(vectors["lidar"], vectors["rgb"])
    assert torch.equal(joint, vectors["padded"])
    assert padded_size(tuple(latents["lidar"]), tuple(latents["rgb"])) == tuple(latents["padded"])
    lidar, cameras = split(joint, tuple(latents["lidar"]), tuple(latents["rgb"]))
    assert torch.equal(lidar, vectors["split_lidar"])
    assert torch.equal(cameras, vectors["split_rgb"])
    without = join(None, vectors["rgb"], tuple(latents["lidar"]))
    assert without.shape == joint.shape
    assert torch.equal(without[:, :, 1:], joint[:, :, 1:])
    assert not without[:, :, 0].any()


def test_sample_of_the_denoiser_vectors_is_assembled_alike(dit_vectors):
    vectors = dit_vectors("denoise")
    cameras = encode_views(lambda x: x, [vectors[f"batch.image_rgb_{i}"] for i in range(3)])
    assert torch.equal(join(vectors["batch.video"], cameras), vectors["gt_latent"])
    indicator = condition_indicator(vectors["gt_latent"].shape[2])
    assert torch.equal(indicator, vectors["condition_video_indicator"])
    mask = vectors["condition_video_input_mask"]
    assert torch.equal(indicator.expand_as(mask), mask)


def test_view_order_of_a_batch(dit_vectors):
    """The published order mixes samples and views for a batch of two; the default order does not."""
    vectors = dit_vectors("concat")
    views = [vectors[f"batch2_view{i}"] for i in range(3)]
    mixed = encode_views(lambda x: x, views, published_order=True)
    assert torch.equal(mixed, vectors["batch2_reference_rgb"])
    right = encode_views(lambda x: x, views)
    assert torch.equal(right, rearrange(torch.stack(views), "v b c 1 h w -> b c v h w"))
    assert not torch.equal(right, mixed)
    one = [v[:1] for v in views]
    assert torch.equal(encode_views(lambda x: x, one), encode_views(lambda x: x, one, published_order=True))
