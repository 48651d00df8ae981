# SPDX-License-Identifier: Apache-2.0
"""Sweeps of a run on disk and back: what recipes hand over is what ``lidargen evaluate`` compares."""

import json

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
from lidargen_ros import evaluate as command  # noqa: E402
from lidargen_ros.evaluate import evaluate  # noqa: E402
from lidargen_ros.evaluate_sources import pairs_from_folder, true_maps_from_folder  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402
from training.evaluate import main, write_sweeps  # noqa: E402
from training.kinds import KINDS, experiment_class, recipe_class  # noqa: E402
from training.pairs import Pair, figures  # noqa: E402

SENSOR = Sensor("toy", np.linspace(5, -15, 8), 36)


class Answers:
    """A recipe whose model is a metre off and whose tokenizer ten centimetres; the second frame follows on the first."""

    sensor = SENSOR

    def __init__(self, frames=3):
        rng = np.random.default_rng(0)
        self.true = [(rng.uniform(6, 60, SENSOR.shape)).astype(np.float32) for _ in range(frames)]

    def trained(self, run):
        return torch.nn.Identity()

    def pairs(self, model, limit):
        for k, true in enumerate(self.true[:limit]):
            seen = np.zeros(SENSOR.shape, bool)
            seen[:, :20] = True
            yield Pair(
                f"frame_{k}", true + 1, true, np.ones_like(true), true + np.float32(0.1),
                previous=self.true[0] if k == 1 else None, seen=seen,
            )  # fmt: skip

    def training_maps(self, limit):
        yield from self.true[:limit]


def test_sweeps_are_written_and_compared(tmp_path):
    folder = write_sweeps(Answers(), tmp_path, frames=3, training_frames=2)
    found = pairs_from_folder(folder, SENSOR, SENSOR)
    assert [p is None for p in found.previous] == [True, False, True]  # not: the file before
    report = evaluate(found, true_maps_from_folder(folder / "training"))
    assert report["mae_m"] == pytest.approx(1, abs=1e-4)
    assert report["ladder"]["tokenizer floor"]["mae_m"] == pytest.approx(0.1, abs=1e-4)
    assert report["ladder"]["previous sweep"]["frames"] == 1
    assert report["ladder"]["nearest training sweep"]["frames"] == 3
    assert report["seen"]["rays"] < report["rays"]
    # once more: the old ones are gone, nothing is left over
    write_sweeps(Answers(1), tmp_path, frames=3, training_frames=2)
    assert len(list(folder.glob("*.npz"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation"]


def test_the_command_line_knows_runs(tmp_path):
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("kind: student\n")
    first = CliRunner().invoke(app, ["evaluate", str(run)])
    assert first.exit_code == 1
    assert f"python -m training.evaluate {run}" in first.output.replace("\n", " ")
    write_sweeps(Answers(), run, frames=3, training_frames=2)
    out = tmp_path / "report.json"
    second = CliRunner().invoke(app, ["evaluate", str(run), "--out", str(out)], env={"COLUMNS": "120"})
    assert second.exit_code == 0, second.output
    for rung in ("best constant map", "nearest training sweep", "previous sweep", "tokenizer floor", "run"):
        assert rung in second.output
    assert json.loads(out.read_text())["mae_m"] == pytest.approx(1, abs=1e-4)


def test_figures_for_the_curve():
    found = figures(list(Answers().pairs(None, 3)), SENSOR)
    assert found["mae_m"] == pytest.approx(1, abs=1e-4)
    assert found["floor_mae_m"] == pytest.approx(0.1, abs=1e-4)
    nothing = Pair("", np.zeros(SENSOR.shape, np.float32), np.full(SENSOR.shape, 9, np.float32))
    assert set(figures([nothing], SENSOR)) == {"rays_share", "return_accuracy"}


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "holds no config.yaml"), ({"kind": "studnet"}, "did you mean 'student'")],
)
def test_what_is_no_run(tmp_path, capsys, config, message):
    if config:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_every_kind_has_settings_and_a_recipe_that_can_be_evaluated():
    for kind in KINDS:
        assert experiment_class(kind, "").__dataclass_fields__["kind"]
        recipe = recipe_class(kind)
        assert all(
            hasattr(recipe, name) for name in ("trained", "pairs", "training_maps", "ladder", "export")
        )
