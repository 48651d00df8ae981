# SPDX-License-Identifier: Apache-2.0
"""Cameras that fail, one fault after the other against one node: each costs its own frames only, and is named."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import CAMERAS
from road import CALM

MS = 1_000_000


def test_without_a_fault_every_picture_becomes_a_cloud(road) -> None:
    road.drive({"ticks": 8}).lost_nothing_but()


def test_a_camera_at_half_rate_costs_every_second_frame(road) -> None:
    road.forget()
    drive = road.drive({"ticks": 12, "faults": {"rear_left": {"every": 2}}})
    drive.lost_nothing_but(incomplete__rear_left=6)
    assert road.said("rear_left breaks sets")
    assert "rear_left" not in str(road.drive().dropped)


def test_pictures_that_arrive_up_to_50_ms_late_cost_nothing(road) -> None:
    late = {c: {"late_ms": 50} for c in CAMERAS}
    road.drive({"ticks": 12, "faults": late}).lost_nothing_but()


def test_stamps_that_jitter_by_50_ms_cost_the_sets_that_do_not_belong_together(road) -> None:
    jitter = {c: {"jitter_ms": 50} for c in CAMERAS}
    drive = road.drive({"ticks": 20, "period_ms": 150, "faults": jitter})
    tolerance = 20 * MS
    rear = [np.array(drive.sent[c]) for c in CAMERAS[1:]]
    together = {s for s in drive.sent["front"] if all(np.abs(r - s).min() <= tolerance for r in rear)}
    assert 4 < len(together) < 24
    assert set(drive.stamps) == together
    assert all(reason.startswith("incomplete:") for reason in drive.dropped)
    assert drive.frames_in == drive.sweeps_out + sum(drive.dropped.values())


@pytest.mark.parametrize("seconds", [1, -1])
def test_stamps_off_by_a_second_are_named(road, seconds) -> None:
    road.forget()
    off = {"rear_right": {"offset_ms": 1000 * seconds}}
    drive = road.drive({"ticks": 12, "faults": off}, calm=16 if seconds > 0 else CALM)
    assert drive.frames_in == len(drive.sent["front"])
    assert set(drive.dropped) - {"replaced"} == {"incomplete:rear_right"}
    # A clock that is set back is believed once it has caught up with its own past, or by a second (time_jump).
    hiccups = drive.dropped.get("replaced", 0)
    assert 12 - hiccups <= drive.dropped["incomplete:rear_right"] <= (22 if seconds > 0 else 12)
    assert road.said(f"rear_right breaks sets: its stamps are {1000 * seconds:+d} ms off")


def test_copies_are_ignored(road) -> None:
    drive = road.drive({"ticks": 8, "faults": {c: {"copies": 2} for c in CAMERAS}})
    drive.lost_nothing_but(duplicate=8)


def test_pictures_in_the_wrong_order_never_give_a_wrong_set(road) -> None:
    drive = road.drive({"ticks": 8, "faults": {c: {"swapped": True} for c in CAMERAS}})
    drive.lost_nothing_but(out_of_order=4)
    assert drive.stamps == sorted(drive.stamps)


def test_4k_pictures_all_of_a_sudden(road) -> None:
    large: list[int] = []
    for _ in range(4):  # on a busy machine all of them may be overtaken by the good ones behind them
        drive = road.drive({"ticks": 8, "faults": {c: {"size": (3840, 2160)} for c in CAMERAS}})
        assert set(drive.dropped) <= {"replaced"}  # decoding takes longer than the cameras' period
        assert drive.frames_in == drive.sweeps_out + drive.dropped.get("replaced", 0)
        assert drive.stamps[-1] == drive.sent["front"][-1]  # the newest wins
        if large := [s for s in drive.stamps if s in drive.sent["front"][:8]]:
            break
    assert large
    road.drive({"ticks": 5}).lost_nothing_but()


def test_corrupted_jpegs_cost_their_sets_and_are_named_once(road) -> None:
    road.forget()
    said = "]: /rear_left/image/compressed: truncated JPEG"
    before = road.log().count(said)
    drive = road.drive({"ticks": 10, "faults": {"rear_left": {"cut": True}}})
    drive.lost_nothing_but(bad_image=10)
    assert road.said(said.removeprefix("]: "))
    assert road.log().count(said) - before == 1


def test_a_camera_dies_and_comes_back(road) -> None:
    road.forget()
    before = road.books()
    road.begin({"ticks": 30})
    road.bench.wait(lambda: road.statistics()["sweeps_out"] > before["sweeps_out"], "a cloud", road.node)
    road.kill("rear_left")
    road.bench.wait(lambda: road.said("no images from rear_left"), "the silent camera to be named", road.node)
    road.restart("rear_left")
    road.drive({"ticks": 10}).lost_nothing_but()
    now = road.books()
    lost = {k: n - before["dropped_by_reason"].get(k, 0) for k, n in now["dropped_by_reason"].items()}
    assert {k for k, n in lost.items() if n} <= {"incomplete:rear_left", "replaced"}
    assert lost["incomplete:rear_left"] >= 5
