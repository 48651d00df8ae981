# SPDX-License-Identifier: Apache-2.0
"""``ablations.json``, ``ablations.md`` and ``ablations.png`` of a run: a table and a picture of curves per question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidargen_ros.colour import colours, to_uint8
from lidargen_ros.files import replacing
from lidargen_ros.pictures import INK, MUTED, PAPER, save_picture

from .variants import QUESTIONS, Question

CURVE = "abs_rel_seen"
HEADS = {
    "abs_rel_seen": "AbsRel, seen", "mae_m_seen": "MAE seen, m", "mae_m_unseen": "MAE unseen, m",
    "return_accuracy": "returns right", "return_auroc": "AUROC", "mae_m_seam": "MAE at the seam, m",
    "abs_rel_seam": "AbsRel at the seam", "drawn_mae_m": "MAE of a drawn sweep, m",
    "drawn_spread_m_unseen": "spread of draws unseen, m", "drawn_coverage_50_unseen": "truth in their central 50 %, unseen",
}  # fmt: skip
COMMON = ("abs_rel_seen", "mae_m_seen", "mae_m_unseen", "return_accuracy", "return_auroc")
_FONT, _PANEL_HW, _PER_LINE = cv2.FONT_HERSHEY_SIMPLEX, (300, 560), 2


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """``result["variants"]``: what was found of each variant, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "ablations.json") as file:
        file.write_text(json.dumps(result, indent=1))
    with replacing(folder / "ablations.md") as file:
        file.write_text(tables(result))
    save_picture(folder / "ablations.png", picture(result["variants"]))


def tables(result: Mapping[str, Any]) -> str:
    found: dict[str, Any] = result["variants"]
    setup = result["setup"]
    text = [
        f"`{result['command']}` ({result['machine']}, torch {result['torch']}, commit {result['commit']}): {result['samples']} "
        f"samples per variant, {setup['scenes']} synthetic scenes, {setup['held_out']} held-out ones.",
    ]
    for question in QUESTIONS:
        names = [name for name in question.variants if name in found]
        if len(names) < 2:
            continue
        keys = [*COMMON, *question.figures]
        text += [
            "",
            f"## {question.text}",
            "",
            row(["", *(HEADS[k] for k in keys), "M parameters", "ms per sample"]),
        ]
        text.append("|" + "---|" * (len(keys) + 3))
        text += [variant_row(found[name]["says"], found[name], keys) for name in names]
        text += [
            variant_row(f"the tokenizer alone ({name})", found[name]["tokenizer"], keys)
            for name in names
            if "tokenizer" in found[name]
        ]
        text.append(variant_row("best constant map", {"figures": result["constant_map"]}, keys))
    if result["left_out"]:
        text += ["", "Left out: " + "; ".join(result["left_out"].values()) + "."]
    return "\n".join(text) + "\n"


def variant_row(says: str, found: Mapping[str, Any], keys: list[str]) -> str:
    values = [found["figures"].get(k) for k in keys]
    cells = ["-" if v is None else f"{v:.3f}" for v in values]
    size = f"{found['parameters'] / 1e6:.2f}" if "parameters" in found else "-"
    pace = f"{found['milliseconds_per_sample']:.2f}" if "parameters" in found else "-"
    return row([says, *cells, size, pace])


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def picture(found: Mapping[str, Any]) -> NDArray:
    """A panel per question: how the held-out AbsRel of its variants fell, all on one scale; RGB uint8."""
    asked = [q for q in QUESTIONS if any(name in found for name in q.variants)]
    height, width = _PANEL_HW
    page = np.full((max(1, -(-len(asked) // _PER_LINE)) * height, _PER_LINE * width, 3), PAPER, np.uint8)
    lines = {
        name: f["held_out_while_training"]
        for name, f in found.items()
        if CURVE in f["held_out_while_training"]
    }
    for number, question in enumerate(asked):
        line, column = divmod(number, _PER_LINE)
        panel = page[line * height : (line + 1) * height, column * width : (column + 1) * width]
        draw_panel(panel, question, lines)
    return page


def draw_panel(panel: NDArray, question: Question, lines: Mapping[str, Mapping[str, list[float]]]) -> None:
    height, width = panel.shape[:2]
    left, right, top, bottom = 58, width - 16, 44, height - 30
    values = np.concatenate([line[CURVE] for line in lines.values()] or [[0.0, 1.0]])
    low, high = 0.9 * float(values.min()), float(np.quantile(values, 0.95)) * 1.05
    last = max((line["samples"][-1] for line in lines.values()), default=1.0)
    cv2.putText(panel, question.text, (10, 22), _FONT, 0.5, INK, 1, cv2.LINE_AA)
    cv2.putText(panel, "AbsRel, seen", (left + 4, top - 6), _FONT, 0.36, MUTED, 1, cv2.LINE_AA)
    cv2.rectangle(panel, (left, top), (right, bottom), (48, 56, 68), 1)
    for value, y in ((high, top + 10), (low, bottom)):
        cv2.putText(panel, f"{value:.3f}", (8, y), _FONT, 0.38, MUTED, 1, cv2.LINE_AA)
    cv2.putText(panel, f"{last:.0f} samples", (right - 100, bottom + 18), _FONT, 0.38, MUTED, 1, cv2.LINE_AA)
    names = [name for name in question.variants if name in lines]
    shades = to_uint8(colours(np.linspace(0.15, 0.85, max(len(names), 2)), "turbo"))
    for k, name in enumerate(names):
        line = lines[name]
        x = left + np.array(line["samples"]) / last * (right - left)
        y = bottom - (np.clip(line[CURVE], low, high) - low) / (high - low) * (bottom - top)
        points = np.rint(np.stack([x, y], -1)).astype(np.int32)[:, None]
        shade = shades[k].tolist()
        cv2.polylines(panel, [points], False, shade, 2, cv2.LINE_AA)
        cv2.putText(
            panel,
            f"{name} {line[CURVE][-1]:.4f}",
            (right - 230, top + 20 + 18 * k),
            _FONT,
            0.42,
            shade,
            1,
            cv2.LINE_AA,
        )
