# SPDX-License-Identifier: Apache-2.0
"""As a user would: a bag, one command to clips, one command to check them, a look at the picture."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import yaml
from toy_bag import CONFIG, ToyBag
from toy_folders import NuScenes
from toy_world import FAR, ToyWorld
from typer.testing import CliRunner

from lidargen_ros.bags.clips import list_clips
from lidargen_ros.sensors import Sensor
from training.data import check, from_folder, lidar_raw

pytest.importorskip("av")
ROOT = Path(__file__).resolve().parents[2]
WORLD = ToyWorld(sensor=Sensor("toy", np.linspace(8, -20, 32), 360, spin_time_s=0.1, max_range_m=FAR))


def command(*words):
    """Run a module of the project as users do."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return ToyBag(world=WORLD, seconds=1.2, picture_hz=10.0).write(
        tmp_path_factory.mktemp("bags") / "drive_a"
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mine.yaml"
    path.write_text(CONFIG)
    return path


def test_bag_to_checked_clips(bag, config, tmp_path):
    out = tmp_path / "data"
    made = command("training.data.from_bag", bag, "--config", config, "--out", out)
    assert made.returncode == 0, made.stderr
    for words in ("drive drive_a", "1 written", "12 of 12 kept", "sensor fitted: 32 rows"):
        assert words in made.stdout
    again = command("training.data.from_bag", bag, "--config", config, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    (summary,) = json.loads(again.stdout)
    assert summary["clips"] == []
    assert summary["clips_there"] == list_clips(out)
    assert json.loads((out / "summaries" / "drive_a.json").read_text())["clips_there"] == list_clips(out)
    listed = (out / "train.lst").read_text() + (out / "val.lst").read_text()
    assert listed.split() == list_clips(out)

    checked = command("training.data.check", out)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 of 1 clips checked, 12 frames, 0 clips with errors" in checked.stdout
    picture = cv2.imread(str(out / "check" / f"{list_clips(out)[0]}.jpg"))
    assert picture.shape[1] == 1920
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    report = json.loads(command("training.data.check", out, "--json", "--no-pictures").stdout)[0]
    assert report["errors"] == []
    assert report["returns"] > 0.9
    assert max(map(abs, report["sync_error_ms"])) < 1
    assert report["metres"] == pytest.approx(1.2 * WORLD.speed, rel=0.05)
    assert report["alignment"]["camera_front_wide_120fov"].startswith("ok")


def test_check_names_what_is_wrong(bag, config, tmp_path):
    out = tmp_path / "data"
    assert command("training.data.from_bag", bag, "--config", config, "--out", out).returncode == 0
    (clip,) = list_clips(out)
    tar = out / "lidar" / f"{clip}.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    result = runner(check.main, str(out), "--no-pictures")
    assert result.exit_code == 1
    assert clip in result.output
    assert "unexpected end of data" in result.output or "cut off" in result.output
    tar.write_bytes(whole)
    path = out / "metadata" / f"{clip}.npz"
    metadata = dict(np.load(path))
    kept = np.array([True] * 4 + [False] * 3 + [True] * 5)
    np.savez(path, **{name: array[kept] for name, array in metadata.items()})
    result = runner(check.main, str(out), "--no-pictures")
    assert "1 gaps, about 3 spins missing; the first after frame 000003" in result.output
    assert "3 frames absent from metadata" in result.output
    metadata["pose_list"][5:, :, 0, 3] += 100
    np.savez(path, **metadata)
    assert "jumps by up to" in runner(check.main, str(out), "--no-pictures").output
    metadata["pose_list"][6, 1, 0, 3] += 100
    np.savez(path, **metadata)
    result = runner(check.main, str(out), "--no-pictures")
    assert result.exit_code == 1
    assert "m/s" in result.output


def test_errors_are_one_line(bag, config, tmp_path):
    missing = command("training.data.from_bag", tmp_path / "no", "--config", config, "--out", tmp_path / "x")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: bag ")
    assert "Traceback" not in missing.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(CONFIG + "lidar: {topik: /x}\n")
    wrong = command("training.data.from_bag", bag, "--config", broken, "--out", tmp_path / "x")
    assert wrong.returncode == 1
    assert "unknown key lidar.topik" in wrong.stderr
    nothing = command("training.data.check", tmp_path)
    assert nothing.returncode == 1
    assert "no clips" in nothing.stderr


def test_a_bag_that_gives_nothing_fails_and_says_why(config, tmp_path):
    path = ToyBag(world=WORLD, seconds=0.4, picture_hz=10.0).write(tmp_path / "short")
    result = command("training.data.from_bag", path, "--config", config, "--out", tmp_path / "x")
    assert result.returncode == 1
    assert "fewer than 10 usable spins" in result.stdout
    assert "no clip was written" in result.stderr


def test_example_configuration_is_valid(bag, config, tmp_path):
    """config/from_bag.yaml with its topics changed to those of the bag."""
    text = (ROOT / "config" / "from_bag.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    result = command(
        "training.data.from_bag",
        bag,
        "--config",
        mine,
        "--out",
        tmp_path / "x",
        "--set",
        "motion.topic=/odom",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not (ROOT / "samples" / "sample_drive").exists(), reason="the sample drive is not there")
def test_sample_drive(tmp_path):
    """The drive that ships: organised clouds without rings or times, three fisheye cameras, motion on /tf."""
    mine = tmp_path / "mine.yaml"
    cameras = {"camera_front_wide_120fov": "front", "camera_rear_left_70fov": "rear_left"}
    cameras = {name: {"topic": f"/{topic}/image/compressed"} for name, topic in cameras.items()}
    mine.write_text(
        yaml.safe_dump({"cameras": cameras, "lidar": {"deskewed": "start"}, "clips": {"max_width": 320}})
    )
    sample = ROOT / "samples" / "sample_drive"
    made = command("training.data.from_bag", sample, "--config", mine, "--out", tmp_path / "data", "--json")
    assert made.returncode == 0, made.stderr
    (summary,) = json.loads(made.stdout)
    assert summary["spins_kept"] == summary["spins_read"] > 10
    names = ",".join(cameras)
    result = runner(
        check.main, str(tmp_path / "data"), "--cameras", names, "--frames", "3", "--no-pictures", "--json"
    )
    report = json.loads(result.stdout)[0]
    assert report["errors"] == []
    assert not any(words.startswith("doubtful") for words in report["alignment"].values())


def runner(main, *words):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(words))


def test_folder_command(tmp_path):
    world = replace(WORLD, sensor=replace(WORLD.sensor, spin_time_s=0.05), width=64, height=48, focal=40.0)
    root = NuScenes(world, seconds=0.6, scenes=1).write(tmp_path / "nuscenes")
    out = tmp_path / "data"
    words = ("nuscenes", str(root), "--out", str(out), "--camera", "CAM_FRONT=front", "--set", "min_spins=2")
    result = runner(from_folder.main, *words)
    assert result.exit_code == 0, result.output
    assert len(list_clips(out)) == 1
    assert (out / "ftheta_front").is_dir()
    assert runner(from_folder.main, "waymo", str(root), "--out", str(out)).exit_code == 1
    assert runner(from_folder.main, "nuscenes", str(tmp_path), "--out", str(out)).exit_code == 1


def test_raw_spins_command(golden, tmp_path):
    root = golden("geometry/clip")
    result = runner(lidar_raw.main, str(root), "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert list_clips(tmp_path) == list_clips(root)
    assert runner(lidar_raw.main, str(tmp_path / "nothing"), "--out", str(tmp_path)).exit_code == 1
