# SPDX-License-Identifier: Apache-2.0
"""Loading and converting weights of the diffusion model, with files whole, wrong and damaged."""

import os

import pytest

torch = pytest.importorskip("torch")
from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lidargen_ros.errors import CheckpointError, ConfigError  # noqa: E402
from lidargen_ros.files import replacing  # noqa: E402
from lidargen_ros.models.checkpoints import (  # noqa: E402
    convert_checkpoint,
    find_checkpoint,
    load_diffusion,
    require_memory,
)
from lidargen_ros.models.dit_config import DiTConfig  # noqa: E402
from lidargen_ros.models.dit_denoiser import DiffusionModel  # noqa: E402

CONFIG = DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8, mlp_ratio=2)


@pytest.fixture
def state():
    torch.manual_seed(0)
    model = DiffusionModel(CONFIG)
    model.net.init_weights()
    return {k: v.bfloat16() for k, v in model.state_dict().items()}


def same(model, state):
    loaded = model.state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(loaded[k], v) for k, v in state.items())


def test_flat_file(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    model = load_diffusion(tmp_path / "model.pt")
    assert same(model, state)
    assert model.net.config == CONFIG
    assert model.net.rounded_positions  # what bfloat16 weights were trained with
    assert not any(p.requires_grad for p in model.parameters())
    assert same(load_diffusion(tmp_path), state)


def test_nested_file_with_extra_state(tmp_path, state):
    extra = {"net.blocks.block0.blocks.0.block.attn.core._extra_state": {"x": 1}}
    torch.save({"model": state | extra, "ema": {}}, tmp_path / "model.pt")
    assert same(load_diffusion(tmp_path / "model.pt"), state)


def test_old_style_file(tmp_path, state):
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert same(load_diffusion(tmp_path / "model.pt"), state)


def test_position_vector_and_log_variance_are_optional(tmp_path, state):
    small = {k: v for k, v in state.items() if k.startswith("net.") and k != "net.pos_embedder.seq"}
    torch.save(small, tmp_path / "model.pt")
    model = load_diffusion(tmp_path / "model.pt")
    assert torch.equal(model.net.pos_embedder.seq.float(), torch.arange(128.0))
    assert float(model.log_variance(torch.zeros(1, dtype=torch.bfloat16))) == 0


def test_training_files(tmp_path, state):
    name = "iter_000000600"
    averaged = {k: v.float() + 1 for k, v in state.items()}
    torch.save({"iteration": 600}, tmp_path / f"{name}.pt")
    torch.save(state, tmp_path / f"{name}_reg_model.pt")
    torch.save(averaged, tmp_path / f"{name}_ema_model.pt")
    (tmp_path / "latest_checkpoint.txt").write_text(f"{name}.pt\n")
    for path in (tmp_path, tmp_path / f"{name}.pt"):
        assert same(load_diffusion(path), averaged)
        assert same(load_diffusion(path, kind="reg"), state)
    assert load_diffusion(tmp_path, dtype=torch.bfloat16).dtype is torch.bfloat16
    (tmp_path / f"{name}_ema_model.pt").unlink()
    with pytest.raises(CheckpointError, match=r"_reg_model\.pt"):
        load_diffusion(tmp_path)


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path, state):
    gone = "net.blocks.block1.blocks.2.block.layer1.weight"
    del state[gone]
    state["net.more"] = torch.zeros(1)
    state["net.affline_norm.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as error:
        load_diffusion(tmp_path / "model.pt")
    message = str(error.value)
    assert f"1 missing: {gone}" in message
    assert "1 unexpected: net.more" in message
    assert "net.affline_norm.weight is (7,) instead of (24,)" in message
    assert "\n" not in message


def test_many_missing_keys_are_counted(tmp_path, state):
    half = {k: v for k, v in state.items() if "block1" not in k or k.endswith("layer1.weight")}
    torch.save(half, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        load_diffusion(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_truncated_files(tmp_path, state, name, share):
    path = tmp_path / name
    torch.save(state, path) if name.endswith("pt") else save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=name):
        load_diffusion(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/lidargen-evil",)


@pytest.mark.parametrize("content", [[1, 2], {"iteration": 3}, {}, {"net.x": torch.zeros(1)}, Evil()])
def test_other_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt|multi-view DiT"):
        load_diffusion(tmp_path / "model.pt")


def test_absent_files(tmp_path):
    with pytest.raises(CheckpointError, match="download"):
        find_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="download"):
        find_checkpoint(tmp_path)


def test_conversion(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    path = convert_checkpoint(tmp_path / "model.pt", tmp_path)
    assert path == tmp_path / "model.safetensors"
    assert same(load_diffusion(path), state)
    assert find_checkpoint(tmp_path) == path
    wide = convert_checkpoint(path, tmp_path / "wide.safetensors", torch.float32)
    assert load_file(wide)["net.affline_norm.weight"].dtype is torch.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "model.safetensors", "wide.safetensors"]


def test_failed_conversion_leaves_nothing(tmp_path, state):
    del state["net.affline_norm.weight"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="affline_norm"):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path, state, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    torch.save(state, tmp_path / "model.pt")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be written.*No space left"):
        convert_checkpoint(tmp_path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_weights_of_another_kind_and_devices_of_no_kind(tmp_path, state):
    torch.save({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: .*does not hold a multi-view DiT; is it"):
        load_diffusion(tmp_path / "other.pt")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="device gpu0: unknown"):
        load_diffusion(tmp_path / "model.pt", device="gpu0")


def test_a_gpu_that_is_one_too_far(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device cuda:2: there are 2 GPUs here"):
        require_memory(torch.device("cuda:2"), 1, "weights")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"no CUDA GPU.*GB.*--device cpu"):
        load_diffusion(tmp_path / "model.pt", device="cuda")
