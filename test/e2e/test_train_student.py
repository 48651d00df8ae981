# SPDX-License-Identifier: Apache-2.0
"""A student trains on rendered scenes at toy size: the loss on one fixed batch falls, and the run writes what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.sensors import load_sensor  # noqa: E402
from training.config import load_experiment  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.recipe import Position  # noqa: E402
from training.student.config import StudentExperiment  # noqa: E402
from training.student.pieces import load_student, write_pieces  # noqa: E402
from training.student.recipe import StudentRecipe, make_stream  # noqa: E402

OVERRIDES = [
    "batch=4", "data.bank=2", "data.tile=[44, 80]", "compile=false", "samples=8", "eval_scenes=4", "precision=tf32", "device=cpu",
    "tensorboard=true", "log_every=4",
    "model={full: 8, fine: 8, patch: 16, mid: 16, coarse: 16, head_width: 8, previous: true, spread: true}",
    "optimiser.warmup_samples=4", "previous_share=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    config = load_experiment(StudentExperiment, "student_nano", OVERRIDES)
    sensor = load_sensor("pandar128")
    small = replace(
        sensor, elevations_deg=sensor.elevations_deg[::4], azimuth_offsets_deg=np.zeros(32), columns=72
    )
    cpu = torch.device("cpu")
    recipe = StudentRecipe(config, cpu, make_stream(config, cpu, small))
    recipe.baseline_scenes = 4
    return Trainer(recipe, config, tmp_path_factory.mktemp("run"), cpu)


def test_a_run_writes_weights_curve_and_numbers(trainer, tmp_path):
    result = trainer.run()
    assert result["samples"] == 8
    assert 0 < result["model"]["return_accuracy"] <= 1
    assert 0 < result["ladder"]["constant_map"]["return_accuracy"] <= 1
    assert (trainer.folder / "student.safetensors").is_file()
    assert len(list((trainer.folder / "pictures").glob("000000008_*.jpg"))) == 2
    assert list((trainer.folder / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (trainer.folder / "curve.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows] == [4, 8, 8]
    with trainer.averaged() as student:
        write_pieces(student, trainer.experiment.model, tmp_path)
    assert load_student(tmp_path).config == trainer.experiment.model


def test_a_sample_is_the_same_in_any_batch(trainer):
    """Exact on the scenes of the CPU: scene, rig, missing camera, noise and its level depend on the sample's number alone."""
    recipe = trainer.recipe
    whole, first, second = recipe.batch(20, 4), recipe.batch(20, 2), recipe.batch(22, 2)
    for name in ("clean", "noisy", "level", "regression"):
        parts = torch.cat([getattr(first, name), getattr(second, name)])
        torch.testing.assert_close(getattr(whole, name), parts, rtol=1e-5, atol=1e-5)
    pixels = torch.cat([first.scenes.pixels, second.scenes.pixels])
    torch.testing.assert_close(whole.scenes.pixels, pixels, rtol=1e-5, atol=1e-5)
    assert int((~whole.regression).sum()) == 1


def test_every_other_batch_knows_its_own_sweep_before(trainer):
    recipe = trainer.recipe
    alone, knowing = recipe.batch(40, 4), recipe.batch(44, 4)
    assert alone.scenes.before is None
    assert knowing.scenes.before.pixels.shape == knowing.scenes.pixels.shape
    assert not torch.equal(knowing.scenes.before.pixels, knowing.scenes.pixels)
    with trainer.averaged() as student:
        recipe.losses(student, alone)
        recipe.losses(student, knowing)
    assert not alone.previous.any()
    known = (knowing.previous != 0).any(1).float()
    assert known.mean() > 0.5  # the vehicle has moved: not every ray has something on it


def test_the_learning_rate_ends_at_its_share(trainer):
    recipe, optimiser = trainer.recipe, trainer.experiment.optimiser
    assert recipe.learning_rate(Position(9, 4000, 0.0)) == pytest.approx(optimiser.lr)
    assert recipe.learning_rate(Position(9, 4000, 1.0)) == pytest.approx(0.0, abs=1e-12)
    recipe.experiment = replace(trainer.experiment, optimiser=replace(optimiser, end_share=0.5))
    assert recipe.learning_rate(Position(9, 4000, 1.0)) == pytest.approx(0.5 * optimiser.lr)
    recipe.experiment = trainer.experiment


def test_scenes_are_used_again_with_other_noise(trainer):
    recipe, cpu = trainer.recipe, torch.device("cpu")
    config = replace(trainer.experiment, scene_uses=3, scenes_kept=2)
    made = []

    def stream(seeds, **options):
        made.append(int(seeds[0]))
        return recipe.stream(seeds, **options)

    stream.sensor, stream.name = recipe.stream.sensor, recipe.stream.name
    again = StudentRecipe(config, cpu, stream)
    batches = [again.batch(4 * step, 4) for step in range(9)]
    first = config.data.first_seed
    assert made == [first, first + 4, first + 8], "a third of the steps make scenes"
    assert batches[1].scenes is batches[0].scenes
    assert not torch.equal(batches[1].regression, batches[0].regression)
    assert again.names(8, 2) == [f"scene {first}", f"scene {first + 1}"]
    resumed = StudentRecipe(config, cpu, stream).batch(4 * 7, 4)
    assert torch.equal(resumed.noisy, batches[7].noisy), "the same after a stop"
    with pytest.raises(ConfigError, match="scene_uses is 0"):
        StudentRecipe(replace(config, scene_uses=0), cpu, stream)


def test_one_batch_can_be_learnt(trainer):
    batch = trainer.recipe.batch(40, 4)
    trainer.recipe.learning_rate = lambda at: 5e-3
    trainer.unread.clear()
    for step in range(12):
        trainer.one_step(batch, Position(step, 40, 0.0))
    losses = [float(terms["loss"]) for _, terms in trainer.unread]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])
