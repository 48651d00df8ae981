# SPDX-License-Identifier: Apache-2.0
"""``student_nano data.clips=...`` at toy size learns one clip."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clips import write_clips  # noqa: E402

from training.config import load_experiment  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.loop import StudentTrainer  # noqa: E402


def test_one_clip_is_learnt(tmp_path):
    """The mean range error of its frames falls to half of that of the first steps, on the rays that returned."""
    clips = write_clips(tmp_path / "clips", spins=2)
    overrides = [
        f"data.clips={clips}", "data.val_split=train", "data.sensor=clips", "data.tile=[48, 80]", "batch=2", "samples=100",
        "model={full: 8, fine: 8, patch: 16, mid: 16, coarse: 16, head_width: 8}", "optimiser.warmup_samples=8",
        "optimiser.lr=6e-3", "data.drop_camera=0", "flow_share=0", "eval_scenes=2", "compile=false", "precision=fp32",
        "device=cpu", f"data.cache={tmp_path / 'aligned'}",
    ]  # fmt: skip
    trainer = StudentTrainer(load_experiment(StudentExperiment, "student_nano", overrides), tmp_path / "run")
    assert trainer.stream.sensor.shape == (16, 144)
    errors = []
    for _ in range(50):
        for group in trainer.optimiser.param_groups:
            group["lr"] = trainer.config.optimiser.lr * min(1.0, (trainer.samples + 2) / 8)
        errors.append(float(trainer.step()["range_log"]))
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:3])
    assert trainer.evaluate()["mae_m"] > 0
