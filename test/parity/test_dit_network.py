# SPDX-License-Identifier: Apache-2.0
"""The DiT against the published model's own numbers: key layout, all intermediates of a pass, tables."""

import json
import math

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.dit import nearest  # noqa: E402
from lidargen_ros.models.dit_config import DiTConfig  # noqa: E402
from lidargen_ros.models.dit_denoiser import DiffusionModel  # noqa: E402
from lidargen_ros.models.dit_positions import (  # noqa: E402
    additive_embedding,
    rotary_angles,
    rotary_frequencies,
)

TOLERANCE = 1e-4  # absolute; float32 rounding is about 5e-6


def close(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_published_layout_at_full_size(golden):
    expected = json.loads(golden("dit/keys_7b.json").read_text())
    with torch.device("meta"):
        model = DiffusionModel(DiTConfig())
    actual = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert actual == {k: v["shape"] for k, v in expected["entries"].items()}
    assert len(actual) == expected["n_entries"]
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters == {k for k, v in expected["entries"].items() if v["kind"] == "parameter"}
    assert sum(p.numel() for p in model.parameters()) == expected["total_parameters"]


def test_sizes_are_read_from_a_checkpoint(golden, dit_config):
    expected = json.loads(golden("dit/keys_7b.json").read_text())["entries"]
    assert DiTConfig.from_shapes({k: tuple(v["shape"]) for k, v in expected.items()}) == DiTConfig()


@torch.no_grad()
def test_forward_and_every_intermediate(dit_model, dit_vectors):
    vectors = dit_vectors("net_forward")
    net = dit_model().net
    seen = {}

    def record(name):
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    block0 = net.blocks["block0"]
    hooks = {
        "x_embedder_out": net.x_embedder,
        "timestep_sincos": net.t_embedder[0],
        "adaln_lora_B_3D": net.t_embedder[1],
        "affline_emb_B_D": net.affline_norm,
        "final_layer_out": net.final_layer,
        **{
            f"block0_{n}_branch_out": s.block for n, s in zip(("fa", "ca", "mlp"), block0.blocks, strict=True)
        },
        **{f"block0_sub{i}_out": sub for i, sub in enumerate(block0.blocks)},
        **{f"{name}_out": block for name, block in net.blocks.items()},
    }
    for name, module in hooks.items():
        module.register_forward_hook(record(name))
    attention_input = []
    block0.blocks[0].block.register_forward_pre_hook(lambda _m, inputs: attention_input.append(inputs))
    y = net(
        vectors["in.x"],
        vectors["in.timesteps"],
        vectors["in.condition_video_input_mask"],
        text=vectors["in.crossattn_emb"],
        padding_mask=vectors["in.padding_mask"],
        view_indices=vectors["in.view_indices_B_T"],
    )
    close(y, vectors["out.y"])
    tested = set()
    for name, output in seen.items():
        if f"mid.{name}" in vectors:
            close(output.reshape(vectors[f"mid.{name}"].shape), vectors[f"mid.{name}"])
            tested.add(name)
    channels = net.input_channels(
        vectors["in.x"],
        vectors["in.condition_video_input_mask"],
        vectors["in.padding_mask"],
        vectors["in.view_indices_B_T"],
    )
    close(channels, vectors["mid.net_input_channels"], 0)
    qkv = block0.blocks[0].block.queries_keys_values(*attention_input[0])
    for part, name in zip(qkv, ("q_after_norm_rope", "k_after_norm_rope", "v"), strict=True):
        close(part.transpose(0, 1), vectors[f"mid.block0_{name}"])
    batch, _, _, height, width = vectors["in.x"].shape
    _, _, additive = net.layout(height, width, torch.device("cpu"), torch.float32).tables
    grid = vectors["mid.extra_pos_emb_B_T_H_W_D"]
    close(additive.expand(batch, -1, -1).reshape(grid.shape), grid)
    rest = {k[4:] for k in vectors if k.startswith("mid.")} - tested
    assert rest == {
        "net_input_channels",
        "block0_q_after_norm_rope",
        "block0_k_after_norm_rope",
        "block0_v",
        "extra_pos_emb_B_T_H_W_D",
        "rope_angles_L_1_1_D",
    }


@torch.no_grad()
def test_default_inputs_and_zero_text(dit_model, dit_vectors):
    vectors, net = dit_vectors("net_forward"), dit_model().net
    inputs = vectors["in.x"], vectors["in.timesteps"], vectors["in.condition_video_input_mask"]
    close(net(*inputs, text=vectors["in.crossattn_emb"]), vectors["out.y_default_views_zero_padding_mask"])
    skipped = net(*inputs, text=None)
    close(skipped, vectors["out.y_default_views_zero_padding_mask_zero_text"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skipping_the_text_branch_is_bitwise_the_same_as_zero_text(dit_model, dit_vectors, dtype):
    vectors, net = dit_vectors("net_forward"), dit_model(dtype, rounded=dtype is torch.bfloat16).net
    inputs = [vectors[f"in.{k}"].to(dtype) for k in ("x", "timesteps", "condition_video_input_mask")]
    with_zeros = net(*inputs, text=torch.zeros_like(vectors["in.crossattn_emb"], dtype=dtype))
    assert torch.equal(with_zeros, net(*inputs, text=None))


@torch.no_grad()
def test_dropping_no_token_changes_nothing_and_dropped_tokens_read_zero(dit_model, dit_vectors, dit_config):
    vectors, net = dit_vectors("net_forward"), dit_model().net
    inputs = vectors["in.x"], vectors["in.timesteps"], vectors["in.condition_video_input_mask"]
    text = vectors["in.crossattn_emb"]
    views, height, width = vectors["in.x"].shape[2:]
    full = net(*inputs, text=text)
    close(net(*inputs, text=text, content=((height, width),) * views), full, 1e-5)
    lidar, camera = dit_config["latents"]["lidar"], dit_config["latents"]["rgb"]
    content = (tuple(lidar), *(tuple(camera) for _ in range(views - 1)))
    cropped = net(*inputs, text=text, content=content)
    patch = net.config.patch
    rows = patch * math.ceil(lidar[0] / patch)
    assert (cropped[:, :, 0, rows:] == 0).all()
    assert (cropped[:, :, 0, :rows] != 0).all()
    assert not torch.allclose(cropped[:, :, 0, :rows], full[:, :, 0, :rows], atol=1e-3)  # not equivalent


def test_tiny_position_tables(dit_vectors, dit_config):
    vectors = dit_vectors("pos_emb_tiny")
    network, (height, width) = dit_config["network"], dit_config["latents"]["padded"]
    rows, columns = height // network["patch_spatial"], width // network["patch_spatial"]
    model_width, heads = network["model_channels"], network["num_heads"]
    views = network["n_views"]
    for rounded, rotary, additive in (
        (False, "f32", "f32"),
        (True, "bf16_buffers", "bf16"),
    ):
        angles = rotary_angles(model_width // heads, rows, columns, rounded)
        expected = vectors[f"rope_angles_L_1_1_D.{rotary}"].flatten(1)
        repeated = angles.repeat(views, 2)
        close(repeated, expected, 0 if rounded else 1e-5)
        table = additive_embedding(model_width, rows, columns, rounded)
        expected = vectors[f"extra_sincos_1_T_H_W_D.{additive}"][0]
        close(table.expand(views, -1, -1).reshape(expected.shape), expected, 0 if rounded else 1e-6)
    spatial, temporal = vectors["rope_dim_range.spatial.f32"], vectors["rope_dim_range.temporal.f32"]
    for exponents in (spatial, temporal):
        close(rotary_frequencies(2 * len(exponents), False), 10000.0**-exponents, 1e-6)


@pytest.mark.parametrize("variant", ["f32", "bf16"])
def test_full_size_position_tables(dit_vectors, variant):
    vectors, rounded = dit_vectors("pos_emb_7b"), variant == "bf16"
    config = DiTConfig()
    rows, columns = 44, 112
    tolerance = 0 if rounded else 1e-5
    angles = rotary_angles(config.head_width, rows, columns, rounded).reshape(rows, columns, -1)
    time, row, column = angles.split([22, 21, 21], dim=-1)
    close(time[0, 0], vectors[f"rope.{variant}.angle_t"], 0)
    close(row[:, 5], vectors[f"rope.{variant}.angle_h"], tolerance)
    close(column[7], vectors[f"rope.{variant}.angle_w"], tolerance)
    for name, width in (("spatial", 42), ("temporal", 44)):
        close(
            rotary_frequencies(width, rounded),
            vectors[f"rope.{variant}.freq_{name}"],
            0 if rounded else 1e-7,
        )
    table = additive_embedding(config.width, rows, columns, rounded).reshape(rows, columns, -1)
    time, row, column = table.split([1368, 1364, 1364], dim=-1)
    tolerance = 0 if rounded else 1e-7
    close(time[0, 0], vectors[f"sincos.{variant}.t_row0"], tolerance)
    close(row[[0, 1, 2, 43], 3], vectors[f"sincos.{variant}.h_rows_0_1_2_43"], tolerance)
    close(column[2, [0, 1, 57, 111]], vectors[f"sincos.{variant}.w_rows_0_1_57_111"], tolerance)


def test_nearest_resize_takes_the_floor_of_the_scaled_index():
    image = torch.arange(5.0)[None, None, None]
    assert nearest(image, 1, 3).flatten().tolist() == [0.0, 1.0, 3.0]
