# SPDX-License-Identifier: Apache-2.0
"""Engines for every graph of every shipped bundle with the real TensorRT-RTX, which builds without a GPU; and what goes wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export import build_engine, engine_builder  # noqa: E402
from export.engine_store import building, publish  # noqa: E402
from lidargen_ros.bundle import MANIFEST, SHIPPED, write_manifest  # noqa: E402
from lidargen_ros.engines import trt_api  # noqa: E402
from lidargen_ros.engines.build_record import RECORD, build_folders, read_record  # noqa: E402
from lidargen_ros.errors import EngineError  # noqa: E402
from lidargen_ros.frame_pipeline import DEVICE_GRAPHS, GRAPHS  # noqa: E402

GPU = "sm_89"
REPOSITORY = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(trt_api.current_gpu() is not None, reason="a GPU is here")


@pytest.fixture
def bundle(tmp_path):
    """Shipped graphs of no weight, in a folder that may be changed; as before there were graphs beside the network's."""
    folder = shutil.copytree(SHIPPED / "constant", tmp_path / "constant")
    refresh(folder, without=DEVICE_GRAPHS)
    return folder


def built(*arguments):
    """Exit status of the command."""
    return build_engine.main([str(a) for a in arguments])


def only_folder(root):
    return next(path.parent for path in root.glob(f"*/{RECORD}"))


