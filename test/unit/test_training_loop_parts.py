# SPDX-License-Identifier: Apache-2.0
"""Parts of the loop that need no process of their own."""

import json
import signal
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from toy_recipe import ToyExperiment, ToyRecipe  # noqa: E402
from toy_run import PROCESSES, exit_code_of_ros, finish, preloaded, train  # noqa: E402

from lidargen_ros.errors import ConfigError  # noqa: E402
from training.draws import normal, sample_seed  # noqa: E402
from training.loop import ranks  # noqa: E402
from training.loop.averages import Averages  # noqa: E402
from training.loop.trainer import Stopped, Trainer, signals  # noqa: E402
from training.train import RESUMABLE, main, write_config  # noqa: E402


def test_noise_belongs_to_the_sample():
    whole = normal(3, range(5, 9), (2, 3), "cpu")
    assert torch.equal(whole, torch.cat([normal(3, [5, 6], (2, 3), "cpu"), normal(3, [7, 8], (2, 3), "cpu")]))
    seeds = {sample_seed(seed, n, purpose) for seed in range(4) for n in range(50) for purpose in range(3)}
    assert len(seeds) == 600
    assert abs(float(normal(0, range(4000), (4,), "cpu").mean())) < 0.03


def test_averages_follow_weights_and_statistics_and_can_be_put_in_place():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averages = Averages(model)
    before = {name: value.clone() for name, value in averages.by_name.items()}
    assert set(before) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    averages.update(model, 0.75)
    for name, value in averages.by_name.items():
        torch.testing.assert_close(value, before[name] + 0.25)
    now = {name: value.clone() for name, value in model.state_dict().items()}
    with averages.swapped(model):
        for name, value in before.items():
            torch.testing.assert_close(model.state_dict()[name], value + 0.25)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in now.items())


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, tensorboard=True, samples=20)
    log = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert [e.step for e in log.Scalars("loss")] == [4, 8, 12, 16, 20]
    assert [e.step for e in log.Scalars("eval/error")] == [20]
    assert [e.step for e in log.Images("toy")][-1] == 20


def test_without_tensorboard_a_run_says_so_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tmp_path, tensorboard=True, samples=4)
    assert [r.message for r in caplog.records if "TensorBoard" in r.message] == [
        "no TensorBoard log: tensorboard is not installed; pip install tensorboard"
    ]


def test_wandb_that_is_asked_for_and_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        train(tmp_path, wandb=True, samples=4)


@pytest.mark.parametrize(("batch", "count"), [(4, 3), (0, 1)])
def test_a_batch_that_ranks_cannot_share(batch, count, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    experiment = ToyExperiment(batch=batch)
    with pytest.raises(ConfigError, match=f"batch {batch} cannot be split over {count} ranks"):
        Trainer(ToyRecipe(experiment, torch.device("cpu")), experiment, tmp_path, torch.device("cpu"))


def test_a_clock_ends_the_schedule(tmp_path):
    result = train(tmp_path, samples=10**9, max_seconds=0.0, eval_every=0, pictures_every=0, keep=0)
    assert 4 <= result["samples"] < 10**6
    assert not list((tmp_path / "checkpoints").iterdir())
    last = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()][-2]
    assert last["lr"] < 1e-2  # the schedule follows the clock


def test_a_stopped_run_has_an_exit_code_of_its_own(monkeypatch, capsys):
    def stopped(experiment, folder):
        raise Stopped("SIGTERM stopped the run")

    monkeypatch.setattr("training.train.train", stopped)
    assert main(["student_nano", "--folder", "unused"]) == RESUMABLE == 75
    assert capsys.readouterr().err == "SIGTERM stopped the run\n"


def test_a_run_that_goes_on_otherwise_says_so(tmp_path, caplog):
    write_config(ToyExperiment(), tmp_path)
    write_config(ToyExperiment(), tmp_path)
    assert not caplog.records
    write_config(ToyExperiment(batch=8), tmp_path)
    assert "['batch: 4'] -> ['batch: 8']" in caplog.text
    assert "batch: 8" in (tmp_path / "config.yaml").read_text()


def test_the_second_interrupt_is_obeyed_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_does_not_import_ros():
    """rclpy's wheels start the interpreter anew when imported, which a process of torchrun would not survive."""
    process = PROCESSES.Process(target=exit_code_of_ros)
    with preloaded():
        process.start()
    assert finish([process]) == [0]
