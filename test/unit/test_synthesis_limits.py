# SPDX-License-Identifier: Apache-2.0
"""A full disk and memory: what ends a run, and what does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from camera_bags import MS, PERIOD, START, Event, pictures, write_bag

pytest.importorskip("onnx", reason="the toy bundle is made with onnx")
from toy_bundle import write_bundle

ROOT = Path(__file__).resolve().parents[2]
# The command in a process of its own, with limits, told by environment variables, in force once all is imported.
COMMAND = """
import os, resource, sys
import typer
from lidargen_ros.bags.synthesis import command, run, worker
from lidargen_ros.errors import LidargenError
from lidargen_ros.generator import LidarGenerator
import onnxruntime
if size := os.environ.get("FILE_BYTES"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
app = typer.Typer(pretty_exceptions_enable=False)
command.register(app)
try:
    sys.exit(app(standalone_mode=False))
except LidargenError as error:
    sys.exit(f"error: {error}")
finally:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def run(bundle, bag, out, *options, **limits):
    """(exit code, stdout, stderr) of the command."""
    arguments = [
        str(bag),
        "--out",
        str(out),
        "--bundle",
        str(bundle),
        "--inference-engine",
        "onnxruntime-cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments, "--threads", "1", "--slice", "1", "--json", *options],
        cwd=ROOT,
        env={**os.environ, **{k: str(v) for k, v in limits.items()}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def peak_mb(stderr: str) -> int:
    return int(stderr.rpartition("PEAK")[2])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(bundle, tmp_path) -> None:
    """Files that may not grow beyond 100 kB take the parts, but not the bag: as a disk that fills up."""
    bag, out = write_bag(tmp_path / "drive", pictures(30)), tmp_path / "out"
    code, stdout, stderr = run(bundle, bag, out, FILE_BYTES=100_000)
    summary = json.loads(stdout)
    assert code == 4
    assert (summary["stopped"], summary["bags_done"][0]["state"]) == (1, "stopped")
    assert "drive.mcap cannot be written: File too large" in stderr
    assert "what is finished is kept, the same command goes on from here" in stderr
    assert "Traceback" not in stderr
    kept = sorted(p.name for p in (out / ".drive.work").iterdir())
    assert not [name for name in kept if name.startswith(".")]
    assert not (out / "drive").exists()
    code, stdout, stderr = run(bundle, bag, out)
    assert (code, json.loads(stdout)["sweeps_out"]) == (0, 30)


def test_memory_does_not_grow_with_the_bag(bundle, tmp_path) -> None:
    """Raw pictures of 0.8 MB: seven times as many of them need the memory of the few."""
    big = (640, 400)

    def record(name: str, frames: int) -> Path:
        events = [
            Event(START + i * PERIOD + k * MS, f"/{camera}/image", START + i * PERIOD)
            for i in range(frames)
            for k, camera in enumerate(("front", "rear_left", "rear_right"))
        ]
        return write_bag(tmp_path / name, events, "mcap-zstd", "sensor_msgs/msg/Image", big)

    peaks = {}
    for name, frames in (("short", 20), ("long", 140)):
        code, stdout, stderr = run(bundle, record(name, frames), tmp_path / "out")
        assert (code, json.loads(stdout)["sweeps_out"]) == (0, frames)
        peaks[name] = peak_mb(stderr)
    pictures_mb = 3 * 640 * 400 * 3 / 1e6
    assert peaks["long"] - peaks["short"] < 10 * pictures_mb  # the long bag holds 120 more
