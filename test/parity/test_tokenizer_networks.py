# SPDX-License-Identifier: Apache-2.0
"""Both tokenizer networks against the published model's own numbers: layout, every stage, latents, reconstructions."""

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lidargen_ros.errors import CheckpointError  # noqa: E402
from lidargen_ros.models.tokenizer_codec import build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import TokenizerConfig, infer_config  # noqa: E402
from lidargen_ros.models.tokenizer_io import network_from_state  # noqa: E402
from tools.random_checkpoint import PUBLISHED  # noqa: E402

IMAGES = ["image_p4_attn", "image_p4_noattn", "image_p2_360p", "image_vae_rearrange"]
VIDEOS = ["video_p4", "video_p2_attn"]
FULL_SIZE = ["ci8x8_lidar", "ci8x8_patch4_res1024", "ci8x8_360p", "cv8x8x8_720p"]
TOLERANCE = 1e-4  # relative, in the 2-norm; float32 rounding gives about 1e-6


def close(actual, expected, what="", tolerance=TOLERANCE):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    difference = (actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12)
    assert difference <= tolerance, f"{what}: {difference:.2e}"


@pytest.fixture(params=IMAGES + VIDEOS)
def published(request, golden, tokenizer_vectors):
    """Description, tensors, weights and network of one small published network."""
    description, tensors = tokenizer_vectors(request.param)
    weights = load_file(golden(f"tokenizer/{description['weights']}"))
    config = TokenizerConfig.from_options(description["config"])
    return description, tensors, weights, network_from_state(weights, config).eval()


def cases(tensors):
    return sorted({key.split("/")[0] for key in tensors if key.startswith("case")})


def test_layout_is_read_from_the_weights(published):
    description, _, weights, network = published
    inferred = infer_config(weights, network.config.num_groups)
    # A plain rearrangement leaves no trace in the weights; published files all use haar.
    assert dataclasses.replace(inferred, patch_method=network.config.patch_method) == network.config
    assert sum(p.numel() for p in network.parameters()) == description["num_parameters"]
    assert inferred.spatial_compression == description["config"]["spatial_compression"]
    assert inferred.temporal_compression == description["config"].get("temporal_compression", 1)


@torch.no_grad()
def test_latents_and_reconstructions(published):
    _, tensors, _, network = published
    for case in cases(tensors):
        x, latent = tensors[f"{case}/input"], tensors[f"{case}/latent"]
        close(network.encode(x, tensors.get(f"{case}/eps")), latent, f"{case} latent")
        close(network.decode(latent), tensors[f"{case}/recon"], f"{case} reconstruction")
        if f"{case}/mean" in tensors:
            mean, logvar = network.posterior(x)
            close(mean, tensors[f"{case}/mean"], f"{case} mean")
            close(logvar, tensors[f"{case}/logvar"], f"{case} log-variance")


def watch(network):
    """Outputs by module name, filled when the network runs."""
    seen = {}
    for name, module in network.named_modules():

        def keep(_module, _inputs, output, name=name):
            seen[name] = output.clone()  # a copy: the activation that follows a norm works in place

        module.register_forward_hook(keep)
    return seen


@torch.no_grad()
def test_every_stage(published):
    _, tensors, _, network = published
    stages = [key for key in tensors if "/stage/" in key]
    if not stages:
        pytest.skip("this network's vectors have no stages")
    for case in sorted({key.split("/")[0] for key in stages}):
        seen = watch(network)
        network.decode(network.encode(tensors[f"{case}/input"], tensors.get(f"{case}/eps")))
        for key in stages:
            if key.startswith(f"{case}/"):
                close(seen[key.split("/stage/")[1]], tensors[key], key)


@torch.no_grad()
@pytest.mark.parametrize("published", VIDEOS, indirect=True)
def test_single_frames_need_no_third_dimension(published):
    """Taps summed over time are the same network: a lone frame against the published order of operations."""
    _, tensors, weights, network = published
    published_order = network_from_state(weights, network.config, reference=True).eval()
    lone = [case for case in cases(tensors) if tensors[f"{case}/input"].shape[2] == 1]
    assert lone
    for case in lone:
        close(published_order.encode(tensors[f"{case}/input"]), tensors[f"{case}/latent"], case)
        close(published_order.decode(tensors[f"{case}/latent"]), tensors[f"{case}/recon"], case)
        close(
            network.encode(tensors[f"{case}/input"]), published_order.encode(tensors[f"{case}/input"]), case
        )


