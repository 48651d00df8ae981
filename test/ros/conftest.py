# SPDX-License-Identifier: Apache-2.0
"""Tests of this room start real processes over DDS; without ROS they are skipped."""

import pytest


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "bench" in getattr(item, "fixturenames", ()) or "running" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.dds)
