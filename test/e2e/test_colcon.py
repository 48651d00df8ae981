# SPDX-License-Identifier: Apache-2.0
"""``colcon build`` makes a package that ``ros2 run`` and ``ros2 launch`` find everything in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lidargen_ros.bundle import load_bundle
from lidargen_ros.ros.compat import free_domain_id, has

ROOT = Path(__file__).resolve().parents[2]
COLCON = shutil.which(
    "colcon", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)
EXECUTABLES = ("lidargen", "lidargen_node", "lidargen_player", "lidargen_recorder")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install folder of the package, built from a copy of what git knows (or of the folder, where git is absent)."""
    if COLCON is None:
        pytest.skip("colcon is not installed (pip install colcon-common-extensions)")
    workspace = tmp_path_factory.mktemp("ws")
    source = workspace / "src" / "lidargen_ros"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "out", "runs", "build", "install", "log", "__pycache__"
        )
        shutil.copytree(ROOT, source, ignore=ignored)
    for name in listed.stdout.splitlines():
        if not name.startswith(("test/", "docs/", "training/", "samples/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    (source / "training").mkdir(exist_ok=True)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    build = subprocess.run(
        [COLCON, "build", "--packages-select", "lidargen_ros", "--event-handlers", "console_direct+"],
        cwd=workspace,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return workspace / "install" / "lidargen_ros"


def environment(installed: Path) -> dict[str, str]:
    """As after ``source install/setup.sh``, from another folder and without the checkout."""
    library = next(installed.glob("lib/python*/site-packages"))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**env, "PYTHONPATH": str(library), "AMENT_PREFIX_PATH": str(installed)}


def test_files_are_where_ros_looks_for_them(installed) -> None:
    share = installed / "share" / "lidargen_ros"
    assert (installed / "share/ament_index/resource_index/packages/lidargen_ros").is_file()
    assert (share / "package.xml").is_file()
    for kind in ("launch", "config"):
        wanted = {str(p.relative_to(ROOT)) for p in (ROOT / kind).rglob("*") if p.suffix not in (".pyc", "")}
        there = {str(p.relative_to(share)) for p in (share / kind).rglob("*") if p.is_file()}
        assert wanted, kind
        assert wanted <= there
    for name in EXECUTABLES:
        path = installed / "lib" / "lidargen_ros" / name
        assert path.is_file()
        assert os.access(path, os.X_OK)


def test_shipped_bundles_are_installed_whole(installed) -> None:
    library = next(installed.glob("lib/python*/site-packages"))
    for name in ("nano", "constant"):
        bundle = load_bundle(library / "lidargen_ros" / "bundles" / name)  # compares every sha256
        assert bundle.name == name


def test_configuration_is_found_from_the_installation(installed, tmp_path) -> None:
    code = (
        "import lidargen_ros; from lidargen_ros.resources import config_path; "
        "from lidargen_ros.cameras import load_rig; from lidargen_ros.sensors import load_sensor; "
        "print(lidargen_ros.__file__, config_path('lidargen.yaml'), len(load_rig('published')), "
        "load_sensor('pandar128').rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(installed),
        capture_output=True,
        text=True,
        check=True,
    )
    package, config, views, rows = done.stdout.split()
    assert package.startswith(str(installed))
    assert config == str(installed / "share/lidargen_ros/config/lidargen.yaml")
    assert (views, rows) == ("3", "128")


@pytest.mark.dds
@pytest.mark.parametrize("name", ["lidargen_node", "lidargen_player", "lidargen_recorder"])
def test_installed_executables_start_and_complain_in_one_line(installed, tmp_path, name) -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    arguments = {
        "lidargen_node": ["--ros-args", "-p", "bundle:=/nowhere"],
        "lidargen_player": ["/nowhere"],
        "lidargen_recorder": [str(tmp_path)],  # exists already
    }[name]
    env = {
        **environment(installed),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain_id()),
    }
    done = subprocess.run(
        [installed / "lib" / "lidargen_ros" / name, *arguments],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert "/nowhere" in said or "exists already" in said


LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(a.split(":=")) for a in sys.argv[2:]]
service = LaunchService(argv=[])
included = IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)
service.include_launch_description(LaunchDescription([included]))
sys.exit(service.run())
"""


def launch(installed: Path, tmp_path: Path, name: str, *arguments: str, path: Path | None = None) -> str:
    """What a launch file prints until it ends by itself; ``path``: folder with commands that go before others."""
    if not has("launch_ros"):
        pytest.skip("launch_ros is not installed (not on PyPI; ros-DISTRO-launch-ros)")
    env = environment(installed)
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], *filter(None, [os.environ.get("PYTHONPATH")])])
    env |= {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain_id()),
        "ROS_LOG_DIR": str(tmp_path),
        "PATH": os.pathsep.join([*([str(path)] if path else []), env.get("PATH", "")]),
    }
    file = installed / "share" / "lidargen_ros" / "launch" / name
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(file), *arguments],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.dds
def test_the_launch_file_starts_the_node_with_its_arguments(installed, tmp_path) -> None:
    said = launch(
        installed,
        tmp_path,
        "lidargen.launch.py",
        "bundle:=/nowhere",
        "namespace:=car",
        "front_image:=/cam/front",
    )
    assert "[car.lidargen]: loading the model: no bundle at /nowhere" in said
    assert "-r front/image:=/cam/front" in said
    assert "rear_left/image:=" not in said  # not remapped unless asked for


@pytest.mark.dds
def test_the_launch_file_refuses_what_it_does_not_know(installed, tmp_path) -> None:
    assert "viz" in launch(installed, tmp_path, "lidargen.launch.py", "viz:=rviz3")


@pytest.mark.dds
def test_the_replay_launch_file_ends_when_the_player_does(installed, tmp_path) -> None:
    said = launch(
        installed, tmp_path, "replay.launch.py", "bag:=/nowhere", "player:=lidargen", "bundle:=/also_nowhere"
    )
    assert "lidargen_player: bag /nowhere does not exist" in said
    assert "no bundle at /also_nowhere" in said


@pytest.mark.dds
def test_the_replay_launch_file_plays_with_the_clock(installed, tmp_path) -> None:
    """``ros2`` is a double here: rosbag2's player is not among the PyPI wheels."""
    ros2 = tmp_path / "bin" / "ros2"
    ros2.parent.mkdir()
    ros2.write_text('#!/bin/sh\necho "ros2 $@"\n')
    ros2.chmod(0o755)
    arguments = ("bag:=/drive", "rate:=2.0", "play_args:=--loop", "bundle:=/nowhere")
    said = launch(installed, tmp_path, "replay.launch.py", *arguments, path=ros2.parent)
    assert "ros2 bag play /drive --clock --rate 2.0 --read-ahead-queue-size 100 --loop" in said


@pytest.mark.dds
def test_the_replay_launch_file_records_a_cloud_for_each_frame(installed, tmp_path) -> None:
    """A namespace, a name, a remapped topic, the own player and the recorder, all together."""
    from drives import write_drive

    from lidargen_ros.bags.reader import BagReader

    drive = write_drive(tmp_path / "drive", frames=5)
    launch(
        installed,
        tmp_path,
        "replay.launch.py",
        f"bag:={drive}",
        f"record:={tmp_path / 'lidar'}",
        f"rig:={drive / 'rig.yaml'}",
        "player:=lidargen",
        "bundle:=constant",
        "namespace:=car",
        "name:=roof",
        "points:=cloud",
        *(f"{c}_image:=/{c}/image" for c in ("front", "rear_left", "rear_right")),
    )
    with BagReader(tmp_path / "lidar") as bag:
        assert bag.topics["/car/cloud"].count == 5