@torch.no_grad()
def test_half_precision_is_as_exact_as_published(published):
    """bfloat16 latents stray from float32 no farther than the published network's own do."""
    description, tensors, _, network = published
    known = {case: figures.get("bf16_cpu_vs_fp32") for case, figures in description["precision"].items()}
    if not any(known.values()):
        pytest.skip("the vectors give no bfloat16 figures for this network")
    for case in set(cases(tensors)) & {case for case, figures in known.items() if figures}:
        theirs = known[case]["latent"]["mean_abs"]
        z = network.to(torch.bfloat16).encode(tensors[f"{case}/input"].bfloat16())
        assert (z.float() - tensors[f"{case}/latent"]).abs().mean() <= 1.5 * theirs, case


@pytest.mark.parametrize("name", FULL_SIZE)
def test_published_layout_at_full_size(golden, name):
    listing = json.loads(golden(f"tokenizer/keys_{name}.json").read_text())
    config = TokenizerConfig.from_options(listing["config"])
    with torch.device("meta"):
        network = build_network(config)
    entries = listing["state_dict"]
    actual = {key: (list(value.shape), str(value.dtype)) for key, value in network.state_dict().items()}
    assert actual == {key: (entry["shape"], f"torch.{entry['dtype']}") for key, entry in entries.items()}
    assert len(actual) == listing["num_state_dict_entries"]
    assert {key for key, _ in network.named_parameters()} == {
        k for k, e in entries.items() if e["kind"] == "parameter"
    }
    assert sorted(dict(network.named_buffers())) == sorted(listing["buffers"])
    counts = {part: sum(p.numel() for p in child.parameters()) for part, child in network.named_children()}
    assert {**counts, "total": sum(counts.values())} == listing["parameters"]
    assert infer_config(network.state_dict()) == config
    encoder = {key for key in actual if key.startswith(("encoder.", "quant_conv."))}
    assert encoder == set(listing["encoder_artefact_keys"])
    assert set(actual) - encoder == set(listing["decoder_artefact_keys"])


@pytest.mark.parametrize(("part", "name"), [("lidar", "ci8x8_lidar"), ("camera", "cv8x8x8_720p")])
def test_random_checkpoints_have_the_published_layout(golden, part, name):
    listing = json.loads(golden(f"tokenizer/keys_{name}.json").read_text())
    assert getattr(PUBLISHED, part) == TokenizerConfig.from_options(listing["config"])


@torch.no_grad()
@pytest.mark.parametrize("name", FULL_SIZE)
def test_work_at_full_size(golden, name):
    """Sizes in and out, and operations: the published counts, which include a little for patching."""
    listing = json.loads(golden(f"tokenizer/keys_{name}.json").read_text())
    with torch.device("meta"):
        network = build_network(TokenizerConfig.from_options(listing["config"]))
    jobs = {(job["what"], *job["input_shape"]): job for job in listing.get("flops", [])}
    # Lone frames are done with the taps summed, so that count replaces the plain one.
    folded = listing.get("flops_single_frame_with_temporal_taps_summed", [])
    jobs |= {(job["what"], *job["input_shape"]): job for job in folded}
    for job in jobs.values():
        with FlopCounterMode(display=False) as counter:
            output = getattr(network, job["what"])(torch.empty(job["input_shape"], device="meta"))
        assert list(output.shape) == job["output_shape"]
        if network.config.kind == "image" or job in folded or job["input_shape"][2] > 1:
            assert 0.985 <= counter.get_total_flops() / job["total_flops"] <= 1.0, job["what"]


def test_siblings_are_told_apart_and_do_not_fit_each_other(golden):
    """The three layouts of the 8x8 image tokenizer that share a name."""
    states = {}
    for name in FULL_SIZE[:3]:
        listing = json.loads(golden(f"tokenizer/keys_{name}.json").read_text())
        states[name] = {k: torch.empty(e["shape"], device="meta") for k, e in listing["state_dict"].items()}
    configs = {name: infer_config(state) for name, state in states.items()}
    assert len(set(configs.values())) == 3
    for name, state in states.items():
        for other, config in configs.items():
            if other == name:
                network_from_state(state, config)
            else:
                with pytest.raises(CheckpointError, match=r"missing|unexpected|wrong shape"):
                    network_from_state(state, config)
