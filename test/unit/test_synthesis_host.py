# SPDX-License-Identifier: Apache-2.0
"""How a machine is shared among workers, and what each process tells its libraries."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lidargen_ros.bags.synthesis import local
from lidargen_ros.bags.synthesis.options import Options

ROOT = Path(__file__).resolve().parents[2]
# Page faults of a process that takes and gives back what four clouds need, ten times.
CLOUDS = """
import resource, sys
import cv2
from lidargen_ros.bags.synthesis.host import settle_in
if "settled" in sys.argv:
    settle_in()
    assert cv2.getNumThreads() == 1
def clouds():
    return [bytes(4_000_000) + b"." for _ in range(4)]
clouds()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    clouds()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such thresholds")
def test_memory_of_clouds_is_kept():
    def faults(*arguments):
        command = [sys.executable, "-c", CLOUDS, *arguments]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert faults("settled") < faults() / 10


@pytest.mark.parametrize(
    ("gpus", "checkpoint", "asked", "workers", "threads"),
    [
        ([], "", 0, 1, 16),
        (["0"], "", 0, 4, 4),
        (["0", "1"], "", 0, 4, 4),
        ([*"01234567"], "", 0, 8, 2),
        (["0", "1"], "published.pt", 0, 2, 8),
        (["0"], "", 1, 1, 16),
    ],
)
def test_workers_share_gpus_and_cores(monkeypatch, gpus, checkpoint, asked, workers, threads):
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(local.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(local, "Alone", lambda options, _: (1, options))
    monkeypatch.setattr(local, "Processes", lambda options, count, *_: (count, options))
    count, options = local.local_crew(Options(checkpoint=checkpoint), asked, lambda _: None)
    assert (count, options.settings.threads) == (workers, threads)
