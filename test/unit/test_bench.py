# SPDX-License-Identifier: Apache-2.0
"""lidargen bench: what it writes and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lidargen_ros.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_table_and_a_json(tmp_path):
    out = tmp_path / "bench.json"
    done = run(
        "constant", "--engine", "onnxruntime-cpu", "--engine", "torch", "--frames", 3, "--threads", 1,
        "--size", "64x36", "--json", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "onnxruntime-cpu" in done.output
    results = json.loads(out.read_text())
    assert results["frames"] == 3
    assert results["bundle"]["name"] == "constant"
    assert "onnxruntime" in results["environment"]["versions"]
    ran = results["engines"]["onnxruntime-cpu"]
    assert set(ran["stages_ms"]) == {"send", "encoder", "denoiser", "decoder", "read", "cloud"}
    quantiles = ran["frame_ms"]
    assert 0 < quantiles["p50"] <= quantiles["p95"] <= quantiles["p99"] <= quantiles["max"]
    # The bundle has no weights for torch: said in the JSON, and no reason to fail.
    assert "student.safetensors" in results["engines"]["torch"]["failed"]


def test_nothing_could_be_timed():
    done = run("constant", "--engine", "warp-drive", "--frames", 1)
    assert done.exit_code != 0
    assert "no engine could be timed" in str(done.exception)


def test_a_file_that_cannot_be_written(tmp_path):
    for out in (tmp_path, tmp_path / "absent" / "bench.json"):
        assert str(run("constant", "--json", out).exception).startswith(
            f"--json {out} is no file in a folder"
        )


def test_a_size_that_is_none():
    assert "WIDTHxHEIGHT" in str(run("constant", "--size", "big").exception)


@pytest.mark.slow
def test_the_tool_for_gpus_at_toy_size(tmp_path):
    pytest.importorskip("torch")
    tool = Path(__file__).resolve().parents[2] / "tools" / "bench_student.py"
    command = [sys.executable, tool, "--out", tmp_path, "--device", "cpu", "--tiny", "--frames", "3"]
    subprocess.run([*command, "--engines", "torch,onnxruntime-cuda"], check=True, capture_output=True)
    engines = json.loads((tmp_path / "bench_student.json").read_text())["models"]["tiny"]["engines"]
    assert set(engines["torch"]["stages_ms"]) > {
        "write",
        "pixels",
        "encoder",
        "denoiser",
        "decoder",
        "points",
    }
    assert engines["torch"]["frame_ms"]["p99"] > 0
    assert set(engines["torch"]["raw_ms"]) == {"bgr8", "bayer_rggb8", "uyvy", "nv12"}
    assert (
        "onnxruntime" in engines["onnxruntime-cuda"]["failed"]
    )  # not here, or not built: a line with its reason
    assert "| torch |" in (tmp_path / "bench_student.md").read_text()
