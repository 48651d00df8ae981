# SPDX-License-Identifier: Apache-2.0
"""Faults over DDS: one node and its cameras for the whole folder; docs/faults.md tells what a user sees of each."""

import pytest


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if {"road", "bench"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.dds)


@pytest.fixture(scope="session")
def road(tmp_path_factory):
    """Node, cameras and listener; the engine fails on the thousandth frame of the node's life."""
    pytest.importorskip("rclpy", reason="rclpy is not installed (pip install 'lidargen_ros[ros]')")
    from road import Road

    with Road(tmp_path_factory.mktemp("road"), STUB_FAIL_AT="1000") as made:
        yield made
