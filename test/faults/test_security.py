# SPDX-License-Identifier: Apache-2.0
"""The SROS 2 policy allows what the processes open, and nothing more; no port but those of DDS."""

import contextlib
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import FAKE_TF
from drives import write_drive

from lidargen_ros.resources import config_path
from lidargen_ros.ros import compat

POLICY = config_path("security/lidargen.policy.xml")
KINDS = {
    ("topic", "subscribe"): "get_subscriber_names_and_types_by_node",
    ("topic", "publish"): "get_publisher_names_and_types_by_node",
    ("service", "reply"): "get_service_names_and_types_by_node",
    ("service", "request"): "get_client_names_and_types_by_node",
}
# Only in a ROS distribution, by parameter, or in other bags.
ELSEWHERE = {
    "lidargen": {"/lidargen/get_type_description"},
    "lidargen_player": {
        *(f"/{c}/{t}" for c in ("front", "rear_left", "rear_right") for t in ("image", "camera_info")),
        "/tf",
        "/tf_static",
        "/lidargen_player/get_type_description",
    },
    "lidargen_recorder": {"/lidargen_recorder/get_type_description"},
}


def allowed(node: str) -> dict[tuple[str, str], set[str]]:
    """Full names by kind and rule."""
    profile = ET.parse(POLICY).find(f".//profile[@node='{node}']")
    assert profile.get("ns") == "/"
    found = {}
    for kind, rule in KINDS:
        lists = profile.findall(f"{kind}s[@{rule}='ALLOW']")
        texts = [e.text.strip() for group in lists for e in group]
        found[kind, rule] = {
            f"/{node}{t[1:]}" if t.startswith("~") else t if t.startswith("/") else f"/{t}" for t in texts
        }
    return found


def opened(bench, node: str) -> dict[tuple[str, str], set[str]]:
    """What the graph says that the node has; nothing before it has been found."""
    if node not in bench.node.get_node_names():
        return {key: set() for key in KINDS}
    return {key: {n for n, _ in getattr(bench.node, ask)(node, "/")} for key, ask in KINDS.items()}


@pytest.fixture
def processes(bench, tmp_path):
    """Node, player and recorder; the player waits for more listeners than there are.

    The node takes its poses from TF, which opens the most; tf2_ros is a double that opens the names of the real one.
    """
    drive = write_drive(tmp_path / "drive", frames=2)
    player = compat.module_command(
        "lidargen_ros.ros.player", str(drive), "--window", "1", "--subscribers", "9"
    )
    recorder = compat.module_command("lidargen_ros.ros.recorder", str(tmp_path / "bag"))
    paths = os.pathsep.join(filter(None, (str(FAKE_TF), bench.env.get("PYTHONPATH"))))
    started = {
        "lidargen_player": bench.start("player", player),
        "lidargen_recorder": bench.start("recorder", recorder),
        "lidargen": bench.start_node({"calibration": "tf", "use_sim_time": "true"}, PYTHONPATH=paths),
    }
    return bench, started


def test_the_policy_is_what_the_processes_open(processes) -> None:
    bench, started = processes
    for name, child in started.items():
        policy = allowed(name)
        needed = {key: names - ELSEWHERE[name] for key, names in policy.items()}

        def complete(name=name, needed=needed) -> bool:
            there = opened(bench, name)
            return all(names <= there[key] for key, names in needed.items())

        try:
            bench.wait(complete, f"{name} to open what it may", child, timeout_s=15.0)
        finally:
            there = opened(bench, name)
            missing = {key: names - there[key] for key, names in needed.items()}
            more = {key: names - policy[key] for key, names in there.items()}
        assert not any(missing.values()), missing
        assert not any(more.values()), more

    for child in started.values():
        assert tcp_sockets(child.pid) == []


def test_sros2_makes_permissions_of_the_policy() -> None:
    policy = pytest.importorskip(
        "sros2.policy", reason="sros2 is not installed (not on PyPI; ros-DISTRO-sros2)"
    )
    from lxml import etree

    to_permissions = etree.XSLT(etree.parse(str(policy.get_transport_template("dds", "permissions.xsl"))))
    schema = etree.XMLSchema(etree.parse(str(policy.get_transport_schema("dds", "permissions.xsd"))))
    permissions = to_permissions(policy.load_policy(POLICY))
    schema.assertValid(permissions)
    grants = {g.get("name") for g in permissions.iter("grant")}
    assert grants == {"/lidargen/node", "/lidargen/player", "/lidargen/recorder"}


def tcp_sockets(pid: int) -> list[str]:
    """Addresses of the TCP sockets of a process; DDS as shipped uses UDP and shared memory."""
    mine = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the folder was listed
            target = os.readlink(link)
            if target.startswith("socket:["):
                mine.add(target[8:-1])
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        if (path := Path(f"/proc/{pid}/net/{table}")).is_file()
        for line in path.read_text().splitlines()[1:]
    ]
    return [fields[1] for fields in lines if fields[9] in mine]
