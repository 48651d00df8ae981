# SPDX-License-Identifier: Apache-2.0
"""Tokenizer files against the published model's own numbers: JIT folders, statistics, dtypes, training checkpoints."""

import shutil
from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from lidargen_ros.models.tokenizer_config import TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_io import convert_tokenizer, load_tokenizer  # noqa: E402
from lidargen_ros.models.tokenizer_jit import read_torchscript  # noqa: E402

# The published archives are traced; torch would rather have it otherwise, and warns about every shape.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
FOLDERS = {"lidar": "lidar_config", "rgb_image": "rgb_config", "rgb_video": "rgb_config"}
FLOAT32, BFLOAT16 = 1e-4, 0.015  # relative, in the 2-norm


def close(actual, expected, what="", tolerance=None):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    tolerance = tolerance or (BFLOAT16 if expected.dtype == torch.bfloat16 else FLOAT32)
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert difference <= tolerance, f"{what}: {difference:.2e}"


class Traceable(nn.Sequential):
    """Children in the order of the published archives; the encoder also returns its (empty) posterior."""

    def __init__(self, posterior, **children):
        super().__init__(OrderedDict(children))
        self.posterior = posterior

    def forward(self, x):
        y = super().forward(x)
        return (y, (torch.zeros(1), torch.zeros(1))) if self.posterior else y


def trace_folder(network, example, folder):
    """Write encoder.jit and decoder.jit as the published tool does: traced, in eval mode."""
    folder.mkdir(exist_ok=True)
    encoder = Traceable(True, encoder=network.encoder, quant_conv=network.quant_conv).eval()
    decoder = Traceable(False, post_quant_conv=network.post_quant_conv, decoder=network.decoder).eval()
    with torch.no_grad():
        torch.jit.trace(encoder, example, check_trace=False).save(folder / "encoder.jit")
        torch.jit.trace(decoder, network.encode(example), check_trace=False).save(folder / "decoder.jit")
    return folder


@pytest.fixture
def facts(tokenizer_vectors):
    return tokenizer_vectors("jit_vae")[0]["facts"]


@pytest.fixture
def vectors(tokenizer_vectors):
    return tokenizer_vectors("jit_vae")[1]


@pytest.fixture(params=["state dicts", "TorchScript", "converted"])
def load(request, golden, facts, tmp_path, monkeypatch):
    """``load("lidar")``: the tokenizer of that folder, from each kind of file that holds the same weights."""

    def run(name, **options):
        folder = golden(f"tokenizer/jit/{name}")
        options["num_groups"] = TokenizerConfig.from_options(facts[FOLDERS[name]]).num_groups
        if request.param == "state dicts":
            return load_tokenizer(folder, **options)
        if request.param == "converted":
            path = convert_tokenizer(folder, tmp_path, num_groups=options.pop("num_groups"))
            return load_tokenizer(path, **options)
        network = load_tokenizer(folder, **options).network
        frames = {"lidar": (), "rgb_image": (1,), "rgb_video": (17,)}[name]
        traced = trace_folder(
            network, torch.zeros(1, 3, *frames, 64, 64, dtype=network.dtype), tmp_path / name
        )
        shutil.copyfile(folder / "mean_std.pt", traced / "mean_std.pt")
        with monkeypatch.context() as patch:
            patch.setattr(torch.jit, "load", None)  # the weights must come out without TorchScript
            return load_tokenizer(traced, **options)

    return run


@pytest.mark.parametrize("name", FOLDERS)
def test_archive_is_read_as_torch_reads_it(name, golden, facts, tmp_path):
    network = load_tokenizer(
        golden(f"tokenizer/jit/{name}"), num_groups=facts[FOLDERS[name]].get("num_groups")
    ).network
    example = torch.zeros(1, 3, *([] if name == "lidar" else [1]), 32, 32, dtype=network.dtype)
    folder = trace_folder(network, example, tmp_path / name)
    for half in ("encoder", "decoder"):
        state = read_torchscript(folder / f"{half}.jit")
        expected = torch.jit.load(folder / f"{half}.jit").state_dict()
        published = facts[name][half]["state_dict"]
        assert {k: [list(v.shape), str(v.dtype)] for k, v in state.items()} == {
            k: [shape, f"torch.{dtype}"] for k, (shape, dtype) in published.items()
        }
        assert all(torch.equal(state[key], value) for key, value in expected.items()) and len(state) == len(
            expected
        )


@pytest.mark.parametrize("name", FOLDERS)
def test_statistics(name, load, vectors, facts):
    if f"{name}/latent_mean" not in vectors:
        pytest.skip("not in this set")
    tokenizer = load(name)
    for value, key in ((tokenizer.stats.mean, "mean"), (tokenizer.stats.std, "std")):
        expected = vectors[f"{name}/latent_{key}"]
        assert value.dtype == expected.dtype == tokenizer.network.dtype
        assert torch.equal(value.reshape(-1), expected.reshape(-1))
    # The published consumer reshapes for its own rank, and per frame for clips.
    assert tokenizer.stats.frames == (expected.shape[2] if expected.ndim == 5 else 1)


def test_lidar(load, vectors):
    tokenizer = load("lidar")
    x = vectors["lidar/state"]
    close(tokenizer.encode_raw(x), vectors["lidar/latent_raw"])
    close(tokenizer.encode(x), vectors["lidar/latent_normalised"])
    close(tokenizer.decode(vectors["lidar/latent_normalised"]), vectors["lidar/decoded"])
    # De-normalised in the latent's bfloat16, decoded in float32, rounded to bfloat16.
    decoded = tokenizer.decode(vectors["lidar/bf16_latent"])
    close(decoded, vectors["lidar/decoded_from_bf16_latent"], tolerance=1e-3)


