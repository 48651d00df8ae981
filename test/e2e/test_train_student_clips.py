# SPDX-License-Identifier: Apache-2.0
"""``student_nano data.clips=...`` at toy size learns one clip."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clips import write_clips  # noqa: E402

from training.config import load_experiment  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.report import read_curve  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.recipe import StudentRecipe  # noqa: E402


def test_one_clip_is_learnt(tmp_path):
    """The mean range error of its frames falls to half of that of the first steps, on the rays that returned."""
    clips = write_clips(tmp_path / "clips", spins=2)
    overrides = [
        f"data.clips={clips}", "data.val_split=train", "data.sensor=clips", "data.tile=[48, 80]", "batch=2", "samples=100",
        "model={full: 8, fine: 8, patch: 16, mid: 16, coarse: 16, head_width: 8}", "optimiser.warmup_samples=8",
        "optimiser.lr=6e-3", "data.drop_camera=0", "flow_share=0", "eval_scenes=2", "compile=false", "precision=fp32",
        "device=cpu", "log_every=2", "keep=0", "tensorboard=false", f"data.cache={tmp_path / 'aligned'}",
    ]  # fmt: skip
    experiment = load_experiment(StudentExperiment, "student_nano", overrides)
    cpu = torch.device("cpu")
    recipe = StudentRecipe(experiment, cpu)
    assert recipe.stream.sensor.shape == (16, 144)
    assert recipe.names(0, 1)[0].startswith("clip ")
    result = Trainer(recipe, experiment, tmp_path / "run", cpu).run()
    errors = [row["range_log"] for row in read_curve(tmp_path / "run") if "range_log" in row]
    assert len(errors) == 50
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:3])
    assert result["model"]["mae_m"] > 0
