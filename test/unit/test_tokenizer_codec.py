# SPDX-License-Identifier: Apache-2.0
"""The tokenizer as others use it: sizes it refuses, dtypes, clips in chunks, statistics, layouts that cannot be."""

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import CheckpointError, ConfigError, InputError  # noqa: E402
from lidargen_ros.models.haar import haar_image, haar_video  # noqa: E402
from lidargen_ros.models.latents import LatentStats  # noqa: E402
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import TokenizerConfig, infer_config  # noqa: E402

OPTIONS = {
    "channels": 4,
    "channels_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [32],
    "resolution": 512,
    "patch_size": 4,
    "spatial_compression": 8,
    "z_channels": 3,
    "latent_channels": 3,
    "num_groups": 2,
}


def make(video=False, frames=1, **changes):
    torch.manual_seed(0)
    options = {**OPTIONS, **({"temporal_compression": 8} if video else {}), **changes}
    stats = LatentStats(torch.rand(3, frames), torch.rand(3, frames) + 0.5)
    return Tokenizer(build_network(TokenizerConfig.from_options(options)), stats).eval()


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 12, 16), "12 x 16.*multiples of 8; pad or crop"),
        ((1, 3, 0, 16), "multiples of 8"),
        ((1, 4, 16, 16), r"takes floats \[B, 3, H, W\]"),
        ((3, 16, 16), r"takes floats \[B, 3, H, W\]"),
        ((1, 3, 2, 16, 16), "2 frames: an image tokenizer takes one"),
    ],
)
def test_images_that_do_not_fit(shape, match):
    with pytest.raises(InputError, match=match):
        make().encode(torch.zeros(shape))


def test_other_inputs_that_do_not_fit():
    with pytest.raises(InputError, match=r"latent of shape \(1, 4, 2, 2\).*\[B, 3, H, W\]"):
        make().decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(InputError, match=r"torch.uint8.*takes floats"):
        make().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"takes floats \[B, 3, T, H, W\]"):
        make(video=True).encode(torch.zeros(1, 3, 16, 16))


def test_without_statistics_only_raw_latents():
    tokenizer = Tokenizer(make().network)
    x = torch.rand(1, 3, 16, 16)
    assert tokenizer.decode_raw(tokenizer.encode_raw(x)).shape == x.shape
    for call in (lambda: tokenizer.encode(x), lambda: tokenizer.decode(torch.zeros(1, 3, 2, 2))):
        with pytest.raises(CheckpointError, match=r"without mean_std\.pt"):
            call()


def test_dtype_of_the_caller_comes_back():
    tokenizer = make(video=True).to(torch.bfloat16)
    x = torch.rand(2, 3, 1, 16, 16)
    assert tokenizer.encode(x).dtype == torch.float32
    assert tokenizer.decode(tokenizer.encode(x.bfloat16())).dtype == torch.bfloat16
    assert not tokenizer.encode(x).requires_grad


@torch.no_grad()
def test_memory_format_does_not_change_numbers():
    tokenizer = make()
    x = torch.rand(1, 3, 16, 24)
    expected = tokenizer.encode(x), tokenizer.decode(tokenizer.encode(x))
    tokenizer = tokenizer.to(memory_format=torch.channels_last)
    z = tokenizer.encode(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(z, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokenizer.decode(z), expected[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_long_clips_go_in_chunks_with_statistics_of_their_frames():
    tokenizer = make(video=True, frames=2)
    assert tokenizer.chunk_frames == 9
    x = torch.rand(1, 3, 18, 16, 16)
    z = tokenizer.encode(x)
    assert z.shape == (1, 3, 4, 2, 2)
    for piece, latents in zip(x.split(9, dim=2), z.split(2, dim=2), strict=True):
        mean, std = (v[None, :, :, None, None] for v in (tokenizer.stats.mean, tokenizer.stats.std))
        torch.testing.assert_close(latents, (tokenizer.network.encode(piece) - mean) / std)
    assert tokenizer.decode(z).shape == x.shape
    with pytest.raises(InputError, match="4 frames: mean_std has statistics for 2"):
        tokenizer.stats.normalise(z)


@torch.no_grad()
def test_video_is_causal():
    network = make(video=True).network
    x = torch.rand(1, 3, 17, 16, 16)
    later = torch.cat([x[:, :, :9], torch.rand(1, 3, 8, 16, 16)], dim=2)
    torch.testing.assert_close(network.encode(x)[:, :, :2], network.encode(later)[:, :, :2])


def test_measured_statistics_are_those_of_numpy():
    batches = [torch.randn(2, 3, 5, 7) * torch.tensor([1.0, 2, 3]).view(3, 1, 1) + 4 for _ in range(4)]
    stats = LatentStats.measure(batches)
    everything = torch.cat(batches).transpose(0, 1).flatten(1).numpy()
    torch.testing.assert_close(stats.mean[:, 0].numpy(), everything.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(stats.std[:, 0].numpy(), everything.std(1, ddof=1), atol=1e-5, rtol=0)
    normalised = stats.normalise(batches[0])
    torch.testing.assert_close(stats.denormalise(normalised), batches[0], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="at least two"):
        LatentStats.measure([])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dropout": 0.1}, "only 0 is supported"),
        ({"spatial_compression": 12}, r"cannot compress space and time by \(12, 1\)"),
        ({"spatial_compression": 64}, r"cannot compress space and time by \(64, 1\)"),
        ({"spatial_compression": 2}, r"cannot compress space and time by \(2, 1\)"),
        ({"temporal_compression": 2}, r"cannot compress space and time by \(8, 2\)"),
    ],
)
def test_options_that_cannot_be(changes, match):
    with pytest.raises(ConfigError, match=match):
        TokenizerConfig.from_options({**OPTIONS, **changes})


def test_resolution_only_places_attention():
    with_attention, without = (
        TokenizerConfig.from_options({**OPTIONS, "resolution": r}) for r in (512, 1024)
    )
    assert with_attention.decoder_attention == (False, False, True) and not any(without.decoder_attention)
    assert with_attention.up == without.up == ("none", "none", "space")


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_layout_survives_the_weights(video, patch):
    options = {**OPTIONS, "patch_size": patch, "channels_mult": [1, 2, 2, 3]}
    config = TokenizerConfig.from_options(options | ({"temporal_compression": 8} if video else {}))
    with torch.device("meta"):
        state = build_network(config).state_dict()
    assert infer_config(state, config.num_groups) == config
    assert TokenizerConfig.from_dict(config.to_dict()) == config


def test_config_from_a_newer_version_is_refused():
    with pytest.raises(ConfigError, match="unknown depth; written by a newer version"):
        TokenizerConfig.from_dict({"depth": 3})


def test_patching_needs_a_power_of_two():
    with pytest.raises(ConfigError, match="patch size 3 is not a power of two"):
        haar_image(torch.zeros(1, 3, 6, 6), 3)


def test_still_frames_have_no_motion_bands():
    bands = haar_video(torch.rand(1, 3, 1, 8, 8), 4)
    still = [24 * b2 + 3 * b1 + c for b2 in range(4) for b1 in range(4) for c in range(3)]
    moving = sorted(set(range(192)) - set(still))
    assert bands[:, moving].abs().max() == 0 and (bands[:, still].abs().sum((0, 2, 3, 4)) > 0).all()
