# SPDX-License-Identifier: Apache-2.0
"""``student_nano data.clips=...`` at toy size learns one clip, and with ``teacher=...`` what a teacher draws."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clips import toy_experiment, write_clips  # noqa: E402

from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.models.published import PublishedPipeline  # noqa: E402
from lidargen_ros.models.published_options import PublishedOptions  # noqa: E402
from lidargen_ros.sensors import load_sensor  # noqa: E402
from training.config import load_experiment  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.published.recipe import PublishedRecipe  # noqa: E402
from training.report import read_curve  # noqa: E402
from training.scenes.seeds import EVALUATION_SEEDS  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.recipe import StudentRecipe  # noqa: E402

CPU = torch.device("cpu")


def toy(clips, *more):
    overrides = [
        f"data.clips={clips}", "data.val_split=train", "data.sensor=clips", "data.tile=[48, 80]", "batch=2", "samples=36",
        "model={full: 8, fine: 8, patch: 16, mid: 16, coarse: 16, head_width: 8}", "optimiser.warmup_samples=8",
        "optimiser.lr=6e-3", "data.drop_camera=0", "flow_share=0", "eval_scenes=2", "compile=false", "precision=fp32",
        "device=cpu", "log_every=2", "keep=0", "tensorboard=false", *more,
    ]  # fmt: skip
    return load_experiment(StudentExperiment, "student_nano", overrides)


def learnt(recipe, folder):
    """Range errors of the first and last steps, and the last validation."""
    result = Trainer(recipe, recipe.experiment, folder, CPU).run()
    errors = [row["range_log"] for row in read_curve(folder) if "range_log" in row]
    assert len(errors) == 18
    return np.mean(errors[:2]), np.mean(errors[-4:]), result["model"]


def test_one_clip_is_learnt(tmp_path):
    """The mean range error of its frames falls to half of that of the first steps, on the rays that returned."""
    clips = write_clips(tmp_path / "clips", spins=2)
    recipe = StudentRecipe(toy(clips, f"data.cache={tmp_path / 'aligned'}"), CPU)
    assert recipe.stream.sensor.shape == (16, 144)
    assert recipe.names(0, 1)[0].startswith("clip ")
    first, last, figures = learnt(recipe, tmp_path / "run")
    assert last < 0.5 * first
    assert figures["mae_m"] > 0

    model = recipe.trained(tmp_path / "run")
    pairs = list(recipe.pairs(model, 5))
    assert len(pairs) == 2  # no more than there are frames
    true = recipe.stream(EVALUATION_SEEDS.start + torch.arange(2), exact_only=True).target.range_m.numpy()
    assert np.array_equal(np.stack([pair.true for pair in pairs]), true)
    (before,) = [pair.previous for pair in pairs if pair.previous is not None]  # the second frame of the clip
    assert any(np.array_equal(before, t) for t in true)
    assert load_sensor(tmp_path / "run" / "sensor.yaml") == recipe.sensor
    assert len(load_rig(tmp_path / "run" / "rig.yaml")) == 3


def test_a_teacher_is_imitated(tmp_path):
    """Distillation: samples of a (random, toy) published pipeline are the targets, and are learnt to half the error."""
    clips = write_clips(tmp_path / "clips", spins=1)
    published = PublishedRecipe(toy_experiment("published_tiny", clips), CPU)
    weights = published.build_model().state_dict()
    published.export(tmp_path, weights, 0)
    teacher = tmp_path / "checkpoints"
    torch.save(published.layout(weights, "ema"), teacher / "model.pt")
    more = [f"teacher={teacher}", "teacher_steps=1", f"data.cache={tmp_path / 'aligned'}"]
    recipe = StudentRecipe(toy(clips, "loss.intensity=0", *more), CPU)
    target = recipe.batch(0, 1).scenes.target.range_m[0].numpy()
    frame = published.training.frame(0)
    pipeline = PublishedPipeline.load(teacher, "cpu", replace(PublishedOptions.corrected(), steps=1))
    sampled = pipeline(frame.images, f"{frame.clip}_{frame.frame}").sweep.range_map
    assert np.array_equal(target, np.where(sampled <= recipe.sensor.max_range_m, sampled, 0))
    seeds = EVALUATION_SEEDS.start + torch.arange(1)
    measured = recipe.stream(seeds, exact_only=True).target.range_m[0].numpy()
    assert np.array_equal(measured, frame.range_map)  # validation stays with the truth
    first, last, _ = learnt(recipe, tmp_path / "run")
    assert last < 0.5 * first
    with pytest.raises(ConfigError, match=r"loss\.intensity=0"):
        StudentRecipe(toy(clips, *more), CPU)
