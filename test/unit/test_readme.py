# SPDX-License-Identifier: Apache-2.0
"""What the README shows runs: the six lines of Python, with the bundle named there."""

import re
from pathlib import Path

import cv2
import numpy as np

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_lines_of_python_make_a_sweep_from_three_pictures(tmp_path, monkeypatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names = re.search(r"for name in \((.*?)\)", code)[1]
    for name in re.findall(r'"(\w+)"', names):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), np.full((72, 128, 3), 90, np.uint8))
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(compile(code, README.name, "exec"), space)
    sweep = space["sweep"]
    assert sweep.range_map.shape == sweep.returns.shape == (128, 1800)
    assert sweep.points().shape == (sweep.returns.sum(), 3)
    assert "(128, 1800)" in capsys.readouterr().out


def test_the_command_of_the_first_screen_runs_the_bundle_of_the_text() -> None:
    makefile = (README.parent / "Makefile").read_text()
    (bundle,) = re.findall(r"^BUNDLE \?= (\w+)$", makefile, re.M)
    text = README.read_text()
    assert f"bundle, `{bundle}`" in text
    assert f'from_bundle("{bundle}")' in text
