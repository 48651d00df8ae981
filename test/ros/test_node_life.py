# SPDX-License-Identifier: Apache-2.0
"""The node's life: starting or refusing to, transitions, parameters, failures of the engine, death and return."""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from drives import jpeg

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import CAMERAS, FAKE_TF, HERE, compressed_image, header, stamps_of

from lidargen_ros.ros.compat import has
from lidargen_ros.ros.processes import remove_abandoned, shared_memory_of

STAMPS = itertools.count(1_700_000_000_000_000_000, 100_000_000)


def good(stamp_ns: int):
    return compressed_image(stamp_ns, jpeg(50))


def listening(bench, node):
    """The list of clouds, once the node has seen its listener."""
    from sensor_msgs.msg import PointCloud2

    clouds = bench.listen("/points", PointCloud2)
    bench.heard(node, "points")
    return clouds


def change_state(bench, transition: int) -> bool:
    from lifecycle_msgs.srv import ChangeState

    request = ChangeState.Request()
    request.transition.id = transition
    return bool(bench.call(ChangeState, "/lidargen/change_state", request, timeout_s=20.0).success)


def state_of(bench) -> str:
    from lifecycle_msgs.srv import GetState

    return str(bench.call(GetState, "/lidargen/get_state", GetState.Request()).current_state.label)


CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "env", "said"),
    [
        ({"bundle": "/nowhere"}, {"REAL": "1"}, "no bundle at /nowhere"),
        ({}, {"STUB_REFUSE": "bundle x: decoder.onnx differs from its sha256"}, "decoder.onnx differs"),
        ({"point_type": "xyz"}, {}, "parameter 'point_type' is 'xyz'; choose one of xyzi, xyzirc"),
        ({"sync_tolerance": "-1.0"}, {}, "'sync_tolerance' is out of range; use 0.0 to 1.0"),
        ({"steps": "many"}, {}, "'steps' has the wrong type; it must be of type int"),
        ({"rig": "/nowhere.yaml"}, {}, "rig file /nowhere.yaml cannot be read"),
        (
            {"cameras": "[front, back]"},
            {},
            "has 3 views (front, rear_left, rear_right), parameter cameras names 2",
        ),
        ({"synchronizer": "message_filters"}, {}, "message_filters, which is not installed"),
        (
            {"calibration": "tf"},
            {},
            "tf2_ros is not installed; install ros-DISTRO-tf2-ros-py, or take the poses from",
        ),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_ends(bench, parameters, env, said) -> None:
    for module in ("message_filters", "tf2_ros"):
        if module in said and has(module):
            pytest.skip(f"{module} is installed here")
    if env.pop("REAL", ""):
        given = [a for k, v in parameters.items() for a in ("-p", f"{k}:={v}")]
        node = bench.start("node", [sys.executable, "-m", "lidargen_ros.ros.node", "--ros-args", *given])
    else:
        node = bench.start_node(parameters, active=False, **env)
    assert node.wait(30.0) == 1, node.tail()
    lines = [line for line in node.log.read_text().splitlines() if said in line]
    assert lines, node.tail()
    assert "Traceback" not in node.log.read_text()


def test_nan_in_the_rig_stops_the_start_and_names_the_camera(bench, tmp_path) -> None:
    from stub_node import rig

    path = tmp_path / "rig.yaml"
    rig().save(path)
    path.write_text(path.read_text().replace("300.0", ".nan", 1))
    node = bench.start_node({"rig": str(path)}, active=False)
    assert node.wait(30.0) == 1
    assert "camera 'front': calibration holds NaN" in node.log.read_text()


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_a_damaged_bundle_is_refused_and_the_file_named(bench, tmp_path, harm) -> None:
    from lidargen_ros.bundle import find_bundle

    bundle = tmp_path / "copy"
    shutil.copytree(find_bundle("constant"), bundle)
    graph = bundle / "decoder.onnx"
    if harm == "missing":
        graph.unlink()
    else:
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    command = [sys.executable, "-m", "lidargen_ros.ros.node", "--ros-args", "-p", f"bundle:={bundle}"]
    node = bench.start("node", command)
    assert node.wait(60.0) == 1
    assert "decoder.onnx" in node.log.read_text()
    assert "Traceback" not in node.log.read_text()


# --- lifecycle and parameters ----------------------------------------------------------------------------------------


def test_transitions_one_by_one(bench) -> None:
    node = bench.start_node({"autostart": "false"}, active=False)
    bench.wait(lambda: bench.statistics(node), "the node to answer", node)
    assert state_of(bench) == "unconfigured"
    for transition, state in ((CONFIGURE, "inactive"), (ACTIVATE, "active")):
        assert change_state(bench, transition)
        assert state_of(bench) == bench.statistics(node)["state"] == state
    clouds = listening(bench, node)
    stamp = next(STAMPS)
    bench.send_set(stamp, good)
    bench.wait(lambda: clouds, "a cloud", node)
    for transition, state in ((DEACTIVATE, "inactive"), (ACTIVATE, "active")):
        assert change_state(bench, transition)
        assert state_of(bench) == state
    for camera in CAMERAS:
        bench.wait(
            lambda c=camera: bench._matched(f"/{c}/image/compressed"), "the cameras to be found again", node
        )
    bench.send_set(next(STAMPS), good)
    bench.wait(lambda: len(clouds) == 2, "a cloud after the second activation", node)
    for transition, state in ((DEACTIVATE, "inactive"), (CLEANUP, "unconfigured"), (CONFIGURE, "inactive")):
        assert change_state(bench, transition)
        assert state_of(bench) == state
    assert not change_state(bench, DEACTIVATE)  # not possible from here, and nothing breaks
    assert state_of(bench) == "inactive"
    assert node.stop() == 0
    assert "2 frames in, 2 sweeps out, 0 dropped" in node.tail()


def test_an_exception_in_a_transition_is_reported(bench) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    found = bench.listen("/diagnostics", DiagnosticArray)
    node = bench.start_node({"autostart": "false"}, active=False, STUB_RAISE_AT="0")  # the warm-up
    bench.wait(lambda: bench.statistics(node), "the node to answer", node)
    assert not change_state(bench, CONFIGURE)
    assert state_of(bench) == "unconfigured"
    assert "loading the model: ZeroDivisionError: injected\nTraceback" in node.log.read_text()
    bench.wait(
        lambda: any("ZeroDivisionError" in s.message and s.level == b"\x02" for m in found for s in m.status),
        "an ERROR in the diagnostics",
        node,
    )
    assert change_state(bench, CONFIGURE)  # only the first one fails
    assert bench.statistics(node)["trouble"] == ""


def test_building_is_a_state_and_cleanup_gives_the_memory_back(bench) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    found = bench.listen("/diagnostics", DiagnosticArray)
    settings = {"autostart": "false", "diagnostics_period": 0.2}
    node = bench.start_node(settings, active=False, STUB_MEMORY_MB="300", STUB_BUILD_S="1.0")
    memory = lambda: bench.statistics(node)["machine"]["resident_mb"]  # noqa: E731
    bench.wait(lambda: bench.statistics(node), "the node to answer", node)
    empty = memory()
    assert change_state(bench, CONFIGURE)
    assert memory() > empty + 290
    said = [s.message for m in found for s in m.status if s.name == "lidargen: node"]
    assert any(message.startswith("BUILDING: building engine of the stub (") for message in said)
    assert change_state(bench, CLEANUP)
    assert memory() < empty + 60  # what remains was imported, or belongs to DDS
    assert "the model is freed: host memory" in node.log.read_text()


def test_the_model_rests_while_nobody_listens_and_deactivation_ends_within_the_frame_at_hand(bench) -> None:
    node = bench.start_node(STUB_DELAY_S="0.4")
    for _ in range(3):
        bench.send_set(next(STAMPS), good)
    assert bench.settled(node, 3)["dropped_by_reason"] == {"no_subscriber": 3}
    clouds = listening(bench, node)
    for _ in range(3):
        bench.send_set(next(STAMPS), good)
        bench.spin(0.05)
    bench.wait(lambda: bench.statistics(node)["in_flight"], "a frame to be in flight", node)
    start = time.monotonic()
    assert change_state(bench, DEACTIVATE)
    assert time.monotonic() - start < 2.0
    books = bench.statistics(node)
    assert books["in_flight"] == 0
    assert books["frames_in"] == books["sweeps_out"] + books["dropped"] == 6
    bench.spin(0.3)
    assert len(clouds) == books["sweeps_out"] >= 1


def set_parameters(bench, **values) -> list:
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    request = SetParameters.Request(
        parameters=[Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
    )
    return bench.call(SetParameters, "/lidargen/set_parameters", request, timeout_s=10.0).results


def test_parameters_change_while_it_runs_or_are_refused_with_a_reason(bench) -> None:
    node = bench.start_node(
        {"sync_tolerance": 0, "return_threshold": 1}
    )  # whole numbers where floats are wanted
    clouds = listening(bench, node)
    for values, check in (
        ({"point_type": "ouster"}, lambda c: c.point_step == 48),
        ({"point_type": "velodyne"}, lambda c: (c.point_step, c.height, c.width) == (22, 1800, 128)),
        (
            {"point_type": "xyzi", "organised": False},
            lambda c: (c.height, c.point_step, c.is_dense) == (1, 16, True),
        ),
        ({"frame_id": "roof"}, lambda c: c.header.frame_id == "roof"),
        ({"max_range": 12}, lambda c: c.width == 0),  # the stub's walls are at 15 m
    ):
        assert all(r.successful for r in set_parameters(bench, **values))
        stamp = next(STAMPS)
        bench.send_set(stamp, good)
        bench.wait(lambda s=stamp: s in stamps_of(clouds), "a cloud", node)
        assert check(clouds[-1]), values
    for values, reason in (
        ({"point_type": "pcl"}, "'pcl'; choose one of"),
        ({"sync_tolerance": 5.0}, "sync_tolerance"),
        ({"sync_tolerance": "wide"}, "must be of type float"),
        ({"min_range": 100.0}, "'min_range' (100) must not exceed 'max_range' (12)"),
        ({"bundle": "other"}, "read-only"),
        ({"rig": "/nowhere.yaml"}, "cannot be read"),
    ):
        (result,) = set_parameters(bench, **values)
        assert not result.successful
        assert reason in result.reason


def test_a_new_rig_while_it_runs_drops_nothing(bench, tmp_path) -> None:
    from std_msgs.msg import String
    from stub_node import rig

    node = bench.start_node(STUB_RIG_S="0.7")
    clouds = listening(bench, node)
    metadata = bench.listen("/metadata", String, latched=True)
    path = tmp_path / "moved.yaml"
    rig().save(path)
    path.write_text(path.read_text().replace("300.0", "310.0"))
    sent = []

    def frame() -> None:
        sent.append(next(STAMPS))
        bench.send_set(sent[-1], good)
        bench.wait(lambda: len(clouds) == len(sent), "its cloud", node)

    frame()
    assert all(r.successful for r in set_parameters(bench, rig=str(path)))
    focal = lambda: json.loads(metadata[-1].data)["rig"]["views"][0]["camera"]["fx"] if metadata else 0  # noqa: E731
    while focal() != 310.0:
        frame()
    assert len(sent) >= 4  # they did not wait for the new maps
    frame()
    assert stamps_of(clouds) == sent
    assert bench.settled(node, len(sent))["dropped"] == 0


def test_calibration_from_camera_info(bench) -> None:
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo

    node = bench.start_node({"calibration": "camera_info"})
    clouds = listening(bench, node)
    publishers = {
        c: bench.node.create_publisher(CameraInfo, f"/{c}/camera_info", QoSProfile(depth=5)) for c in CAMERAS
    }
    bench.wait(
        lambda: all(p.get_subscription_count() for p in publishers.values()), "the subscriptions", node
    )

    def inform(camera: str, focal: float) -> None:
        info = CameraInfo(width=640, height=352, distortion_model="plumb_bob", d=[0.0] * 5)
        info.k = [focal, 0.0, 319.5, 0.0, focal, 175.5, 0.0, 0.0, 1.0]
        publishers[camera].publish(info)

    bench.send_set(next(STAMPS), good)
    assert bench.settled(node, 1)["dropped_by_reason"] == {"no_calibration": 1}
    text = node.log.read_text()
    assert "until there is a calibration: no usable front/camera_info yet; no usable rear_left" in text

    def named() -> bool:
        inform("front", float("nan"))
        bench.spin(0.1)
        return "/front/camera_info" in node.log.read_text().split("dropped")[-1]

    bench.wait(named, "the message that names the topic", node)

    def cloud() -> list:
        for camera in CAMERAS:
            inform(camera, 305.0)
        bench.send_set(next(STAMPS), good)
        bench.spin(0.1)
        return clouds

    bench.wait(cloud, "a cloud once every camera is known", node)
    books = bench.statistics(node)
    assert books["events"]["calibrations"] == 1
    assert books["events"]["bad_calibration:front"] >= 1
    count = len(clouds)
    inform("front", float("nan"))  # what was known stays in use
    bench.send_set(next(STAMPS), good)
    bench.wait(lambda: len(clouds) > count, "a cloud in spite of a later NaN", node)


def informed(bench):
    """A CameraInfo publisher per camera, found by the node, and a function that sends one of each."""
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo

    publishers = {
        c: bench.node.create_publisher(CameraInfo, f"/{c}/camera_info", QoSProfile(depth=5)) for c in CAMERAS
    }
    bench.wait(lambda: all(p.get_subscription_count() for p in publishers.values()), "the subscriptions")

    def inform(stamp_ns: int) -> None:
        for camera, publisher in publishers.items():
            info = CameraInfo(width=640, height=352, distortion_model="plumb_bob", d=[0.0] * 5)
            info.header = header(stamp_ns, f"{camera}_optical")
            info.k = [305.0, 0.0, 319.5, 0.0, 305.0, 175.5, 0.0, 0.0, 1.0]
            publisher.publish(info)

    return inform


def test_poses_from_tf_are_waited_for_and_followed(bench, tmp_path) -> None:
    from std_msgs.msg import String

    poses = tmp_path / "poses.json"
    known = {f"{c}_optical": [0.1 * i, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5] for i, c in enumerate(CAMERAS)}
    poses.write_text(json.dumps({k: v for k, v in known.items() if k != "rear_left_optical"}))
    paths = os.pathsep.join(filter(None, (str(FAKE_TF), bench.env.get("PYTHONPATH"))))
    node = bench.start_node({"calibration": "tf"}, PYTHONPATH=paths, FAKE_TF=str(poses))
    clouds = listening(bench, node)
    metadata = bench.listen("/metadata", String, latched=True)
    inform = informed(bench)

    def drive() -> None:
        stamp = next(STAMPS)
        inform(stamp)
        bench.send_set(stamp, good)
        bench.spin(0.1)

    def named() -> bool:
        drive()
        return 'TF has no transform from rear_left_optical to lidar: "rear_left' in node.log.read_text()

    bench.wait(named, "the missing frame to be named", node)
    assert not clouds
    poses.write_text(json.dumps(known))
    bench.wait(lambda: drive() or clouds, "a cloud once every pose is known", node)
    place = lambda: json.loads(metadata[-1].data)["rig"]["views"][1]["camera_to_lidar"][0][3]  # noqa: E731
    bench.wait(lambda: place() == 0.1, "the pose of TF in the metadata", node)
    before = bench.statistics(node)["dropped"]
    known["rear_left_optical"][0] = 0.7
    poses.write_text(json.dumps(known))
    bench.wait(lambda: drive() or place() == 0.7, "the moved camera in the metadata", node)
    assert bench.settled(node, 0)["dropped"] == before


# --- flow ------------------------------------------------------------------------------------------------------------


def test_a_slow_node_takes_the_newest_and_counts_the_rest(bench) -> None:
    node = bench.start_node(STUB_DELAY_S="0.3")
    clouds = listening(bench, node)
    sent = []
    for _ in range(20):
        sent.append(next(STAMPS))
        bench.send_set(sent[-1], good)
        bench.spin(0.05)
    now = bench.settled(node, 20)
    assert now["sweeps_out"] + now["dropped_by_reason"]["replaced"] == 20
    assert 2 <= now["sweeps_out"] <= 8
    bench.wait(lambda: len(clouds) == now["sweeps_out"], "every published cloud", node)
    assert stamps_of(clouds) == sorted(stamps_of(clouds))
    assert stamps_of(clouds)[-1] == sent[-1]  # the newest one wins


def test_a_deadline_drops_early(bench) -> None:
    node = bench.start_node({"deadline": 0.5})
    listening(bench, node)
    bench.send_set(next(STAMPS), good)  # years old
    assert bench.settled(node, 1)["dropped_by_reason"] == {"too_old": 1}
    assert "deadline is 0.5 s" in node.log.read_text()
    bench.send_set(time.time_ns(), good)
    assert bench.settled(node, 2)["sweeps_out"] == 1


def test_failures_of_the_engine_cost_their_frame_only(bench) -> None:
    node = bench.start_node(STUB_FAIL_AT="1,4", STUB_RAISE_AT="6")
    clouds = listening(bench, node)
    for i in range(1, 11):
        bench.send_set(next(STAMPS), good)
        bench.settled(node, i)
    now = bench.settled(node, 10)
    assert now["dropped_by_reason"] == {"engine": 2, "failed": 1}
    bench.wait(lambda: len(clouds) == 7, "seven clouds", node)
    text = node.log.read_text()
    assert "the engine failed on a frame: out of memory (injected)" in text
    assert "ZeroDivisionError: injected; the frame is dropped\nTraceback" in text
    assert node.stop() == 0


def test_an_engine_that_is_lost_for_good_ends_in_the_error_state_and_then_the_process(bench) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    found = bench.listen("/diagnostics", DiagnosticArray)
    node = bench.start_node({"give_up_after": 3}, STUB_FAIL_AT=",".join(str(i) for i in range(1, 100)))
    listening(bench, node)

    def ended() -> bool:
        bench.send_set(next(STAMPS), good)
        bench.spin(0.1)
        return not node.running

    bench.wait(ended, "the node to give up")
    assert node.wait(1.0) == 1
    reason = "frames in a row failed on the engine, the last with: out of memory (injected)"
    assert reason in node.log.read_text().split("deactivating: RuntimeError: ")[1].splitlines()[0]

    def told() -> bool:
        last = next(s for s in found[-1].status if s.name == "lidargen: node")
        return reason in last.message and last.level == b"\x02"

    bench.wait(told, "the reason in /diagnostics")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_shutdown_while_a_frame_is_in_flight_publishes_it(bench, number) -> None:
    node = bench.start_node(STUB_DELAY_S="1.0")
    clouds = listening(bench, node)
    stamp = next(STAMPS)
    bench.send_set(stamp, good)
    bench.wait(lambda: bench.statistics(node)["in_flight"] == 1, "the frame to be in flight", node)
    node.signal(number)
    bench.wait(lambda: clouds, "the last cloud")
    assert stamps_of(clouds) == [stamp]
    assert node.wait(20.0) == 0
    assert "1 frames in, 1 sweeps out, 0 dropped" in node.tail()
    assert "Traceback" not in node.log.read_text()


def test_killed_and_restarted_the_cameras_never_notice(bench) -> None:
    node = bench.start_node()
    clouds = listening(bench, node)
    bench.send_set(next(STAMPS), good)
    bench.wait(lambda: clouds, "a cloud", node)
    segments = shared_memory_of(node.pid)
    assert segments
    node.signal(signal.SIGKILL)
    assert node.wait(10.0) == -signal.SIGKILL
    assert remove_abandoned(segments)
    again = bench.start_node()
    count = len(clouds)

    def cloud() -> bool:
        bench.send_set(next(STAMPS), good)
        bench.spin(0.1)
        return len(clouds) > count

    bench.wait(cloud, "a cloud of the second node", again)
    segments = shared_memory_of(again.pid)
    assert again.stop() == 0
    own = {s for s in segments if not remaining_users(s)}
    assert not any(Path("/dev/shm", s).exists() for s in own)


def remaining_users(segment: str) -> bool:
    """Whether this test process itself uses it (as the other end)."""
    return segment in shared_memory_of(os.getpid())


def test_two_nodes_in_one_namespace_both_publish_and_name_each_other(bench) -> None:
    first = bench.start_node()
    clouds = listening(bench, first)
    command = [sys.executable, str(HERE / "stub_node.py"), "--ros-args", "-r", "__node:=second"]
    second = bench.start("second", command)

    def both() -> bool:
        stamp = next(STAMPS)
        bench.send_set(stamp, good)
        bench.spin(0.3)
        return stamps_of(clouds).count(stamp) == 2

    bench.wait(both, "the cloud of each node", second)
    said = "/points: another node publishes there as well, or was killed seconds ago; stop one"
    for node in (first, second):
        bench.wait(lambda n=node: said in n.log.read_text(), "the other node to be named", node)


def test_a_clock_that_jumps_back_starts_anew(bench) -> None:
    from rclpy.qos import QoSProfile
    from rosgraph_msgs.msg import Clock

    node = bench.start_node({"use_sim_time": "true"})
    clouds = listening(bench, node)
    clock = bench.node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
    bench.wait(clock.get_subscription_count, "the node to listen to the clock", node)

    def tick(seconds: int) -> None:
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        bench.spin(0.05)

    def said() -> bool:
        for seconds in (2000, 2001, 1000):
            tick(seconds)
        return "the clock went backwards" in node.log.read_text()

    bench.wait(said, "the message", node)
    bench.send_set(1000_100_000_000, good)
    bench.wait(lambda: clouds, "a cloud in the new time", node)
    assert np.isfinite(bench.statistics(node)["age_ms"]["p50"])
