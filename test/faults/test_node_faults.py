# SPDX-License-Identifier: Apache-2.0
"""Faults around the node: memory, listeners, parameters, disks. The cameras stay good and nothing else is lost."""

import itertools
import signal
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import CAMERAS, HERE

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.ros import compat

BURST = {"ticks": 300, "period_ms": 5, "faults": {c: {"size": [160, 88]} for c in CAMERAS}}


def test_a_slow_and_a_stopped_listener_hold_nobody_up(road) -> None:
    bench = road.bench
    count = road.statistics()["subscribers"]["points"]
    slow = bench.start("listener", [sys.executable, str(HERE / "slow_listener.py")])
    bench.heard(road.node, "points", more_than=count)
    road.drive({"ticks": 8}).lost_nothing_but()
    slow.signal(signal.SIGSTOP)
    try:
        road.drive({"ticks": 8}).lost_nothing_but()
    finally:
        slow.signal(signal.SIGCONT)
        slow.stop()


def test_a_storm_of_parameters(road) -> None:
    good = [
        {"point_type": "ouster"},
        {"point_type": "velodyne"},
        {"frame_id": "roof", "return_probability": True},
        {"point_type": "xyzi", "organised": False},
        {"sync_tolerance": 0.01, "max_range": 50.0},
        {"point_type": "xyzirc", "organised": True, "return_probability": False, "frame_id": "lidar"},
    ]
    bad = [{"point_type": "pcl"}, {"sync_tolerance": 5.0}, {"min_range": 2000.0}, {"bundle": "other"}]
    results = []

    def storm() -> None:
        choices = zip(itertools.cycle(good), itertools.cycle(bad), range(40), strict=False)
        for wanted, refused, _ in choices:
            results.append(all(r.successful for r in road.bench.set_parameters("lidargen", **wanted)))
            results.append(any(r.successful for r in road.bench.set_parameters("lidargen", **refused)))

    drive = road.drive({"ticks": 20}, then=storm)
    drive.lost_nothing_but(hiccups=5)  # new tables for each layout cost time
    assert results == [True, False] * 40
    for cloud in drive.clouds:  # each one whole, in one layout
        assert (
            len(cloud.data) == cloud.row_step * cloud.height == cloud.point_step * cloud.width * cloud.height
        )
        assert max(f.offset for f in cloud.fields) < cloud.point_step
    assert len({cloud.point_step for cloud in drive.clouds}) > 1
    road.bench.set_parameters("lidargen", **good[-1], sync_tolerance=0.02, max_range=1000.0)
    road.drive({"ticks": 5}).lost_nothing_but()


def test_a_full_disk_ends_the_recorder_and_nothing_else(road, tmp_path) -> None:
    """The recorder writes to a file system of 16 MB, in a mount namespace of its own."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here: a small file system cannot be mounted")
    small, saved = tmp_path / "small", tmp_path / "saved"
    small.mkdir()
    script = 'mount -t tmpfs -o size=16m none "$0" && "${@:2}"; status=$?; cp -r "$0/bag" "$1"; exit $status'
    recorder = compat.module_command(
        "lidargen_ros.ros.recorder", str(small / "bag"), "--no-compression", "--topics", "points"
    )
    child = road.bench.start(
        "recorder", ["unshare", "-rm", "bash", "-c", script, str(small), str(saved), *recorder]
    )

    def full() -> bool:
        road.begin({"ticks": 5})
        road.bench.spin(0.5)
        return not child.running

    road.bench.wait(full, "the recorder to end")
    assert child.returncode == 1, child.tail()
    assert "No space left on device" in child.log.read_text()
    assert "Traceback" not in child.log.read_text()
    with BagReader(saved) as bag:
        assert len(list(bag.messages(["/points"]))) >= 1
    road.drive({"ticks": 6}).lost_nothing_but()


def test_an_error_after_a_warning_is_logged() -> None:
    """rclpy ties a severity to the line that logs, and raises when it changes."""
    from rclpy.logging import get_logger

    from lidargen_ros.ros.reporter import Reporter

    reporter = Reporter(get_logger("reporter"))
    reporter.warning("a", "a warning")
    reporter.error("b", "an error")
    reporter.warning("c", "another warning")


def test_no_memory_for_the_first_frame_is_said_and_ends_the_node(bench) -> None:
    node = bench.start_node(active=False, STUB_FAIL_AT="0")
    assert node.wait(30.0) == 1
    assert "loading the model: out of memory (injected)" in node.log.read_text()
    assert "Traceback" not in node.log.read_text()


def test_no_memory_for_the_thousandth_frame_costs_that_frame(road) -> None:
    before = road.books()["dropped_by_reason"].get("engine", 0)
    road.bench.set_parameters("lidargen", organised=False, max_range=5.0)  # clouds without points are quick
    for _ in range(8):
        road.begin(BURST)
        road.bench.wait(road.sent, "the cameras to finish", road.node)
        if "engine" in road.books()["dropped_by_reason"]:
            break
    assert (before, road.books()["dropped_by_reason"]["engine"]) == (0, 1)
    road.bench.set_parameters("lidargen", organised=True, max_range=1000.0)
    assert "the engine failed on a frame: out of memory (injected)" in road.log()
    road.drive({"ticks": 6}).lost_nothing_but()
