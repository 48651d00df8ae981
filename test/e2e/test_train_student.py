# SPDX-License-Identifier: Apache-2.0
"""A student trains on rendered scenes at toy size: the loss on one fixed batch falls, and the run writes what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.sensors import load_sensor  # noqa: E402
from training.config import load_experiment  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.loop import StudentTrainer, make_stream  # noqa: E402
from training.student.pieces import load_student, write_pieces  # noqa: E402

OVERRIDES = [
    "batch=4", "data.bank=2", "data.tile=[44, 80]", "compile=false", "samples=8", "eval_scenes=4", "precision=fp32", "device=cpu",
    "model={full: 8, fine: 8, patch: 16, mid: 16, coarse: 16, head_width: 8}", "optimiser.warmup_samples=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    config = load_experiment(StudentExperiment, "student_nano", OVERRIDES)
    sensor = load_sensor("pandar128")
    small = replace(
        sensor, elevations_deg=sensor.elevations_deg[::4], azimuth_offsets_deg=np.zeros(32), columns=72
    )
    stream = make_stream(config, torch.device("cpu"), small)
    return StudentTrainer(config, tmp_path_factory.mktemp("run"), stream=stream)


def test_a_run_writes_weights_curve_and_numbers(trainer, tmp_path):
    result = trainer.run()
    assert result["samples"] >= 8
    assert 0 < result["model"]["return_accuracy"] <= 1
    assert (trainer.folder / "student.safetensors").is_file()
    json.loads((trainer.folder / "curve.json").read_text())
    write_pieces(trainer.ema.model, trainer.config.model, tmp_path)
    assert load_student(tmp_path).config == trainer.config.model


def test_one_batch_can_be_learnt(trainer):
    fixed = trainer.seeds()
    trainer.seeds = lambda: fixed
    for group in trainer.optimiser.param_groups:
        group["lr"] = 5e-3
    torch.manual_seed(0)
    losses = [float(trainer.step()["loss"]) for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])
