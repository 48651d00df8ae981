# SPDX-License-Identifier: Apache-2.0
"""Tokenizer files that are wrong, damaged or hostile; conversion; trust."""

import pickle
import shutil
import zipfile
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from lidargen_ros.bundle import file_sha256  # noqa: E402
from lidargen_ros.errors import CheckpointError  # noqa: E402
from lidargen_ros.models import tokenizer_io as io  # noqa: E402
from lidargen_ros.models.tokenizer_codec import build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_jit import read_torchscript  # noqa: E402

# The published archives are traced; torch would rather have it otherwise, and warns about every shape.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
CONFIG = TokenizerConfig(
    channels=4, channels_mult=(1, 1, 1), num_res_blocks=1, z_channels=3, latent_channels=3, num_groups=2
)
GROUPS = {"num_groups": CONFIG.num_groups}
X = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)


class Half(nn.Module):
    def __init__(self, network, encodes):
        super().__init__()
        self.encodes = encodes
        if encodes:
            self.encoder, self.quant_conv = network.encoder, network.quant_conv
        else:
            self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, x):
        return self.quant_conv(self.encoder(x)) if self.encodes else self.decoder(self.post_quant_conv(x))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def traced(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("traced")
    trace(network, folder)
    return folder


@pytest.fixture
def folder(tmp_path, traced):
    """A published-style folder: two traced archives and statistics."""
    shutil.copytree(traced, tmp_path, dirs_exist_ok=True)
    torch.save((torch.arange(3.0), torch.arange(1.0, 4.0)), tmp_path / "mean_std.pt")
    return tmp_path


def trace(network, folder, frozen=False):
    for name, encodes, example in (("encoder", True, X), ("decoder", False, network.encode(X))):
        script = torch.jit.trace(Half(network, encodes).eval(), example, check_trace=False)
        script = torch.jit.freeze(script) if frozen else script
        script.save(folder / f"{name}.jit")


def refuses(path, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        io.load_tokenizer(path, **{**GROUPS, **options})
    assert "\n" not in str(caught.value)


def test_folder_gives_the_network_and_its_statistics(folder, network):
    tokenizer = io.load_tokenizer(folder, **GROUPS)
    assert tokenizer.config == CONFIG and not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    torch.testing.assert_close(tokenizer.encode_raw(X), network.encode(X))
    expected = (network.encode(X) - torch.arange(3.0)[:, None, None]) / torch.arange(1.0, 4.0)[:, None, None]
    torch.testing.assert_close(tokenizer.encode(X), expected)
    for path in (folder / "encoder.jit", folder / "decoder.jit"):
        torch.testing.assert_close(io.load_tokenizer(path, **GROUPS).encode(X), expected)


def test_absent_and_incomplete(tmp_path, folder):
    refuses(tmp_path / "nothing", "no such tokenizer folder or file.*lidargen download")
    (folder / "decoder.jit").unlink()
    refuses(folder, r"decoder\.jit: missing beside encoder\.jit")
    (folder / "encoder.jit").unlink()
    refuses(folder, r"holds no tokenizer .* but mean_std\.pt")


@pytest.mark.parametrize("name", ["encoder.jit", "mean_std.pt", "autoencoder.pt", "tokenizer.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.98])
def test_truncated(name, keep, folder, network, tmp_path):
    torch.save({"model": network.state_dict()}, folder / "autoencoder.pt")
    if name == "tokenizer.safetensors":
        io.convert_tokenizer(folder, folder, **GROUPS)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    path = folder / "encoder.jit" if name == "mean_std.pt" else folder / name
    refuses(path, rf"{name}: .*(damaged|readable|again)")


def test_altered_bytes_are_noticed(folder):
    content = bytearray((folder / "decoder.jit").read_bytes())
    with zipfile.ZipFile(folder / "decoder.jit") as archive:
        weights = [info for info in archive.infolist() if "/data/" in info.filename]
        largest = max(weights, key=lambda info: info.file_size)
    content[largest.header_offset + largest.compress_size] ^= 0xFF
    (folder / "decoder.jit").write_bytes(content)
    refuses(folder, r"decoder\.jit: damaged TorchScript file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ((torch.zeros(5), torch.ones(5)), r"mean has shape \(5,\), 5 values.*3 channels"),
        ((torch.zeros(3, 2), torch.ones(3, 2)), "6 values.*needs 3;"),
        ((torch.zeros(3), torch.ones(3), torch.ones(3)), "tuple, not a pair"),
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "dict, not a pair"),
        ((torch.zeros(3), torch.zeros(3)), "std above 0"),
        ((torch.full((3,), torch.nan), torch.ones(3)), "finite"),
        ((torch.zeros(3, dtype=torch.int64), torch.ones(3)), "mean is not a tensor of floats"),
    ],
)
def test_wrong_statistics(content, match, folder):
    torch.save(content, folder / "mean_std.pt")
    refuses(folder, match)


@pytest.mark.parametrize(
    "content",
    [
        [torch.arange(3.0), torch.ones(3)],
        torch.stack([torch.arange(3.0), torch.ones(3)]),
        (torch.arange(3.0).view(1, 3, 1, 1), torch.ones(1, 3, 1, 1)),
    ],
)
def test_containers_of_statistics(content, folder):
    torch.save(content, folder / "mean_std.pt")
    stats = io.load_tokenizer(folder, **GROUPS).stats
    assert stats.mean.flatten().tolist() == [0, 1, 2] and stats.frames == 1


def test_other_statistics_can_be_named(folder, tmp_path):
    torch.save((torch.zeros(3), torch.full((3,), 7.0)), tmp_path / "other.pt")
    tokenizer = io.load_tokenizer(folder, mean_std=tmp_path / "other.pt", **GROUPS)
    assert tokenizer.stats.std.flatten().tolist() == [7, 7, 7]


def test_keys_are_all_accounted_for(tmp_path, network):
    state = dict(network.state_dict())
    del state["decoder.mid.block_1.conv1.bias"], state["quant_conv.weight"]
    state["decoder.extra"] = torch.zeros(1)
    state["decoder.conv_out.bias"] = torch.zeros(7)
    torch.save({"model": state}, tmp_path / "autoencoder.pt")
    refuses(
        tmp_path,
        r"2 missing: decoder\.mid\.block_1\.conv1\.bias, quant_conv\.weight; 1 unexpected: decoder\.extra; "
        r"1 wrong shape: decoder\.conv_out\.bias is \(7,\) instead of \(48,\)",
    )


def test_half_a_network_says_so(tmp_path, network):
    halves = {k: v for k, v in network.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
    save_file(halves, tmp_path / "network.safetensors")
    refuses(
        tmp_path / "network.safetensors", r"post_quant_conv\.weight is missing \(only the encoder is there\)"
    )


def test_other_content_says_so(tmp_path):
    torch.save({"model": {"blocks.0.weight": torch.zeros(2)}}, tmp_path / "iter_000000001.pt")
    refuses(tmp_path / "iter_000000001.pt", r"encoder\.conv_in\.weight is missing \(1 other keys are there\)")
    torch.save([torch.zeros(2)], tmp_path / "autoencoder.pt")
    refuses(tmp_path, "holds no dict of tensors")


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("prefix", ["network.", ""])
@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints(nested, prefix, legacy, tmp_path, network):
    weights = {prefix + k: v for k, v in network.state_dict().items() if "patcher" not in k}
    weights["loss.vgg.weight"] = torch.zeros(3)
    content = {"model": weights, "iteration": 5, "optimizer": {"state": {}}} if nested else weights
    torch.save(content, tmp_path / "iter_000000005.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "latest_checkpoint.txt").write_text("iter_000000005.pt\n")
    tokenizer = io.load_tokenizer(tmp_path, **GROUPS)
    torch.testing.assert_close(tokenizer.encode_raw(X), network.encode(X))
    refuses(tmp_path, "no averaged", ema=True)


def test_averaged_weights_on_request(tmp_path, network):
    plain = {f"network.{k}": v for k, v in network.state_dict().items()}
    averaged = {
        f"ema.network-{k.replace('.', '-')}": v + 1
        for k, v in network.state_dict().items()
        if v.is_floating_point()
    }
    torch.save({"model": {**plain, **averaged}}, tmp_path / "iter_000000005.pt")
    ours, theirs = (
        io.load_tokenizer(tmp_path / "iter_000000005.pt", ema=ema, **GROUPS) for ema in (False, True)
    )
    bias = "decoder.conv_out.bias"
    torch.testing.assert_close(theirs.network.state_dict()[bias], ours.network.state_dict()[bias] + 1)


def test_pickle_that_wants_to_run_is_refused(folder):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the file ran code')",))

    with (folder / "autoencoder.pt").open("wb") as file:
        pickle.dump(Evil(), file)
    refuses(folder / "autoencoder.pt", "not a readable checkpoint of plain tensors")
    rewrite(folder / "encoder.jit", "data.pkl", pickle.dumps(Evil(), protocol=2))
    refuses(folder, r"refers to .*exec, which is not a weight")


def rewrite(path, record, content):
    """Replace one record of a zip."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, content if name.endswith(record) else value)


def test_code_of_an_archive_does_not_run(folder, monkeypatch):
    expected = torch.jit.load(folder / "encoder.jit").state_dict()
    monkeypatch.setattr(torch.jit, "load", None)
    with zipfile.ZipFile(folder / "encoder.jit") as archive:
        code = [name for name in archive.namelist() if name.endswith(".py")]
    for name in code:
        rewrite(folder / "encoder.jit", name, b"this is not code")
    state = read_torchscript(folder / "encoder.jit")
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)


def test_frozen_archive_runs_only_if_trusted(tmp_path, network, caplog):
    trace(network, tmp_path, frozen=True)
    torch.save((torch.zeros(3), torch.ones(3)), tmp_path / "mean_std.pt")
    refuses(tmp_path, r"frozen into its code\. Loading it would run code inside .*encoder\.jit.*--trust")
    tokenizer = io.load_tokenizer(tmp_path, trust=True)
    assert "running the code inside" in caplog.text
    torch.testing.assert_close(tokenizer.encode(X), network.encode(X))
    torch.testing.assert_close(tokenizer.decode(network.encode(X)), network.decode(network.encode(X)))
    assert (
        tokenizer.config.kind,
        tokenizer.config.spatial_compression,
        tokenizer.config.latent_channels,
    ) == ("image", 8, 3)
    published = {file_sha256(tmp_path / f"{half}.jit") for half in ("encoder", "decoder")}
    io.load_tokenizer(tmp_path, published=published)
    published.pop()
    refuses(tmp_path, "not a published one", published=published)
    with pytest.raises(CheckpointError, match="cannot be converted"):
        io.convert_tokenizer(tmp_path, tmp_path / "out.safetensors", trust=True)


def test_conversion_keeps_everything_and_leaves_nothing_half_done(folder, tmp_path, monkeypatch):
    target = io.convert_tokenizer(folder, tmp_path / "new" / "lidar.safetensors", **GROUPS)
    ours, theirs = io.load_tokenizer(target), io.load_tokenizer(folder, **GROUPS)
    assert ours.config == theirs.config == CONFIG  # the group count as well
    assert torch.equal(ours.encode(X), theirs.encode(X)) and torch.equal(
        ours.decode(ours.encode(X)), theirs.decode(theirs.encode(X))
    )
    assert io.convert_tokenizer(folder, folder, **GROUPS) == folder / io.CONVERTED
    assert io.find_files(folder).weights == (folder / io.CONVERTED,)

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written .*disk full"):
        io.convert_tokenizer(folder, tmp_path / "new" / "other.safetensors", **GROUPS)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["lidar.safetensors"]


def test_weights_are_not_copied(tmp_path, network):
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    state = load_file(tmp_path / "network.safetensors")
    loaded = io.network_from_state(state, CONFIG)
    assert loaded.encoder.conv_in.weight.data_ptr() == state["encoder.conv_in.weight"].data_ptr()


def test_wrong_config_does_not_fit(network):
    with pytest.raises(CheckpointError, match=r"30 missing|missing: decoder\.up\.1\.attn"):
        io.network_from_state(network.state_dict(), replace(CONFIG, decoder_attention=(False, True, True)))
