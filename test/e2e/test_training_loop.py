# SPDX-License-Identifier: Apache-2.0
"""The loop with real processes: killed, stopped, resumed and spread over ranks, a run is the run it would have been."""

import json
import random
import signal
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from toy_run import finish, start, train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
NUMBERS = ("loss", "worst", "grad_norm", "lr", "eval/error")


def curve(folder):
    """Samples and numbers of every row; times are left out, no two runs share them."""
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [[row["samples"], *(row.get(name, 0.0) for name in NUMBERS)] for row in rows]


def weights(folder, kind):
    return torch.load(folder / "checkpoints" / f"iter_000000010_{kind}_model.pt", weights_only=True)


def moments(folder):
    """The state of the optimiser, as it lies in the checkpoint."""
    reader = dcp.FileSystemReader(folder / "checkpoints" / "iter_000000010_state")
    sizes = reader.read_metadata().state_dict_metadata
    state = {
        key: torch.zeros(entry.size, dtype=entry.properties.dtype)
        for key, entry in sizes.items()
        if key.startswith("optimiser.state") and hasattr(entry, "properties")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def check_same(one, other):
    assert curve(one) == curve(other)
    for a, b in [(weights(one, k), weights(other, k)) for k in ("reg", "ema")] + [
        (moments(one), moments(other))
    ]:
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder)) == [0]
    return folder


def test_a_run_leaves_what_it_promises(whole):
    assert {p.name for p in whole.iterdir()} == {
        "checkpoints", "curve.jsonl", "curves.png", "pictures", "report.md", "result.json", "toy.safetensors",
    }  # fmt: skip
    kept = [
        f"iter_0000000{n:02d}{part}"
        for n in (6, 8, 10)
        for part in (".pt", "_ema_model.pt", "_reg_model.pt", "_state")
    ]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == sorted(
        [*kept, "latest_checkpoint.txt"]
    )
    assert (whole / "checkpoints" / "latest_checkpoint.txt").read_text() == "iter_000000010.pt\n"
    assert weights(whole, "reg")["first.weight"].dtype is torch.bfloat16
    result = json.loads((whole / "result.json").read_text())
    assert result["model"]["error"] < 0.7 * result["ladder"]["zero"]["error"]


def test_killed_at_any_touch_of_the_disk_and_resumed(whole, tmp_path):
    """Each start is killed at a random moment after the last save, which often is the middle of the next one."""
    chance, kills = random.Random(0), 0
    while (codes := finish(start(tmp_path, kill_at=chance.randrange(10, 40)))) != [0]:
        assert codes == [-signal.SIGKILL]
        kills += 1
        assert kills < 30
    assert kills >= 4
    check_same(whole, tmp_path)


@pytest.mark.slow
def test_killed_at_every_single_touch_of_the_disk(whole, tmp_path):
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed = finish(start(folder, kill_at=number))
        assert finish(start(folder)) == [0]
        check_same(whole, folder)
        if killed == [0]:
            assert number > 50
            return


def test_killed_by_the_clock(whole, tmp_path):
    """From outside, at random times, while writing is slow."""
    chance = random.Random(1)
    for _ in range(3):
        (process,) = start(tmp_path, slow=0.01)
        process.join(chance.uniform(0.2, 0.9))
        process.kill()
        finish([process])
    assert finish(start(tmp_path)) == [0]
    check_same(whole, tmp_path)


def test_sigterm_saves_and_says_how_to_go_on(whole, tmp_path):
    (process,) = start(tmp_path, slow=0.01)
    while not (tmp_path / "checkpoints" / "latest_checkpoint.txt").exists():
        time.sleep(0.01)
    process.terminate()
    assert finish([process]) == [3]
    message = (tmp_path / "error.txt").read_text()
    assert "SIGTERM" in message
    assert f"--folder {tmp_path}" in message
    stopped_at = int(message.split(" samples")[0].split()[-1])
    mark = torch.load(
        tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "latest_checkpoint.txt").read_text().strip()
    )
    assert mark["samples"] == stopped_at < 40
    assert finish(start(tmp_path)) == [0]
    check_same(whole, tmp_path)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_draw_the_curve_of_one(whole, tmp_path, parallel):
    assert finish(start(tmp_path, count=2, parallel=parallel, checkpoint_activations=parallel == "fsdp")) == [
        0,
        0,
    ]
    np.testing.assert_allclose(curve(tmp_path), curve(whole), rtol=1e-5)
    assert weights(tmp_path, "ema").keys() == weights(whole, "ema").keys()
    for name, value in weights(whole, "ema").items():
        torch.testing.assert_close(weights(tmp_path, "ema")[name], value, rtol=1e-5, atol=1e-6)


def test_the_number_of_ranks_and_the_sharding_may_change_on_the_way(whole, tmp_path):
    """Two ranks that shard, then one alone, then two that replicate groups of one."""
    sharded = {"parallel": "fsdp"}
    schedule = [(2, 16, sharded), (1, 24, {}), (2, 40, {**sharded, "shard_group": 1})]
    for count, samples, settings in schedule:
        processes = start(tmp_path, count=count, stop_at=samples if samples < 40 else None, **settings)
        assert finish(processes) == [3 if samples < 40 else 0] * count
    np.testing.assert_allclose(curve(tmp_path), curve(whole), rtol=1e-5)


def test_a_nan_stops_with_the_names_of_its_batch(tmp_path):
    assert finish(start(tmp_path, count=2, nan_from=21, log_every=12)) == [3, 3]
    report = json.loads((tmp_path / "nan_batch.json").read_text())
    assert report["names"] == [f"sample {n}" for n in range(20, 24)]
    assert "nan_batch.json" in (tmp_path / "error.txt").read_text()
    assert (tmp_path / "checkpoints" / "latest_checkpoint.txt").read_text() == "iter_000000004.pt\n"


def test_batches_made_in_advance_change_nothing(whole, tmp_path):
    train(tmp_path, ahead=3)
    check_same(whole, tmp_path)


def test_a_damaged_checkpoint_is_named(whole, tmp_path):
    assert finish(start(tmp_path, samples=16)) == [0]
    for part in (tmp_path / "checkpoints" / "iter_000000004_state").glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:100])
    assert finish(start(tmp_path)) == [3]
    assert "iter_000000004_state" in (tmp_path / "error.txt").read_text()