def replace_graph(bundle, name, nodes, initializers=(), shape=(1, 128, 1800)):
    """Another graph ``code -> range_m`` under a graph's name, with a manifest that fits."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("code", "range_m")]
    graph = helper.make_graph(nodes, name, value[:1], value[1:], list(initializers))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), bundle / f"{name}.onnx")
    refresh(bundle)


def refresh(bundle, without=()):
    manifest = json.loads((bundle / MANIFEST).read_text())
    files = [name for name in manifest.pop("files") if name.removesuffix(".onnx") not in without]
    write_manifest(bundle, {k: v for k, v in manifest.items() if k != "format"}, files)


@pytest.mark.parametrize("shipped", sorted(p.parent.name for p in SHIPPED.glob(f"*/{MANIFEST}")))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_of_every_shipped_bundle_builds(shipped, precision, tmp_path):
    assert built(shipped, "--gpu", GPU, "--precision", precision, "--out", tmp_path, "--verify") == 0
    folder = only_folder(tmp_path)
    record = read_record(folder)
    assert folder.name == record.folder == f"{GPU}-tensorrt-rtx{record.version}-{precision}"
    shipped_graphs = {path.stem for path in (SHIPPED / shipped).glob("*.onnx")}
    # The sampler needs a network that says its spread.
    assert shipped_graphs >= {*GRAPHS, *DEVICE_GRAPHS} - {"sample4"}
    assert set(record.engines) == {f"{name}.engine" for name in shipped_graphs}
    width = json.loads((SHIPPED / shipped / MANIFEST).read_text())["preprocessing"]["tile"][1]
    assert record.bindings["encoder.engine"]["atlas"] == ["input", "uint8", [-1, width, 3]]
    assert record.bindings["decoder.engine"]["range_m"] == ["output", "float32", [128, 1800]]
    assert record.bindings["pixels.engine"]["images"] == ["input", "uint8", [-1, -1, -1, -1]]
    assert record.bindings["nv12.engine"]["images"] == ["output", "uint8", [-1, -1, -1, 3]]
    assert record.bindings["points.engine"]["cloud"] == ["output", "float32", [128, 1800, 4]]
    assert {p.suffix for p in folder.iterdir()} == {".engine", ".json"}


def test_what_is_up_to_date_is_left_alone_and_what_changed_is_not(bundle, capsys):
    assert built(bundle, "--gpu", GPU) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert [folder] == build_folders(bundle, "constant", "")
    stamp = (folder / RECORD).stat().st_mtime_ns
    assert built(bundle, "--gpu", GPU, "--verify") == 0
    assert (folder / RECORD).stat().st_mtime_ns == stamp
    (folder / "decoder.engine").write_bytes(b"cut")
    assert "altered" in read_record(folder).damage(folder)
    assert built(bundle, "--gpu", GPU, "--layers") == 0
    layers = json.loads((folder / "decoder.layers.json").read_text())
    assert {"name", "type", "outputs"} == set(layers[0])
    assert read_record(folder).damage(folder) == ""
    replace_graph(bundle, "decoder", [helper.make_node("Exp", ["code"], ["range_m"])])
    assert built(bundle, "--gpu", GPU) == 0
    assert list(read_record(folder).bindings["decoder.engine"]) == ["code", "range_m"]


def test_a_record_says_why_it_does_not_fit(bundle):
    built(bundle, "--gpu", GPU)
    record = read_record(only_folder(bundle / "engines"))
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    assert record.mismatch(files, record.version, GPU) == ""
    assert "sm_86" in record.mismatch(files, record.version, "sm_86")
    assert "9.9" in record.mismatch(files, "9.9", GPU)
    assert "other graphs" in record.mismatch(files | {"encoder.onnx": "0"}, record.version, GPU)


@no_gpu
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--gpu (sm_75, sm_80"),
        (["--gpu", "sm_87"], "does not build for sm_87, only for sm_75"),
        (["--gpu", "orin"], "no compute capability"),
        (["--runtime", "tensorrt", "--gpu", "sm_87"], "JetPack"),
    ],
)
def test_gpus_and_runtimes_that_cannot_be_had(bundle, capsys, arguments, words):
    assert built(bundle, *arguments) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not build_folders(bundle, "constant", "")


@no_gpu
def test_an_engine_cannot_be_run_without_a_gpu(bundle):
    built(bundle, "--gpu", GPU)
    path = only_folder(bundle / "engines") / "decoder.engine"
    with pytest.raises(EngineError, match="finds none"):
        trt_api.load_tensorrt("tensorrt-rtx").load(path)


@no_gpu
def test_a_cut_engine_is_refused_by_the_runtime_itself(bundle, tmp_path):
    from export.engine_check import check_plan

    built(bundle, "--gpu", GPU)
    folder, api = only_folder(bundle / "engines"), trt_api.load_tensorrt("tensorrt-rtx")
    bindings = read_record(folder).bindings["decoder.engine"]
    whole = (folder / "decoder.engine").read_bytes()
    check_plan(api, folder / "decoder.engine", bindings)
    (tmp_path / "cut.engine").write_bytes(whole[:-100])
    with pytest.raises(EngineError, match="is refused by tensorrt-rtx"):
        check_plan(api, tmp_path / "cut.engine", bindings)
    with pytest.raises(EngineError, match="lacks another"):
        check_plan(api, folder / "decoder.engine", {"another": []})


def test_an_operator_that_is_not_supported_is_named(bundle, capsys):
    replace_graph(
        bundle, "decoder", [helper.make_node("Warp", ["code"], ["range_m"], "warp_7", domain="elsewhere")]
    )
    assert built(bundle, "--gpu", GPU) == 1
    assert "operator Warp (warp_7)" in capsys.readouterr().err
    assert not build_folders(bundle, "constant", "")


def test_a_truncated_graph(bundle, capsys):
    content = (bundle / "denoiser.onnx").read_bytes()
    (bundle / "denoiser.onnx").write_bytes(content[: len(content) // 2])
    refresh(bundle)
    assert built(bundle, "--gpu", GPU) == 1
    assert "denoiser.onnx cannot be read" in capsys.readouterr().err


def test_missing_external_weights(bundle, capsys):
    weight = numpy_helper.from_array(np.ones((1, 128, 1800), np.float32), "weight")
    onnx.external_data_helper.set_external_data(weight, "decoder.onnx.data", length=128 * 1800 * 4)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    nodes = [helper.make_node("Mul", ["code", "weight"], ["range_m"])]
    (bundle / "decoder.onnx.data").write_bytes(np.ones((1, 128, 1800), np.float32).tobytes())
    replace_graph(bundle, "decoder", nodes, [weight])
    assert built(bundle, "--gpu", GPU) == 0
    (bundle / "decoder.onnx.data").unlink()
    assert built(bundle, "--gpu", GPU, "--rebuild") == 1
    assert "external weights are missing" in capsys.readouterr().err
    assert built(bundle, "--gpu", GPU, "--precision", "fp16") == 1
    assert "decoder.onnx cannot be read" in capsys.readouterr().err
    assert len(build_folders(bundle, "constant", "")) == 1  # the earlier build is untouched


def test_a_full_disk_leaves_nothing_that_looks_finished(bundle, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert built(bundle, "--gpu", GPU) == 1
    assert "No space left on device; free space or give --out" in capsys.readouterr().err
    assert [p.name for p in (bundle / "engines").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize("callback", ["add_task", "update"])
def test_ctrl_c_stops_the_builder_and_changes_nothing(bundle, capsys, monkeypatch, callback):
    """Wherever it comes: native code swallows what its callbacks raise."""
    plain, pressed = getattr(engine_builder.Progress, callback), []

    def press(*arguments, **options):
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **options)

    monkeypatch.setattr(engine_builder.Progress, callback, press)
    assert built(bundle, "--gpu", GPU) == 130
    assert "stopped" in capsys.readouterr().err
    assert not build_folders(bundle, "constant", "")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_build_is_cleared_away(tmp_path):
    folder = tmp_path / "target"
    (tmp_path / ".target.part").mkdir()
    (tmp_path / ".target.part" / "half.engine").write_bytes(b"half")
    folder.mkdir()
    (folder / "old.engine").write_bytes(b"old")
    with building(folder) as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "new.engine").write_bytes(b"new")
        (temporary / RECORD).write_text("{}")
        publish(temporary, folder)
    assert sorted(p.name for p in folder.iterdir()) == [RECORD, "new.engine"]
    assert not (tmp_path / ".target.part").exists()


def test_two_builders_wait_for_each_other(bundle):
    command = [sys.executable, "export/build_engine.py", str(bundle), "--gpu", GPU]
    pair = [
        subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sum("not built yet" in text for text in said) == 1
    assert sum("is up to date" in text for text in said) == 1


def test_a_bundle_that_cannot_be_written_is_built_into_the_cache(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIDARGEN_CACHE", str(tmp_path / "cache"))
    make = Path.mkdir

    def refuse(path, *arguments, **options):
        if path == bundle / "engines":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert built(bundle, "--gpu", GPU) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "cache" / "engines")
    from lidargen_ros.bundle import load_bundle

    assert build_folders(bundle, "constant", load_bundle(bundle).digest) == [folder]


@pytest.mark.parametrize(("wrong", "status"), [((), 0), (("range_m",), 1), (("atlas",), 1), (("cloud",), 1)])
def test_verify_compares_numbers_where_the_gpu_is(tmp_path, monkeypatch, capsys, wrong, status):
    """The GPU's engine is played by ONNX Runtime, exactly but for an output that is 10 % off."""
    from export import engine_check
    from lidargen_ros.engines.onnxruntime_engine import OnnxRuntimeEngine

    bundle = shutil.copytree(SHIPPED / "constant", tmp_path / "constant")
    sizes = engine_check.free_sizes
    monkeypatch.setattr(  # the smallest pictures: full ones take seconds
        engine_check,
        "free_sizes",
        lambda b: {n: (low, low, high) for n, (low, _, high) in sizes(b).items()} | {"channels": (3, 3, 3)},
    )

    class Stand(OnnxRuntimeEngine):
        def __init__(self, engines, api, *, precision):
            assert all(path.suffix == ".engine" for path in engines.values())
            super().__init__({name: bundle / f"{name}.onnx" for name in engines})

        def read(self, names):
            found = super().read(names)
            return {name: value * (1.1 if name in wrong else 1) for name, value in found.items()}

    monkeypatch.setattr(engine_check, "current_gpu", lambda: trt_api.Gpu(GPU, "test"))
    monkeypatch.setattr(engine_check, "TensorRTEngine", Stand)
    assert built(bundle, "--gpu", GPU, "--verify") == status
    assert ("differ from ONNX Runtime by 0.1" in capsys.readouterr().err) == bool(status)
