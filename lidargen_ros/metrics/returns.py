# SPDX-License-Identifier: Apache-2.0
"""Which rays return: precision, recall, F1, IoU, AUROC, and drop rates.

Accuracy alone flatters, because most rays return; so both classes are scored as the positive one: ``return``
(the ray comes back) and ``drop`` ("raydrop", what simulators learn: Manivasagam et al., "LiDARsim", CVPR
2020). Precision, recall, F1: van Rijsbergen 1979; IoU: Jaccard 1912; AUROC: the Mann-Whitney statistic with
ties at one half (Hanley and McNeil 1982), here of the predicted return probability rounded to 1/65535.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEVELS = 65_536


class ReturnCounts:
    """Running counts over maps of one size ``[rows, columns]``."""

    def __init__(self, rows: int, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.confusion = np.zeros((rows, 2, 2), np.int64)  # [row, true, generated]
        self.levels = np.zeros((2, _LEVELS), np.int64)  # histogram of the probability, by truth
        self.graded = False

    def __add__(self, other: ReturnCounts) -> ReturnCounts:
        whole = ReturnCounts(len(self.confusion), self.threshold)
        whole.confusion = self.confusion + other.confusion
        whole.levels = self.levels + other.levels
        whole.graded = self.graded or other.graded
        return whole

    def add(self, generated: NDArray, true: NDArray, mask: NDArray | None = None) -> None:
        """Add one map: generated decisions (bool) or return probabilities, true returns (bool), rays that
        count.
        """
        decided = generated if generated.dtype == bool else generated >= self.threshold
        counted = np.ones(true.shape, bool) if mask is None else np.broadcast_to(mask, true.shape)
        row = np.broadcast_to(np.arange(true.shape[0])[:, None], true.shape)[counted]
        truth = true[counted].astype(np.intp)
        cell = (row * 2 + truth) * 2 + decided[counted]
        self.confusion += np.bincount(cell, minlength=self.confusion.size).reshape(self.confusion.shape)
        if generated.dtype != bool:
            self.graded = True
            level = np.rint(np.clip(generated[counted], 0, 1) * (_LEVELS - 1)).astype(np.intp)
            self.levels += np.bincount(truth * _LEVELS + level, minlength=self.levels.size).reshape(2, -1)

    def result(self) -> dict[str, Any]:
        """Scores over all rays added; ``auroc`` is None unless probabilities were given and both classes
        occur.
        """
        (drop_drop, drop_return), (return_drop, return_return) = self.confusion.sum(axis=0).tolist()
        rays = drop_drop + drop_return + return_drop + return_return
        if rays == 0:
            return {"rays": 0, "accuracy": None}
        by_row = self.drop_rates()
        return {
            "rays": rays,
            "accuracy": (drop_drop + return_return) / rays,
            "return": _scores(return_return, drop_return, return_drop),
            "drop": _scores(drop_drop, return_drop, drop_return),
            "auroc": _auroc(self.levels) if self.graded else None,
            "drop_rate_generated": (drop_drop + return_drop) / rays,
            "drop_rate_true": (drop_drop + drop_return) / rays,
            "drop_rate_error_rows": float(np.nanmean(np.abs(by_row[:, 0] - by_row[:, 1]))),
        }

    def drop_rates(self) -> NDArray:
        """Share of dropped rays ``[rows, 2]``: generated, true; NaN where no ray of the row counts."""
        rays = self.confusion.sum(axis=(1, 2)).astype(np.float64)
        dropped = np.stack(
            [self.confusion[:, :, 0].sum(axis=1), self.confusion[:, 0, :].sum(axis=1)], axis=-1
        )
        with np.errstate(invalid="ignore"):
            return dropped / rays[:, None]


def return_scores(generated: NDArray, true: NDArray, mask: NDArray | None = None) -> dict[str, Any]:
    """Scores of one map ``[rows, columns]``; see ``ReturnCounts.add`` and ``ReturnCounts.result``."""
    counts = ReturnCounts(true.shape[0])
    counts.add(generated, true, mask)
    return counts.result()


def _scores(hits: int, false_alarms: int, misses: int) -> dict[str, float | None]:
    """None where a score is not defined: nothing predicted (precision), nothing there (recall)."""

    def share(of: int) -> float | None:
        return hits / of if of else None

    total = 2 * hits + false_alarms + misses
    return {
        "precision": share(hits + false_alarms),
        "recall": share(hits + misses),
        "f1": 2 * hits / total if total else None,
        "iou": share(hits + false_alarms + misses),
    }


def _auroc(levels: NDArray) -> float | None:
    negative, positive = levels.astype(np.float64)
    pairs = negative.sum() * positive.sum()
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)
