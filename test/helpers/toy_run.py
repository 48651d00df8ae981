# SPDX-License-Identifier: Apache-2.0
"""Real processes that train the toy recipe: alone, as several ranks, stopped by signals, killed at a chosen moment."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from toy_recipe import ToyExperiment, ToyRecipe

from lidargen_ros.errors import LidargenError
from training.loop import ranks
from training.loop.trainer import Trainer

# Children are forked from a process that has imported everything already: half a second each, not five.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["toy_run", "torch._dynamo"])


def train(folder: Path, **settings) -> dict:
    """One run in this process, or this process's part of one."""
    experiment = ToyExperiment(**settings)
    device = ranks.pick_device(experiment.device)
    with ranks.process_group(device, needed=experiment.parallel == "fsdp"):
        return Trainer(ToyRecipe(experiment, device), experiment, folder, device).run()


def start(
    folder: Path,
    count: int = 1,
    kill_at: int | None = None,
    slow: float = 0.0,
    stop_at: int | None = None,
    **settings,
) -> list:
    """``count`` ranks; ``kill_at``: SIGKILL at a rank's n-th touch of the disk, to each of which ``slow`` seconds are added;
    ``stop_at``: rank 0 gets a SIGTERM when it has so many samples."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = [
        {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for r in range(count)
    ] if count > 1 else [{}]  # fmt: skip
    processes = [
        PROCESSES.Process(target=_child, args=(folder, p, kill_at, slow, stop_at, settings)) for p in places
    ]
    with preloaded():
        for process in processes:
            process.start()
    return processes


@contextlib.contextmanager
def preloaded() -> Iterator[None]:
    """Around the start of processes: the server that forks them finds what it shall import in no other way."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def exit_code_of_ros() -> None:
    """Exit code 1 if training has imported rclpy."""
    import training.student.recipe
    import training.train  # noqa: F401

    sys.exit("rclpy" in sys.modules)


def finish(processes: list) -> list[int]:
    """Exit codes (negative: the signal)."""
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _child(
    folder: Path, place: dict, kill_at: int | None, slow: float, stop_at: int | None, settings: dict
) -> None:
    os.environ.update(place, OMP_NUM_THREADS="1")
    if kill_at or slow:
        _watch_the_disk(kill_at, slow)
    if stop_at and place.get("RANK", "0") == "0":
        ToyRecipe.signal_at = stop_at
    try:
        train(folder, **settings)
    except LidargenError as error:
        (folder / "error.txt").write_text(str(error))
        sys.exit(3)


def _watch_the_disk(kill_at: int | None, slow: float) -> None:
    """Counts what the process opens for writing, renames or removes, with the interpreter's own audit events."""
    touched = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal touched
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if not (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")):
            return
        touched += 1
        time.sleep(slow)
        if touched == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
