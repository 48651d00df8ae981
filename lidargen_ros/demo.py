# SPDX-License-Identifier: Apache-2.0
"""``lidargen demo``: plays the sample drive over DDS, lets the node make a LiDAR of its cameras, records and judges.

Three processes on an own ROS domain of the loopback: player, node, recorder. ROS is imported by them alone.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .errors import DataError, LidargenError
from .resources import share_folders
from .ros import compat
from .ros.processes import Child, Children, wait_until

PLAY_LIMIT_S = 60.0
"""The player stops here on a slow machine, so that the whole demo stays within 90 s."""
_READY_S = 60.0
_END_S = 20.0
_MARGIN_S = 5.0


@dataclass(frozen=True)
class Drive:
    """A bag with its calibration beside it."""

    bag: Path
    rig: Path
    lidar: Path


def find_drive(folder: Path | None = None) -> Drive:
    """The sample drive, or one of the same layout: a bag with ``rig.yaml`` and ``lidar.yaml`` in or beside it.

    Raises:
        DataError: it is not there; says where it was sought.
    """
    folders = [folder] if folder else [f / "samples" / "sample_drive" for f in share_folders()]
    for place in folders:
        for beside in (place, place.parent):
            drive = Drive(place, beside / "rig.yaml", beside / "lidar.yaml")
            if place.exists() and drive.rig.is_file() and drive.lidar.is_file():
                return drive
    raise DataError(f"no drive with rig.yaml and lidar.yaml at {', '.join(map(str, folders))}")


def run_demo(
    out: Path,
    *,
    drive: Drive,
    bundle: str = "nano",
    engine: str = "auto",
    threads: int = 0,
    node: list[str] | None = None,
    limit_s: float = PLAY_LIMIT_S,
    progress: Any = None,
) -> dict[str, Any]:
    """Play, generate, record, judge; returns the content of ``out/report.json``.

    Args:
        out: gets ``lidar/`` (rosbag2), ``preview.jpg``, ``report.json`` and ``logs/``; what an earlier run left
            there is replaced.
        node: command of the node; default is the installed one.
        progress: called as ``progress(sweeps so far, what is going on)``.

    Raises:
        LidargenError: a process failed; the message ends with the last lines of its log.
    """
    tell = progress or (lambda *_: None)
    for old in (out / "lidar", out / "logs"):
        shutil.rmtree(old, ignore_errors=True)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    domain = compat.free_domain_id()
    env = compat.process_environment(domain_id=domain, loopback=True)
    command = node or compat.module_command("lidargen_ros.ros.node")
    parameters = {
        "use_sim_time": "true",
        "bundle": bundle,
        "engine": engine,
        "threads": str(threads),
        "rig": str(drive.rig.resolve()),
    }
    ros_args = ["--ros-args", *(a for k, v in parameters.items() for a in ("-p", f"{k}:={v}"))]
    begun = time.monotonic()
    with Children(domain) as children:
        recorder = children.start(
            "recorder",
            compat.module_command(
                "lidargen_ros.ros.recorder",
                str(out / "lidar"),
                *("--progress", str(logs / "sweeps.txt"), "--report", str(logs / "recorder.json")),
            ),
            env,
            logs / "recorder.log",
        )
        lidar = children.start("node", [*command, *ros_args], env, logs / "node.log")
        player = children.start(
            "player",
            compat.module_command(
                "lidargen_ros.ros.player",
                str(drive.bag.resolve()),
                *("--window", "1", "--subscribers", "2", "--ready-within", str(_READY_S)),
                *("--limit", str(limit_s), "--report", str(logs / "player.json")),
            ),
            env,
            logs / "player.log",
        )
        _watch(player, [lidar, recorder], logs / "sweeps.txt", limit_s, tell)
        played = json.loads((logs / "player.json").read_text())
        if played["node"] is None:
            raise LidargenError(f"the node did not tell what it did; the end of {lidar.log}:\n{lidar.tail()}")
        # Reliable delivery may still be on its way to the recorder.
        wait_until(lambda: len(_lines(logs / "sweeps.txt")) >= played["node"]["sweeps_out"], _MARGIN_S)
        _ended(recorder.stop(_END_S), recorder)
        _ended(lidar.stop(_END_S), lidar)
    from .demo_report import (  # only now: metrics and pictures take a second to import
        make_report,
        write_preview,
    )

    sweeps = _lines(logs / "sweeps.txt")
    tell(len(sweeps), "comparing with the drive's own LiDAR")
    report, middle = make_report(drive, out / "lidar", played, sweeps)
    write_preview(out / "preview.jpg", drive, middle)
    report["seconds"] = round(time.monotonic() - begun, 1)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _watch(player: Child, others: list[Child], sweeps: Path, limit_s: float, tell: Any) -> None:
    """Until the player has ended. Raises LidargenError if a process fails or the time is over."""
    allowed = _READY_S + limit_s + _END_S
    deadline = time.monotonic() + allowed
    while player.running:
        for child in others:
            if not child.running:
                _ended(child.returncode or 1, child)
        if time.monotonic() > deadline:
            raise LidargenError(f"the demo did not end within {allowed:.0f} s; see {player.log.parent}")
        tell(len(_lines(sweeps)), "generating")
        player.wait(0.2)
    _ended(player.returncode or 0, player)


def _ended(status: int, child: Child) -> None:
    if status:
        raise LidargenError(
            f"{child.name} ended with status {status}; the end of {child.log}:\n{child.tail()}"
        )


def _lines(path: Path) -> list[tuple[int, int]]:
    """(stamp, time of publication) of each recorded sweep, nanoseconds."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]  # the last one may be half written
    return [(int(a), int(b)) for a, b in (line.split() for line in lines)]


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<38}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("starting player, node and recorder", total=total)

        def tell(sweeps: int, what: str) -> None:
            if what == "generating":
                what = "images in, LiDAR out" if sweeps else "starting player, node and recorder"
            bar.update(task, completed=sweeps, description=what)

        yield tell


