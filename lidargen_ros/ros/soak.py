# SPDX-License-Identifier: Apache-2.0
"""Lets the node run for a long time and watches it: ``python -m lidargen_ros.ros.soak --seconds 600``.

Player and node are processes of their own on the loopback, as in ``lidargen demo``; the drive is looped at its own rate.
Imports no rclpy.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..demo import Drive, find_drive
from ..errors import LidargenError
from . import compat
from .processes import Child, Children

READY_S = 60.0
GROWTH_MIB = 16.0
"""Resident memory may grow by so much between the first and the last fifth of the time: allocators breathe."""
LOST_SHARE = 0.01
"""Of the frames, besides those that wait when the drive begins anew: a machine with other work stalls now and then."""
_PERIOD_S = 1.0
_WINDOW = 10  # frames: a node that is so far behind holds the player up
_STAGES = ("decode", "generate", "publish")
_BUSY_SHARE = 0.9  # of the time, that the slowest stage of a node that is too slow must be at work
_SETTLED = 0.2  # share of the time after which buffers have their size


@dataclass(frozen=True)
class Sample:
    """One look at a process, from ``/proc``."""

    seconds: float
    resident_mib: float
    threads: int
    files: int
    cpu_s: float


def look(pid: int, seconds: float) -> Sample:
    """Raises LidargenError if the process is gone."""
    proc = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        times = (proc / "stat").read_text().rpartition(")")[2].split()
        files = sum(1 for _ in (proc / "fd").iterdir())
        resident_kib = int(status["VmRSS"].split()[0])
    except (OSError, KeyError) as e:
        raise LidargenError(f"process {pid} cannot be watched: {e}; it has ended") from e
    cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return Sample(round(seconds, 1), resident_kib / 1024, int(status["Threads"]), files, cpu)


def run_soak(
    out: Path, *, seconds: float, drive: Drive, bundle: str, engine: str = "auto", threads: int = 0
) -> dict[str, Any]:
    """Play, generate and watch; returns the content of ``out/report.json``.

    Args:
        seconds: of playing.
        drive: its bag is played again and again.

    Raises:
        LidargenError: a process failed; the message ends with the last lines of its log.
    """
    shutil.rmtree(out / "logs", ignore_errors=True)
    logs = out / "logs"
    domain = compat.free_domain_id()
    env = compat.process_environment(domain_id=domain, loopback=True)
    parameters = {
        "use_sim_time": "true",
        "bundle": bundle,
        "engine": engine,
        "threads": str(threads),
        "rig": str(drive.rig.resolve()),
    }
    node_command = compat.module_command(
        "lidargen_ros.ros.node",
        "--ros-args",
        *(a for k, v in parameters.items() for a in ("-p", f"{k}:={v}")),
    )
    player_command = compat.module_command(
        "lidargen_ros.ros.player",
        str(drive.bag.resolve()),
        *("--loop", "0", "--limit", str(seconds), "--window", str(_WINDOW), "--subscribers", "1"),
        *("--ready-within", str(READY_S), "--report", str(logs / "player.json")),
    )
    samples: list[Sample] = []
    with Children(domain) as children:
        node = children.start("node", node_command, env, logs / "node.log")
        player = children.start("player", player_command, env, logs / "player.log")
        begun = time.monotonic()
        while player.running:
            if not node.running:
                raise _ended(node)
            if time.monotonic() - begun > READY_S + 1.5 * seconds + 60.0:
                raise LidargenError(f"the player did not end; see {player.log}")
            samples.append(look(node.pid, time.monotonic() - begun))
            player.wait(_PERIOD_S)
        if player.returncode:
            raise _ended(player)
        if status := node.stop(20.0):
            raise LidargenError(f"the node ended with status {status}; the end of {node.log}:\n{node.tail()}")
    report = judge(samples, json.loads((logs / "player.json").read_text()), seconds)
    report["bundle"] = bundle
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _ended(child: Child) -> LidargenError:
    return LidargenError(
        f"{child.name} ended with status {child.returncode}; the end of {child.log}:\n{child.tail()}"
    )


def judge(samples: Sequence[Sample], played: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The report: numbers, and ``problems`` in words.

    Args:
        samples: of the node, one a second.
        played: the player's report, with the node's books.

    Raises:
        LidargenError: too short to say anything.
    """
    books = played["node"]
    kept = [s for s in samples if s.seconds > samples[-1].seconds - seconds * (1 - _SETTLED)]
    if books is None or len(kept) < 5:
        raise LidargenError(
            "the node did not tell what it did, or too short a time was watched; use 10 s or more"
        )
    at = np.array([s.seconds for s in kept])
    memory = np.array([s.resident_mib for s in kept])
    fifth = max(len(kept) // 5, 1)
    growth = float(np.median(memory[-fifth:]) - np.median(memory[:fifth]))
    reasons = books["dropped_by_reason"]
    never_came = played["frames"] - books["frames_in"]
    lost = books["dropped"] - reasons.get("time_jump", 0) + never_came
    # A node whose slowest stage takes longer than a frame lasts cannot keep them all: the newest replaces the others.
    slowest_s = max(books["stages_ms"].get(stage, {}).get("p50", 0.0) for stage in _STAGES) / 1000
    too_slow = slowest_s * played["frames"] > seconds
    if too_slow:
        could = int(_BUSY_SHARE * seconds / slowest_s)
        lost += max(could - books["sweeps_out"], 0) - reasons.get("replaced", 0)
    report = {
        "seconds": seconds,
        "frames_played": played["frames"],
        "frames_in": books["frames_in"],
        "sweeps_out": books["sweeps_out"],
        "dropped": books["dropped"],
        "dropped_by_reason": reasons,
        "time_jumps": books["time_jumps"],
        "rate_hz": round(books["sweeps_out"] / seconds, 2),
        "too_slow": too_slow,
        "age_ms": books["age_ms"],
        "stages_ms": books["stages_ms"],
        "resident_mib": {
            "first": round(memory[0], 1),
            "last": round(memory[-1], 1),
            "growth": round(growth, 2),
        },
        "slope_mib_per_hour": round(float(np.polyfit(at, memory, 1)[0]) * 3600, 1),
        "threads": {"first": kept[0].threads, "last": kept[-1].threads},
        "files": {"first": kept[0].files, "last": kept[-1].files},
        "cpu_share": round((kept[-1].cpu_s - kept[0].cpu_s) / max(at[-1] - at[0], 1e-9), 3),
        "samples": [asdict(s) for s in samples],
    }
    problems = []
    if growth > GROWTH_MIB:
        problems.append(f"resident memory grew by {growth:.1f} MiB (allowed {GROWTH_MIB:g})")
    problems += [
        f"{what} grew from {report[what]['first']} to {report[what]['last']}"
        for what in ("threads", "files")
        if report[what]["last"] > report[what]["first"]
    ]
    if lost > LOST_SHARE * played["frames"]:
        problems.append(f"{lost} of {played['frames']} frames were lost: {never_came} on the way, {reasons}")
    if books["in_flight"]:
        problems.append(f"{books['in_flight']} frames neither came out nor were counted as dropped")
    return {**report, "problems": problems}


def table(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    memory = report["resident_mib"]
    reasons = ", ".join(f"{k} {v}" for k, v in report["dropped_by_reason"].items()) or "none"
    rows = {
        "frames": f"{report['frames_in']} in, {report['sweeps_out']} out at {report['rate_hz']:.2f} Hz",
        "dropped": f"{report['dropped']} ({reasons})",
        "latency, ms": ", ".join(f"{k} {v:.0f}" for k, v in report["stages_ms"].get("total", {}).items()),
        "resident memory": f"{memory['first']:.0f} to {memory['last']:.0f} MiB, "
        f"slope {report['slope_mib_per_hour']:+.1f} MiB/h",
        "threads, files": f"{report['threads']['last']}, {report['files']['last']}",
        "processor": f"{report['cpu_share']:.2f} cores",
        "verdict": "; ".join(report["problems"]) or "good",
    }
    return "\n".join(f"{name:18s} {text}" for name, text in rows.items())


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 if something failed, or memory, threads or files grew, or frames were lost."""
    parser = argparse.ArgumentParser(prog="soak", description="Watch the node for a long time.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="host threads per frame; 0 is one per core")
    parser.add_argument(
        "--drive", type=Path, help="bag with rig.yaml and lidar.yaml; default: the sample drive"
    )
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    options = parser.parse_args(arguments)
    try:
        compat.require_ros()
        report = run_soak(
            options.out,
            seconds=options.seconds,
            drive=find_drive(options.drive),
            bundle=options.bundle,
            engine=options.engine,
            threads=options.threads,
        )
    except LidargenError as e:
        print(f"soak: {e}", file=sys.stderr)
        return 1
    print(table(report))
    print(f"{options.out}/report.json")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
