# SPDX-License-Identifier: Apache-2.0
"""From weights to a bundle: a student with random weights through the command, types of graphs, weights never all in memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from export import export_onnx, precision, published_bundle, student_bundle  # noqa: E402
from export.equality import compare, in_float32, random_inputs, run_chain, worst_error  # noqa: E402
from export.graphs import Graph, save, trace  # noqa: E402
from export.published import DenoiserGraph, denoiser_graph, tokenizer_graphs  # noqa: E402
from lidargen_ros.bundle import load_bundle  # noqa: E402
from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.frame_pipeline import DEVICE_GRAPHS, GRAPHS  # noqa: E402
from lidargen_ros.generator import LidarGenerator  # noqa: E402
from lidargen_ros.models.checkpoints import config_of, load_diffusion, open_weights  # noqa: E402
from lidargen_ros.models.latents import LatentStats  # noqa: E402
from lidargen_ros.models.published import LIDAR_TOKENIZER  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.tokenizer_codec import Tokenizer, build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import NO, SPACE, TokenizerConfig  # noqa: E402
from lidargen_ros.models.tokenizer_script import ScriptedNetwork  # noqa: E402
from lidargen_ros.sensors import load_sensor  # noqa: E402
from tools import random_checkpoint  # noqa: E402
from tools.random_checkpoint import TINY, write_checkpoint  # noqa: E402
from training.config import dump, load_experiment  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.pieces import write_pieces  # noqa: E402

SMALL = StudentConfig(full=4, fine=8, patch=16, mid=16, coarse=16, head_width=8)
ROWS, COLUMNS, TILE = 16, 72, (44, 80)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run of a tiny student with random weights, on a sensor of 16 x 72."""
    folder = tmp_path_factory.mktemp("run")
    whole = load_sensor("pandar128")
    small = replace(
        whole, name="small", elevations_deg=whole.elevations_deg[::8], azimuth_offsets_deg=np.zeros(ROWS), columns=COLUMNS
    )  # fmt: skip
    (folder / "sensor.yaml").write_text(json.dumps(small.to_dict()))
    config = load_experiment(StudentExperiment, "student_nano", [f"data.tile=[{TILE[0]}, {TILE[1]}]"])
    (folder / "config.yaml").write_text(dump(config))
    (folder / "result.json").write_text(json.dumps({"samples": 0, "command": "nothing"}))
    torch.manual_seed(0)
    write_pieces(Student(SMALL), SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "toy"
    assert export_onnx.main([str(run), "--out", str(out)]) == 0
    return out


def test_a_run_becomes_a_bundle_that_runs(bundle):
    loaded = load_bundle(bundle)
    assert loaded.name == "toy"
    errors = json.loads((bundle / "metrics.json").read_text())["export_error"]
    assert errors.keys() == {*GRAPHS, *DEVICE_GRAPHS} - {"sample4"}
    assert all(0 < errors["encoder"][kind] < 1e-4 for kind in ("random", "real"))
    generator = LidarGenerator.from_bundle(bundle, engine="onnxruntime-cpu", threads=1)
    picture = np.zeros((TILE[0], TILE[1], 3), np.uint8)
    assert generator([picture] * 3).range_map.shape == (ROWS, COLUMNS)


def test_graphs_say_nothing_of_the_machine_they_were_made_on(bundle):
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(path, full_check=True)
        assert b"/" + b"home" not in path.read_bytes()
        assert b".py" not in path.read_bytes()
        assert model.opset_import[0].version == 20


@pytest.mark.parametrize("wanted", ["fp32", "fp16", "bf16"])
def test_engines_are_built_of_it_in_every_precision(bundle, tmp_path, wanted):
    pytest.importorskip("tensorrt_rtx_bindings")
    from export import build_engine

    arguments = [str(bundle), "--gpu", "sm_86", "--precision", wanted, "--out", str(tmp_path), "--verify"]
    assert build_engine.main(arguments) == 0
    record = json.loads(next(tmp_path.glob("*/build.json")).read_text())
    assert record["precision"] == wanted
    assert (record["options"]["conversion_error"] is None) == (wanted == "fp32")
    assert "student.safetensors" in record["graphs"]


def test_half_precision_stays_inside(bundle):
    models = [onnx.load(bundle / f"{name}.onnx") for name in ("encoder", "denoiser", "decoder")]
    features = precision.features_between(models)
    assert {"full", "coarse"} <= features
    assert not {"code", "range_m"} & features
    halves = [precision.to_half(model, "fp16", features) for model in models]
    assert [precision.graph_precision(m) for m in halves] == ["fp16", "fp16", "fp32"]
    for model, half in zip(models, halves, strict=True):
        assert list(model.graph.input) == list(half.graph.input)
        assert list(model.graph.output) == list(half.graph.output)
    kinds = precision.element_types(halves[1])
    convolutions = [kinds[n.output[0]] for n in halves[1].graph.node if n.op_type == "Conv"]
    assert set(convolutions[:-1]) == {TensorProto.FLOAT16}
    assert convolutions[-1] == TensorProto.FLOAT  # the head that gives metres
    kinds = precision.element_types(halves[0])
    products = {kinds[n.output[0]] for n in halves[0].graph.node if n.op_type in precision.PRODUCTS}
    assert products == {TensorProto.FLOAT16}
    inputs = random_inputs(models, {"atlas_height": 3 * TILE[0]})
    error = worst_error(run_chain(halves, inputs), run_chain(models, inputs))
    assert 1e-7 < error < 1e-2
    with pytest.raises(ConfigError, match="in fp16"):
        precision.to_half(halves[1], "bf16")


def test_a_weight_too_large_for_half_precision_is_named():
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 2)) for n in ("a", "b")]
    weights = [
        numpy_helper.from_array(np.full((2, 2), s, np.float32), n) for n, s in (("big", 1e6), ("small", 1))
    ]
    nodes = [
        helper.make_node("MatMul", ["a", "big"], ["c"]),
        helper.make_node("MatMul", ["c", "small"], ["b"]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(ConfigError, match="weight big does not fit into fp16"):
        precision.to_half(model, "fp16")


def test_the_published_denoiser_is_written_weight_by_weight(tmp_path):
    """bfloat16 as published; the graph is traced without weights, and each is read when it is written."""
    stored = write_checkpoint(tmp_path / "tiny", TINY) / "model.safetensors"
    model, large = load_diffusion(stored), []
    path = tmp_path / "denoiser.onnx"
    with open_weights(stored) as weights:

        def read(name):
            value = weights.get(name.removeprefix("model."))
            if value.numel() > 1024:
                large.append(name)
            return value

        graph = denoiser_graph(config_of(weights), TINY.latents, "bf16", rounded_positions=True)
        traced = trace(graph, read)
        assert large == []
        files = save(traced, path, inline_bytes=1000, shard_bytes=20_000)
        assert len(large) == len(set(large)) > 5  # none is read twice
        assert save(traced, path, inline_bytes=1000, shard_bytes=20_000) == files  # over the old ones
    assert len(files) > 2
    assert max(f.stat().st_size for f in files if f != path) <= 20_000
    shapes_follow(path)
    written = onnx.load(path)
    assert precision.graph_precision(written) == "bf16"
    assert precision.graph_precision(in_float32(written)) == "fp32"
    assert compare(path, replace(graph, module=DenoiserGraph(model))) < 1e-2


def shapes_follow(path):
    """The shape of every value follows from inputs and weights, without reading them; the check sees one that does not."""
    bare = onnx.load(path, load_external_data=False)
    del bare.graph.value_info[:]
    copy = path.with_name("copy.onnx")
    onnx.save(bare, copy)
    onnx.shape_inference.infer_shapes_path(copy, check_type=True, strict_mode=True)
    graph = onnx.load(copy, load_external_data=False).graph
    known = {
        value.name: all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
    assert all(known[name] for node in graph.node for name in node.output if name)
    bare.graph.output[0].type.tensor_type.shape.dim[4].dim_value += 1
    onnx.save(bare, copy)
    with pytest.raises(onnx.shape_inference.InferenceError, match="differ in dimension 4"):
        onnx.checker.check_model(copy, full_check=True)


def test_a_graph_larger_than_the_disk_is_not_begun(tmp_path, monkeypatch):
    weight = torch.nn.Linear(32, 32, bias=False)
    traced = trace(Graph("linear", weight, {"a": torch.ones(1, 32)}, ("b",)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="are to be written"):
        save(traced, tmp_path / "linear.onnx", inline_bytes=1000)
    assert not list(tmp_path.iterdir())


def test_random_checkpoints_know_what_they_need(tmp_path, monkeypatch, capsys):
    out = tmp_path / "random"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=15_000_000_000))
    assert random_checkpoint.main(["--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert f"error: {out}: 15.0 GB are to be written" in message
    assert message.count("\n") == 1
    assert not out.exists()
    assert random_checkpoint.main(["--out", str(out), "--tiny"]) == 0
    before = (out / "model.safetensors").read_bytes()
    assert random_checkpoint.main(["--out", str(out), "--tiny"]) == 1
    assert "not empty; give a new folder" in capsys.readouterr().err
    again = write_checkpoint(tmp_path / "again", TINY)
    assert (again / "model.safetensors").read_bytes() == before
    monkeypatch.setattr(random_checkpoint, "random_weight", lambda *_: signal.raise_signal(signal.SIGINT))
    assert random_checkpoint.main(["--out", str(tmp_path / "stopped"), "--tiny"]) == 130
    assert not (tmp_path / "stopped").exists()


@pytest.mark.slow
def test_a_tokenizer_takes_any_number_of_pictures(tmp_path):
    config = TokenizerConfig(
        channels=8, channels_mult=(1, 1), num_res_blocks=1, num_groups=4, encoder_attention=(False, False),
        decoder_attention=(False, False), down=(SPACE, NO), up=(NO, SPACE),
    )  # fmt: skip
    torch.manual_seed(0)
    stats = LatentStats(torch.zeros(16, 1), torch.full((16, 1), 0.5))
    tokenizer = Tokenizer(build_network(config), stats).eval().requires_grad_(False)
    encoder, _ = tokenizer_graphs(tokenizer, (16, 24), "fp32")
    save(trace(encoder), tmp_path / "encoder.onnx")
    assert compare(tmp_path / "encoder.onnx", encoder) < 1e-4
    one = replace(encoder, inputs={"image": torch.rand(1, 3, 16, 24)})
    assert compare(tmp_path / "encoder.onnx", one) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_published_checkpoint_becomes_a_bundle(tmp_path, wanted):
    checkpoint, out = write_checkpoint(tmp_path / "model", TINY), tmp_path / "out"
    assert export_onnx.main([str(checkpoint), "--out", str(out), "--precision", wanted]) == 0
    loaded = load_bundle(out)
    assert loaded.manifest["family"] == "published"
    assert {"encoder.onnx", "denoiser.onnx", "decoder.onnx"} <= loaded.manifest["files"].keys()


def test_graphs_that_differ_from_torch_are_no_bundle(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(student_bundle, "export_graphs", lambda *_, **__: {"encoder": {"random": 0.5}})
    assert export_onnx.main([str(run), "--out", str(tmp_path / "out")]) == 1
    assert "differ from torch by 0.5" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("script", ["export_onnx.py", "build_engine.py"])
def test_commands_run_from_a_checkout_that_is_not_installed(script, tmp_path):
    """Without the links that an installation leaves among the packages, and from elsewhere."""
    command = [sys.executable, "-S", str(REPOSITORY / "export" / script), "--help"]
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--precision" in done.stdout


def test_ctrl_c_is_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(student_bundle, "export_graphs", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert export_onnx.main([str(run), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == f"stopped; {tmp_path / 'out'} is no whole bundle\n"


def test_a_bundle_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert export_onnx.main([str(run), "--out", str(tmp_path / "out")]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'out'}: File exists; free some space or give another --out\n"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent", "no such run or checkpoint"),
        (lambda folder: folder, "holds no tokenizer"),
        (lambda folder: (save_file({"a": torch.zeros(1)}, folder / "a.safetensors"), folder / "a.safetensors")[1], "is missing"),
        (lambda folder: (save_file({"a": torch.zeros(1)}, folder / "student-0.safetensors"), folder)[1], "no config.yaml"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_exported(make, words, tmp_path, capsys):
    assert export_onnx.main([str(make(tmp_path)), "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def without_a_weight(folder):
    stored = load_file(folder / "model.safetensors")
    del stored["net.blocks.block1.blocks.2.block.layer2.weight"]
    save_file(stored, folder / "model.safetensors")


def without_statistics(folder):
    path = folder / LIDAR_TOKENIZER / "tokenizer.safetensors"
    stored = {k: v for k, v in load_file(path).items() if not k.startswith("latent.")}
    with safe_open(path, "pt") as file:
        save_file(stored, path, file.metadata())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 40_000), "model.safetensors: damaged"),
        (without_a_weight, "1 missing: net.blocks.block1.blocks.2.block.layer2.weight"),
        (without_statistics, "lacks mean_std.pt"),
        (lambda folder: shutil.rmtree(folder / LIDAR_TOKENIZER), "no such tokenizer"),
    ],
)
def test_checkpoints_that_cannot_be_exported(spoil, words, tmp_path, capsys):
    """Said at once, not after the graph was traced; nothing is begun."""
    spoil(write_checkpoint(tmp_path / "tiny", TINY))
    assert export_onnx.main([str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--no-check"]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_cannot_be_exported(tmp_path, capsys, monkeypatch):
    source = write_checkpoint(tmp_path / "tiny", TINY) / LIDAR_TOKENIZER
    for size in ("17x24", "0x8"):
        assert export_onnx.main([str(source), "--out", str(tmp_path / "out"), "--size", size]) == 1
        message = capsys.readouterr().err
        assert f"--size {size}" in message
        assert message.count("\n") == 1
    code = ScriptedNetwork(torch.nn.Identity(), torch.nn.Identity(), TINY.lidar, torch.float32)
    monkeypatch.setattr(published_bundle, "load_tokenizer", lambda *_, **__: Tokenizer(code))
    assert export_onnx.main([str(source), "--out", str(tmp_path / "out"), "--trust"]) == 1
    assert "its layout is unknown and it cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
