# SPDX-License-Identifier: Apache-2.0
"""docs/faults.md names the test of every fault; each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = {
        name
        for path in (ROOT / "test").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) >= 16
    assert named <= written, named - written
