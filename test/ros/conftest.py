# SPDX-License-Identifier: Apache-2.0
"""Tests of this room start real processes over DDS; without ROS they are skipped."""

import pytest


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "bench" in getattr(item, "fixturenames", ()) or "running" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.dds)


@pytest.fixture
def bench(tmp_path):
    """A fresh bench on a domain of its own."""
    pytest.importorskip("rclpy", reason="rclpy is not installed (pip install 'lidargen_ros[ros]')")
    from dds import Bench

    made = Bench(tmp_path)
    yield made
    made.close()
