# SPDX-License-Identifier: Apache-2.0
"""Configuration files for viewers and DDS: they parse, and name what the node really publishes."""

import ast
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from lidargen_ros.resources import config_path

ROOT = Path(__file__).resolve().parents[2]
TOPICS = {"/points", "/range_image", "/intensity_image", "/preview", "/diagnostics"}


def test_the_foxglove_layout_shows_the_topics_of_the_node() -> None:
    layout = json.loads(config_path("foxglove_layout.json").read_text())
    shown = set(layout["configById"]["3D!clouds"]["topics"])
    for panel in layout["configById"].values():
        shown.add(panel.get("imageMode", {}).get("imageTopic"))
        shown.add(panel.get("topicToRender"))
    assert shown >= TOPICS

    def panels(node) -> set:
        return {node} if isinstance(node, str) else panels(node["first"]) | panels(node["second"])

    assert panels(layout["layout"]) == set(layout["configById"])


def test_the_rviz_config_shows_the_topics_of_the_node() -> None:
    config = yaml.safe_load(config_path("lidargen.rviz").read_text())["Visualization Manager"]
    shown = {d["Topic"]["Value"] for d in config["Displays"] if "Topic" in d}
    assert shown == {"/points", "/range_image"}
    assert config["Global Options"]["Fixed Frame"] == "lidar"


@pytest.mark.parametrize("name", ["fastdds.xml", "fastdds_loopback.xml"])
def test_the_dds_profile_has_a_large_segment_and_no_builtin_transports(name) -> None:
    space = {"d": "http://www.eprosima.com"}
    root = ET.parse(config_path(name)).getroot()
    described = {
        t.findtext("d:transport_id", None, space): t
        for t in root.iter(f"{{{space['d']}}}transport_descriptor")
    }
    participant = root.find(".//d:participant", space)
    assert participant.get("is_default_profile") == "true"
    assert participant.findtext(".//d:useBuiltinTransports", None, space) == "false"
    used = [t.text for t in participant.findall(".//d:userTransports/d:transport_id", space)]
    assert set(used) == set(described)
    shm = next(t for t in described.values() if t.findtext("d:type", None, space) == "SHM")
    assert int(shm.findtext("d:segment_size", None, space)) == 64 << 20
    udp = next(t for t in described.values() if t.findtext("d:type", None, space) == "UDPv4")
    addresses = [a.text for a in udp.findall(".//d:address", space)]
    assert addresses == (["127.0.0.1"] if "loopback" in name else [])


def imported(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a file, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_package_xml_declares_the_ros_packages_that_are_imported() -> None:
    """Message packages and the client library; the rest comes from pip or is looked for with ``compat.optional``."""
    declared = {tag.text for tag in ET.parse(ROOT / "package.xml").getroot() if tag.tag.endswith("depend")}
    used = set().union(
        *(imported(p) for room in ("lidargen_ros", "launch") for p in (ROOT / room).rglob("*.py"))
    )
    ros = {
        n
        for n in used
        if n.endswith(("_msgs", "_srvs", "_interfaces")) or n in ("rclpy", "launch", "launch_ros")
    }
    assert len(ros) >= 8
    assert ros - declared == set()
