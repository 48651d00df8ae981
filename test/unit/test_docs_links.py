# SPDX-License-Identifier: Apache-2.0
"""What README and docs point to exists: files behind relative links, scripts, modules, subcommands of ``lidargen``."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from lidargen_ros.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "requirements" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files(page) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [t for t in links if "://" not in t and not (page.parent / t).exists()] == []


def named(pattern: str) -> set[str]:
    found = {name for page in PAGES for name in re.findall(pattern, page.read_text())}
    assert found, pattern
    return found


def test_scripts_exist() -> None:
    assert {s for s in named(r"\bpython3? ((?:\w+/)+\w+\.py)\b") if not (ROOT / s).is_file()} == set()


def test_modules_exist_and_can_be_run() -> None:
    """Looked up as files: importing them would need every optional package."""

    def runs(module: str) -> bool:
        path = ROOT / module.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        return file.is_file() and "__main__" in file.read_text()

    modules = {
        m for m in named(r"\bpython3? -m ([\w.]+\w)") if m.split(".")[0] in ("lidargen_ros", "training")
    }
    assert modules
    assert {m for m in modules if not runs(m)} == set()


def test_subcommands_exist() -> None:
    used = named(r"(?m)(?:`|^)lidargen ([a-z][a-z-]*)")
    assert used - set(get_command(app).commands) == set()
