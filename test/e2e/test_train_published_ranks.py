# SPDX-License-Identifier: Apache-2.0
"""The published denoiser at toy size, as users start it: alone, and under ``torchrun`` on two processes that shard it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from toy_clips import PUBLISHED, write_clips  # noqa: E402

from lidargen_ros.models.checkpoints import load_diffusion  # noqa: E402
from training.train import main  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "published_tiny", *PUBLISHED, "batch=4", "samples=24", "log_every=4", "save_every=12", "eval_every=0", "pictures_every=0",
    "validation.frames=1", "tensorboard=false", "precision=fp32", "device=cpu",
]  # fmt: skip


def curve(folder):
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [[row["samples"], row["loss"], row["grad_norm"]] for row in rows if "loss" in row]


def test_the_training_benchmark_runs(tmp_path, monkeypatch, capsys):
    small = [*PUBLISHED[:2], "sizes.camera_latent=[8,12]", "batch=2", "device=cpu", "precision=fp32"]
    out = tmp_path / "bench"
    monkeypatch.setattr(sys, "argv", ["bench_training.py", "--steps", "2", "--out", str(out), *small])
    runpy.run_path(str(ROOT / "tools" / "bench_training.py"), run_name="__main__")
    result = json.loads((out / "result.json").read_text())
    assert len(result["losses"]) == 2
    assert result["tflop_per_s_per_gpu"] > 0


def test_two_processes_that_shard_draw_the_curve_of_one(tmp_path):
    clips = write_clips(tmp_path / "clips", spins=2)
    settings = [*RUN, f"data.clips={clips}", f"data.cache={tmp_path / 'cache'}"]
    assert main([*settings, "--folder", str(tmp_path / "one")]) == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "training.train",
    ]
    subprocess.run(
        [*torchrun, *settings, "parallel=fsdp", "checkpoint_activations=true", "--folder", str(tmp_path / "two")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=250,
    )  # fmt: skip
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for kind in ("reg", "ema"):
        a, b = (
            load_diffusion(tmp_path / run / "checkpoints", kind=kind).state_dict() for run in ("one", "two")
        )
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-2 if kind == "reg" else 1e-4, atol=1e-5)
