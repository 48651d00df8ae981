# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room of the test suite shares."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from lidargen_ros.ros import compat

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "test" / "golden"

# Shared machines make single calls slow now and then: no time limit per example.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    """Workers of ``pytest -n`` start with the environment of ROS processes: the ROS wheels would re-execute them."""
    if getattr(config.option, "numprocesses", None):
        os.environ.update(compat.process_environment(tuned=False))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """``golden("dit/config.json")``: path of a reference vector, or a skip that says what is absent.

    The folder is ``LIDARGEN_GOLDEN`` (default ``../shared/golden``); a small part of it lies in
    ``test/golden`` so that every clone proves parity. A file is looked up in the first folder that has it,
    except that a folder named by ``LIDARGEN_GOLDEN`` is never mixed with the bundled part.
    """
    named = os.environ.get("LIDARGEN_GOLDEN")
    folders = [Path(named)] if named else [ROOT.parent / "shared" / "golden", BUNDLED]

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"golden file {name} is not in {' or '.join(map(str, folders))} (set LIDARGEN_GOLDEN)")

    return find


@pytest.fixture
def bench(tmp_path):
    """A fresh bench on a domain of its own."""
    pytest.importorskip("rclpy", reason="rclpy is not installed (pip install 'lidargen_ros[ros]')")
    from dds import Bench

    made = Bench(tmp_path)
    yield made
    made.close()