def main(
    out: Path = Path("out/demo"),
    drive: Path | None = None,
    bundle: str = "nano",
    engine: str = "auto",
    threads: int = 0,
) -> int:
    """The command: progress bar, then what was made. Exit status 0, or 1 with one message."""
    from rich.console import Console

    from .bags.reader import BagReader

    console = Console()
    try:
        compat.require_ros()
        found = find_drive(drive)
        with BagReader(found.bag) as bag:
            frames = sum(t.count for name, t in bag.topics.items() if name.startswith("/front/image"))
        with _bar(frames) as tell:
            report = run_demo(out, drive=found, bundle=bundle, engine=engine, threads=threads, progress=tell)
    except LidargenError as e:
        print(f"lidargen demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lidargen demo: stopped", file=sys.stderr)
        return 130
    console.print(
        f"{report['sweeps_out']} of {report['frames_in']} frames became sweeps at {report['rate_hz']:.2f} Hz, "
        f"{report['latency_ms']['p50']:.0f} ms each (median).\n"
        f"Error {report['mae_m']:.2f} m (best constant: {report['baseline_mae_m']:.2f} m), "
        f"{100 * report['return_accuracy']:.1f} % of the returns right.\n"
        f"{out}/preview.jpg   {out}/lidar   {out}/report.json",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def register(app: Any) -> None:
    """Add ``demo`` to a typer application."""
    import typer

    @app.command("demo")
    def command(
        out: Annotated[Path, typer.Option(help="Folder for what is made.")] = Path("out/demo"),
        drive: Annotated[
            Path | None, typer.Option(help="Bag with rig.yaml and lidar.yaml; default is the sample drive.")
        ] = None,
        bundle: Annotated[str, typer.Option(help="Model bundle.")] = "nano",
        engine: Annotated[str, typer.Option(help="Engine that runs it.")] = "auto",
        threads: Annotated[int, typer.Option(help="Host threads per frame; 0 is one per core.")] = 0,
    ) -> None:
        """Play a drive over DDS, let the node make a LiDAR of its cameras, record it and compare with the truth."""
        raise typer.Exit(main(out, drive, bundle, engine, threads))