def test_lidar_with_a_time_axis(load, vectors):
    """As the joint tokenizer sees it: one frame."""
    if "joint/lidar_state_BCTHW" not in vectors:
        pytest.skip("not in this set")
    tokenizer = load("lidar")
    close(tokenizer.encode(vectors["joint/lidar_state_BCTHW"]), vectors["joint/encode_lidar"])
    close(tokenizer.decode(vectors["joint/encode_lidar"]), vectors["joint/decode_lidar"])


def test_camera_frames_in_bfloat16(load, vectors):
    if "rgb_image/state_bf16" not in vectors:
        pytest.skip("not in this set")
    tokenizer = load("rgb_image", reference=True)
    assert tokenizer.network.dtype == torch.bfloat16
    x = vectors["rgb_image/state_bf16"]
    close(tokenizer.encode_raw(x), vectors["rgb_image/latent_raw_bf16"])
    close(tokenizer.encode(x), vectors["rgb_image/latent_from_bf16_state"])
    close(tokenizer.encode(x), vectors["joint/encode_image_bf16"])
    from_float = tokenizer.encode(vectors["rgb_image/state_fp32"])
    close(from_float, vectors["rgb_image/latent_from_fp32_state"], tolerance=BFLOAT16)
    close(tokenizer.decode(vectors["rgb_image/latent_from_bf16_state"]), vectors["rgb_image/decoded_bf16"])


def test_folded_camera_frames_stray_no_farther_from_float32(load, vectors):
    if "rgb_image/fp32_eager_latent_raw" not in vectors:
        pytest.skip("not in this set")
    exact = vectors["rgb_image/fp32_eager_latent_raw"]
    published = (vectors["rgb_image/latent_raw_bf16"].float() - exact).norm()
    ours = load("rgb_image").encode_raw(vectors["rgb_image/state_bf16"]).float() - exact
    assert ours.norm() <= 1.25 * published
    close(load("rgb_video").encode_raw(vectors["rgb_image/state_fp32"]), exact)


def test_clips_in_chunks(load, vectors, facts):
    if "rgb_video/state" not in vectors:
        pytest.skip("not in this set")
    tokenizer = load("rgb_video")
    latent = tokenizer.encode(vectors["rgb_video/state"])
    close(latent, vectors["rgb_video/latent_normalised"])
    (key,) = (key for key in vectors if key.startswith("rgb_video/decoded_first_chunk_only_frames"))
    first, last = map(int, key.rsplit("frames", 1)[1].split("to"))
    close(tokenizer.decode(latent)[:, :, first : last + 1], vectors[key])
    # A decoder traced on one frame returns too few frames for longer latents; ours does not.
    for frames in facts["rgb_image_decoder_frames_out_for_latent_T"]:
        z = latent[:, :, : int(frames)]
        assert (
            tokenizer.decode_raw(z).shape[2] == 1 + (z.shape[2] - 1) * tokenizer.config.temporal_compression
        )


@pytest.mark.parametrize(
    "file", ["", "autoencoder.pt", "iter_{:09d}.pt", "iter_{:09d}_enc.safetensors", "ema"]
)
def test_post_trained(file, golden, tokenizer_vectors):
    """``ema`` holds the ordinary weights: averaging is off in the published run."""
    description, vectors = tokenizer_vectors("training")
    folder = golden("tokenizer/jit/posttrained")
    stem = description["facts"]["latest_checkpoint.txt"].strip().removesuffix(".pt")
    assert (folder / "latest_checkpoint.txt").read_text() == description["facts"]["latest_checkpoint.txt"]
    name = file.replace("iter_{:09d}", stem).replace("ema", f"{stem}_ema.safetensors")
    tokenizer = load_tokenizer(folder / name, num_groups=description["network_config"].get("num_groups"))
    assert tokenizer.stats is None
    close(tokenizer.encode_raw(vectors["posttrained/input"]), vectors["posttrained/latent"])
    close(tokenizer.decode_raw(vectors["posttrained/latent"]), vectors["posttrained/recon"])


def test_post_trained_files_hold_one_network(golden, tokenizer_vectors):
    description, vectors = tokenizer_vectors("training")
    folder = golden("tokenizer/jit/posttrained")
    stem = description["facts"]["latest_checkpoint.txt"].strip().removesuffix(".pt")
    content = torch.load(folder / f"{stem}.pt", weights_only=True)
    assert {key: type(value).__name__ for key, value in content.items()} == description["facts"][
        "pt_top_level"
    ]
    model = content["model"]
    assert {k: list(v.shape) for k, v in model.items()} == description["facts"]["pt_model_keys"]
    whole = load_file(folder / f"{stem}_ema.safetensors")
    halves = load_file(folder / f"{stem}_enc.safetensors") | load_file(folder / f"{stem}_dec.safetensors")
    assert whole.keys() == halves.keys() and all(torch.equal(whole[key], halves[key]) for key in whole)
    assert all(torch.equal(value, whole[key.removeprefix("network.")]) for key, value in model.items())
    assert all(
        torch.equal(value, vectors[f"train/final/{key.removeprefix('network.')}"])
        for key, value in model.items()
    )
