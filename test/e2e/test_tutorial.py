# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/tutorial.md, as they stand there: all of them (slow), and up to the evaluated run on a short drive."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("av")
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

ROOT = Path(__file__).resolve().parents[2]
DRIVE = ROOT / "samples" / "sample_drive"
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(not DRIVE.exists(), reason="the sample drive is not there")


def run(script, folder):
    """A block of the page in a shell; returns what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    words = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def run_here(script, monkeypatch):
    """The same without a process for each command: files written by ``cat``, and ``python -m``."""
    for name, content in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END\n", script, re.DOTALL | re.MULTILINE):
        Path(name).write_text(content)
    commands = re.findall(r"^python -m (.+)$", script, re.MULTILINE)
    assert script.count("\npython ") + script.startswith("python ") == len(commands)
    for command in commands:
        module, *words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [module, *words])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, command


def short_drive(folder, seconds=1.15):
    """The beginning of the sample drive, with its calibration."""
    folder.mkdir(parents=True)
    for name in ("rig.yaml", "lidar.yaml"):
        (folder / name).write_bytes((DRIVE / name).read_bytes())
    with (
        Reader(DRIVE) as source,
        Writer(folder / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as target,
    ):
        copies = {
            c.id: target.add_connection(c.topic, c.msgtype, msgdef=c.msgdef.data, rihs01=c.digest)
            for c in source.connections
        }
        for connection, time_ns, data in source.messages(stop=source.start_time + round(seconds * 1e9)):
            target.write(copies[connection.id], time_ns, data)
    return folder / "bag"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # modules run twice, as main and as themselves
def test_from_a_short_bag_to_an_evaluated_run(tmp_path, monkeypatch, capsys):
    bag = short_drive(tmp_path / "samples" / "short")
    blocks = [block.replace("samples/sample_drive", str(bag)) for block in BLOCKS[:3]]
    smaller = {
        "samples: 200": "samples: 8",
        "log_every: 20": "log_every: 4",
        "_every: 100": "_every: 8",
        "eval_scenes: 8": "eval_scenes: 2",
        "--frames 8 --training-frames 40": "--frames 2 --training-frames 3",
    }
    for long, short in smaller.items():
        assert long in "".join(BLOCKS), f"the page no longer has {long!r}"
        blocks = [block.replace(long, short) for block in blocks]
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        run_here(block, monkeypatch)
    assert "best constant map" in " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "runs" / "street"
    assert "eval/mae_m" in (folder / "report.md").read_text()
    assert len(list((folder / "evaluation").glob("*.npz"))) == 2
    assert list((tmp_path / "data" / "check").glob("*.jpg"))


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path):
    for name in ("samples", "export"):
        (tmp_path / name).symlink_to(ROOT / name)
    printed = [run(block, tmp_path) for block in BLOCKS]
    assert "every sha256 is right" in printed[3]
    assert "50 sweeps of 50 frames" in printed[4]
    assert "previous sweep" in printed[4]
    assert (tmp_path / "evaluation.json").is_file()
