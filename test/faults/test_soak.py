# SPDX-License-Identifier: Apache-2.0
"""A minute of `make soak`, and its judgement on numbers known beforehand."""

import dataclasses

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from lidargen_ros.demo import find_drive
from lidargen_ros.errors import LidargenError
from lidargen_ros.ros.soak import Sample, judge, run_soak, table

GOOD = [Sample(float(t), 200.0 + 0.01 * t, 30, 40, 0.3 * t) for t in range(60)]
BOOKS = {
    "frames_in": 600,
    "sweeps_out": 598,
    "dropped": 2,
    "dropped_by_reason": {"replaced": 2},
    "in_flight": 0,
    "time_jumps": 11,
    "age_ms": {"p50": 30.0},
    "stages_ms": {"total": {"p50": 31.0}},
}


def problems(samples=GOOD, frames: int = 600, **books) -> str:
    played = {"frames": frames, "node": {**BOOKS, **books}}
    return "; ".join(judge(samples, played, 60.0)["problems"])


def test_the_judgement() -> None:
    assert problems() == ""
    leaking = [dataclasses.replace(s, resident_mib=200 + s.seconds) for s in GOOD]
    assert "resident memory grew by" in problems(leaking)
    assert "threads grew from 30 to 31" in problems([*GOOD[:-1], dataclasses.replace(GOOD[-1], threads=31)])
    assert "files grew from 40 to 45" in problems([*GOOD[:-1], dataclasses.replace(GOOD[-1], files=45)])
    assert "10 of 600 frames were lost" in problems(dropped=10, dropped_by_reason={"bad_image": 10})
    assert problems(dropped=10, dropped_by_reason={"time_jump": 10}) == ""
    assert problems(frames=603) == ""
    assert "12 of 610 frames were lost: 10 on the way" in problems(frames=610)
    assert "1 frames neither came out" in problems(in_flight=1)
    slow = {"total": {"p50": 300.0}, "generate": {"p50": 250.0}}  # four a second, and ten come
    replaced = {"dropped": 370, "dropped_by_reason": {"replaced": 370}, "stages_ms": slow}
    assert problems(sweeps_out=230, **replaced) == ""
    assert "lost" in problems(sweeps_out=190, **replaced)
    assert "lost" in problems(
        sweeps_out=230, **replaced | {"dropped_by_reason": {"replaced": 360, "bad_image": 10}}
    )
    assert "lost" in problems(sweeps_out=230, dropped=370, dropped_by_reason={"replaced": 370})
    report = judge(GOOD, {"frames": 600, "node": BOOKS}, 60.0)
    assert report["slope_mib_per_hour"] == pytest.approx(36.0)
    assert report["cpu_share"] == pytest.approx(0.3)
    assert "latency, ms        p50 31" in table(report)
    assert "verdict            good" in table(report)
    with pytest.raises(LidargenError, match="use 10 s or more"):
        judge(GOOD, {"frames": 600, "node": None}, 60.0)


@pytest.mark.dds
def test_the_sample_drive_in_a_loop(tmp_path) -> None:
    seconds = 60
    report = run_soak(tmp_path, seconds=float(seconds), drive=find_drive(), bundle="constant", threads=1)
    assert [p for p in report["problems"] if "were lost" not in p] == []
    assert report["frames_played"] >= 8 * seconds  # whatever else this machine does
    assert report["sweeps_out"] >= 0.9 * report["frames_played"]
    assert report["time_jumps"] >= seconds // 5 - 1
    assert (tmp_path / "report.json").is_file()
