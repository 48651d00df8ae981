# SPDX-License-Identifier: Apache-2.0
"""Ablations of the student: each variant differs in what it says it does, and a run writes what it measured."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from tools import ablate_student  # noqa: E402
from tools.ablations.answers import INVERSE_NEAR_M, InverseCode, LogCode  # noqa: E402
from tools.ablations.laboratory import MARGIN, affordable  # noqa: E402
from tools.ablations.loop import CHECKS, Plan, Schedule, Trained, experiment_of, train  # noqa: E402
from tools.ablations.scenes import EXTRA_ROWS, TINY, Frames, make_bank, reaching_higher  # noqa: E402
from tools.ablations.variants import (  # noqa: E402
    QUESTIONS,
    VARIANTS,
    HigherStudent,
    Variant,
    build,
    pad_with_zeros,
)
from training.student.objective import Counts, LossWeights, Target  # noqa: E402

SMALL = StudentConfig(hypotheses=1, full=8, fine=8, patch=16, mid=16, coarse=16, head_width=8, spread=True)
LIMITS = (0.5, 120.0)
TOY = ["--tiny", "--device", "cpu", "--scenes", "4", "--samples", "8"]


def target() -> Target:
    range_m = torch.linspace(2.5, 118, 2 * 4 * 9).reshape(2, 4, 9)
    range_m[0, 0, 0] = 0
    return Target(range_m, torch.full_like(range_m, 0.25))


def asked(answer, code):
    true, regression = target(), torch.tensor([True, False])
    counts = Counts.of(true, regression, lambda values: values)
    logit, clean = torch.where(true.returned, 9.0, -9.0), answer.clean(true)
    estimate = Student(SMALL).estimate(torch.zeros(2, 4, 16, 36), torch.zeros(2, 8, 16, 36))
    estimate = estimate._replace(
        code=code, logit=logit, intensity=true.intensity, spread=torch.full_like(code, 0.1)
    )
    return answer.terms(estimate, clean, true, regression, counts)


def test_an_inverse_code_tells_the_same_ranges():
    weights = LossWeights()
    for answer in (LogCode((4, 9), LIMITS, weights), InverseCode((4, 9), LIMITS, weights)):
        clean = answer.clean(target())
        returned = target().returned
        assert torch.allclose(answer.metres(clean[:, 0])[returned], target().range_m[returned], rtol=1e-4)
        perfect = asked(answer, clean[:, 0])
        assert perfect["range_log"] < 1e-5
        assert perfect["flow"] < 1e-3
        assert asked(answer, clean[:, 0] + 0.1)["loss"] > perfect["loss"] + 0.01
    code = torch.tensor([-1.3], requires_grad=True)  # farther than the far limit
    answer.log_code(code).sum().backward()
    assert code.grad.item() < 0
    near = (math.log(INVERSE_NEAR_M / LIMITS[0])) * 2 / math.log(LIMITS[1] / LIMITS[0]) - 1
    assert answer.log_code(torch.tensor([1.0])).item() == pytest.approx(near, abs=1e-5)


def test_zero_padding_makes_a_seam():
    torch.manual_seed(0)
    student = Student(SMALL).eval()
    pixels, rays = torch.randn(1, 4, 16, 144), torch.randn(1, 8, 16, 144)

    def seam() -> float:
        with torch.no_grad():
            plain = student.estimate(pixels, rays).code.roll(36, -1)
            return float((plain - student.estimate(pixels.roll(36, -1), rays.roll(36, -1)).code).abs().max())

    assert seam() < 1e-5
    pad_with_zeros(student)
    assert seam() > 1e-3


def test_rows_above_the_top_beam_are_seen_but_not_answered():
    torch.manual_seed(0)
    student = HigherStudent(SMALL).eval()
    pixels, rays = torch.randn(1, 4, 16 + EXTRA_ROWS, 36), torch.randn(1, 8, 16 + EXTRA_ROWS, 36)
    x, t = torch.zeros(1, 2, 16, 36), torch.ones(1)
    with torch.no_grad():
        one = student(pixels, rays, x, t).code
        assert one.shape == (1, 16, 36)
        pixels[:, :, :EXTRA_ROWS] = 0
        other = student(pixels, rays, x, t).code
        assert not torch.allclose(one, other)
    sensor = TINY.sensor()
    higher = reaching_higher(sensor)
    assert np.array_equal(higher.directions()[EXTRA_ROWS:], sensor.directions())


def test_attention_reads_the_pictures_through_the_calibration():
    bank = make_bank(replace(TINY, rigs=2), torch.device("cpu"))
    eyes = build(Variant("a", "", depths=()), TINY.student, bank, (2, *TINY.sensor().shape)).eyes.eval()
    pictures = torch.randint(0, 255, (1, 3 * 44, 80, 3), dtype=torch.uint8)
    with torch.no_grad():
        pixels, rays = eyes(Frames(pictures, torch.tensor([0])))
        assert pixels.shape[1:] == (4 * TINY.student.hypotheses, *rays.shape[2:])
        assert not torch.allclose(pixels, eyes(Frames(pictures.flip(2), torch.tensor([0])))[0])
        assert not torch.allclose(pixels, eyes(Frames(pictures, torch.tensor([1])))[0])


def test_variants_of_one_seed_get_the_same_batches():
    device = torch.device("cpu")

    def plan(share, seed=0):
        return Plan.of(experiment_of("a", 64, 8, seed), share, 24, device)

    shipped, regression, flow = plan(0.25), plan(0.0), plan(1.0)
    assert torch.equal(shipped.index, regression.index)
    assert not torch.equal(shipped.index, plan(0.25, seed=1).index)
    assert sorted(shipped.index.flatten()[:24].tolist()) == list(range(24))
    assert shipped.regression.float().mean() == 0.75
    assert regression.regression.all()
    assert (regression.level == 1).all()
    assert not flow.regression.any()
    drawn = ~shipped.regression
    assert torch.equal(shipped.level[drawn], flow.level[drawn])
    batch = shipped.blank((2, 4, 9))
    shipped.fill(batch, 3, torch.Generator().manual_seed(0))
    assert torch.equal(batch.index, shipped.index[3])
    assert torch.equal(batch.noise.flatten(1).any(1), drawn[3])


def test_questions_name_variants():
    names = [v.name for v in VARIANTS]
    assert len(set(names)) == len(names)
    assert {name for q in QUESTIONS for name in q.variants} == set(names)


def test_a_run_from_scenes_to_tables(tmp_path):
    names = ["reference", "attention", "latent", "higher"]
    ablate_student.main([*TOY, "--out", str(tmp_path), "--variants", *names])
    result = json.loads((tmp_path / "ablations.json").read_text())
    assert set(result["variants"]) == set(names)
    assert result["left_out"] == {}
    for found in result["variants"].values():
        assert found["samples"] == 8
        assert found["curve"]["samples"][-1] == 8
        assert {"loss", "abs_rel_seen", "mae_m_unseen", "mae_m_seam", "return_auroc"} <= set(found["figures"])
        assert all(math.isfinite(v) for v in found["figures"].values())
        assert found["held_out_while_training"]["samples"][-1] == 8
    assert result["variants"]["latent"]["tokenizer"]["figures"]["mae_m"] > 0
    assert "drawn_mae_m" in result["variants"]["reference"]["figures"]
    text = (tmp_path / "ablations.md").read_text()
    assert text.count("as shipped |") == 3
    assert "the tokenizer alone" in text
    assert (tmp_path / "ablations.png").stat().st_size > 1000


def linear(deadline: float) -> Trained:
    """A line through the origin, trained by the loop of the variants."""
    model, device, experiment = torch.nn.Linear(1, 1), torch.device("cpu"), experiment_of("line", 640, 8, 0)
    torch.nn.init.zeros_(model.weight)

    def terms(asked):
        return {"loss": (model(asked.level[:, None]) - 2 * asked.level[:, None]).square().mean()}

    return train(
        model, terms, Plan.of(experiment, 1.0, 24, device), (1, 1, 1), Schedule(experiment, device), deadline=deadline,
        graphs=False, check=lambda: {"weight": float(model.weight), "training": float(model.training)},
    )  # fmt: skip


def test_the_loop_learns_and_looks_at_averaged_weights():
    trained = linear(math.inf)
    weights = trained.checks["weight"]
    assert 0 < weights[0] < weights[-1] < 2  # on its way to the line's slope
    assert trained.checks["samples"] == [80.0 * k for k in range(1, CHECKS + 1)]
    assert trained.checks["training"] == [0.0] * CHECKS
    assert len(set(trained.checks["weight"])) == CHECKS


def test_samples_are_as_many_as_fit():
    assert affordable(seconds=MARGIN * 120, runs=12, fixed=4, per_sample=1e-3) == pytest.approx(6000, abs=1)
    assert affordable(seconds=30, runs=12, fixed=4, per_sample=1e-3) == 0


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path, monkeypatch):
    class Late:
        graphs, training = False, SimpleNamespace(sensor=TINY.sensor())

        def __init__(self, setup, *_, deadline: float, **__):
            self.samples, self.deadline = setup.samples, deadline

        def constant_map(self):
            return {}

        def run(self, variant):
            linear(self.deadline)

    monkeypatch.setattr(ablate_student, "Laboratory", Late)
    ablate_student.main([*TOY, "--seconds", "0", "--out", str(tmp_path), "--variants", "reference", "higher"])
    result = json.loads((tmp_path / "ablations.json").read_text())
    assert result["variants"] == {}
    assert list(result["left_out"]) == ["reference", "higher"]
    assert "Left out" in (tmp_path / "ablations.md").read_text()
