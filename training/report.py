# SPDX-License-Identifier: Apache-2.0
"""``report.md`` of a run: how every logged number went, the last validation, and its pictures.

A run folder holds ``curve.jsonl`` (one JSON object a line: ``samples``, ``seconds``, and named values),
``config.yaml``, and ``pictures/*.jpg`` whose names begin with the number of samples.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidargen_ros.errors import DataError, LidargenError
from lidargen_ros.pictures import INK, MUTED, PAPER, save_picture

CURVE, REPORT, CURVES = "curve.jsonl", "report.md", "curves.png"
_AXES = ("samples", "seconds")
_FONT, _LINE, _MEAN = cv2.FONT_HERSHEY_SIMPLEX, (58, 92, 140), (88, 166, 255)
_PANEL_HW, _PER_LINE, _SMOOTH_OVER = (220, 440), 3, 40  # more points than this also get a running mean


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Rows of ``curve.jsonl``; a last line that was cut off by a kill is left out.

    Raises:
        DataError: no such file, or another line is damaged.
    """
    path = folder / CURVE
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the folder of a training run")
    rows, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is damaged ({error}); remove it") from error
    return rows


def series(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray]:
    """Name -> ``[n, 2]`` of samples and value, in the order in which names appear; only finite numbers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _AXES and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, []).append((row["samples"], value))
    return {name: np.array(points, np.float64) for name, points in found.items()}


def curves_picture(named: Mapping[str, NDArray]) -> NDArray:
    """One panel per name: its values over samples, RGB uint8; a running mean over noisy ones."""
    height, width = _PANEL_HW
    lines = -(-len(named) // _PER_LINE)
    page = np.full((max(1, lines) * height, _PER_LINE * width, 3), PAPER, np.uint8)
    last = max((float(points[-1, 0]) for points in named.values()), default=1.0)
    for number, (name, points) in enumerate(named.items()):
        row, column = divmod(number, _PER_LINE)
        panel = page[row * height : (row + 1) * height, column * width : (column + 1) * width]
        _panel(panel, name, points, last)
    return page


def _panel(panel: NDArray, name: str, points: NDArray, last: float) -> None:
    height, width = panel.shape[:2]
    left, right, top, bottom = 64, width - 14, 34, height - 28
    low, high = float(points[:, 1].min()), float(points[:, 1].max())
    span = (high - low) or max(abs(high), 1.0)
    low = low if high > low else low - span / 2

    def place(values: NDArray) -> NDArray:
        x = left + values[:, 0] / max(last, 1.0) * (right - left)
        y = bottom - (values[:, 1] - low) / span * (bottom - top)
        return np.rint(np.stack([x, y], -1)).astype(np.int32)[:, None]

    cv2.rectangle(panel, (left, top), (right, bottom), (48, 56, 68), 1)
    noisy = len(points) > _SMOOTH_OVER
    cv2.polylines(panel, [place(points)], False, _LINE if noisy else _MEAN, 1, cv2.LINE_AA)
    if noisy:
        size = len(points) // 20 | 1
        padded = np.pad(points[:, 1], size // 2, mode="edge")
        smooth = np.convolve(padded, np.full(size, 1 / size), mode="valid")
        cv2.polylines(panel, [place(np.stack([points[:, 0], smooth], -1))], False, _MEAN, 2, cv2.LINE_AA)
    elif len(points) == 1:
        cv2.circle(panel, place(points)[0, 0].tolist(), 3, _MEAN, -1, cv2.LINE_AA)
    cv2.putText(panel, f"{name}   {points[-1, 1]:.4g}", (10, 22), _FONT, 0.5, INK, 1, cv2.LINE_AA)
    for value, y in ((low + span, top + 10), (low, bottom)):
        cv2.putText(panel, f"{value:.3g}", (6, y), _FONT, 0.38, MUTED, 1, cv2.LINE_AA)
    cv2.putText(panel, "0", (left, bottom + 16), _FONT, 0.38, MUTED, 1, cv2.LINE_AA)
    cv2.putText(panel, f"{last:.0f} samples", (right - 100, bottom + 16), _FONT, 0.38, MUTED, 1, cv2.LINE_AA)


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and ``curves.png`` into a run folder; returns the path of the report.

    Raises:
        DataError: the folder has no curve, or an empty one.
    """
    rows = read_curve(folder)
    named = series(rows)
    if not named:
        raise DataError(f"{folder / CURVE} holds no numbers yet; let the run go on")
    save_picture(folder / CURVES, curves_picture(named))
    final = max(float(points[-1, 0]) for points in named.values())
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    text = [f"# {folder.name}", "", f"{final:.0f} samples in {seconds:.0f} s.", ""]
    text += ["| number | first | smallest | largest | last | at samples |", "|---|---|---|---|---|---|"]
    for name, points in named.items():
        values = points[:, 1]
        cells = (values[0], values.min(), values.max(), values[-1])
        text.append(f"| {name} | {' | '.join(f'{v:.4g}' for v in cells)} | {points[-1, 0]:.0f} |")
    text += ["", f"![Curves]({CURVES})", ""]
    if pictures := last_pictures(folder):
        text += ["## Validation frames: true, made, error", ""]
        text += [f"![{path.stem}](pictures/{path.name})" for path in pictures] + [""]
    config = folder / "config.yaml"
    if config.is_file():
        text += ["## Configuration", "", "```yaml", config.read_text().rstrip(), "```", ""]
    (folder / REPORT).write_text("\n".join(text))
    return folder / REPORT


def last_pictures(folder: Path) -> list[Path]:
    """The pictures of the newest validation in ``folder/pictures``; names begin with the samples seen."""
    numbered: dict[int, list[Path]] = {}
    for path in sorted((folder / "pictures").glob("*.jpg")):
        if match := re.match(r"\d+", path.name):
            numbered.setdefault(int(match[0]), []).append(path)
    return numbered[max(numbered)] if numbered else []


if __name__ == "__main__":
    try:
        print(write_report(Path(sys.argv[1])))
    except LidargenError as problem:
        sys.exit(f"error: {problem}")
