# SPDX-License-Identifier: Apache-2.0
"""Chamfer distances and F-scores between a generated and a true point cloud.

Nobody agrees on what "the Chamfer distance" is, so every form is reported under a name that says which it is:

- ``accuracy_m``: mean over generated points of the distance to the nearest true point;
  ``completeness_m``: the same from true to generated. (Names of Seitz et al., CVPR 2006.)
- ``l1_sum_m`` = accuracy + completeness; ``l1_half_sum_m`` is half of it. Euclidean distances, not squared.
- ``l2_sum_m2``, ``l2_half_sum_m2``: the same with squared distances in square metres (Fan et al., "A Point
  Set Generation Network", CVPR 2017; LiDM and LiDARCrafter print the half sum of squared distances).
- ``precision``, ``recall``, ``fscore`` at distance thresholds: Knapitsch et al., "Tanks and Temples",
  SIGGRAPH 2017.

Only points whose own radius lies in the window count. A hard window makes a point at 64.9 m whose neighbour
lies at 65.1 m match wrongly, hence ``outside_neighbours``: counted points as before, neighbours from the
whole cloud. The published Cosmos-Transfer-LidarGen figures are for [5, 65] m, and do not say which form they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

WINDOW_M = (5.0, 65.0)
THRESHOLDS_M = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Chamfer:
    """Both directions of one pair of clouds; ``*_points`` count the points in the window."""

    generated_points: int
    true_points: int
    accuracy_m: float
    completeness_m: float
    accuracy_m2: float
    completeness_m2: float
    precision: dict[float, float]
    recall: dict[float, float]

    @property
    def l1_sum_m(self) -> float:
        return self.accuracy_m + self.completeness_m

    @property
    def l1_half_sum_m(self) -> float:
        return self.l1_sum_m / 2

    @property
    def l2_sum_m2(self) -> float:
        return self.accuracy_m2 + self.completeness_m2

    @property
    def l2_half_sum_m2(self) -> float:
        return self.l2_sum_m2 / 2

    @property
    def fscore(self) -> dict[float, float]:
        both = {t: (self.precision[t], self.recall[t]) for t in self.precision}
        return {t: 2 * p * r / (p + r) if p + r else 0.0 for t, (p, r) in both.items()}

    def to_dict(self) -> dict[str, float]:
        """All forms as one flat dict, ready for JSON."""
        names = ("accuracy_m", "completeness_m", "l1_sum_m", "l1_half_sum_m", "l2_sum_m2", "l2_half_sum_m2")
        return {
            "generated_points": self.generated_points,
            "true_points": self.true_points,
            **{name: getattr(self, name) for name in names},
            **{f"precision_{t:g}m": value for t, value in self.precision.items()},
            **{f"recall_{t:g}m": value for t, value in self.recall.items()},
            **{f"fscore_{t:g}m": value for t, value in self.fscore.items()},
        }


def chamfer(
    generated: NDArray,
    true: NDArray,
    window: tuple[float, float] = WINDOW_M,
    *,
    outside_neighbours: bool = False,
    thresholds: Sequence[float] = THRESHOLDS_M,
    queries: int | None = None,
    seed: int = 0,
    workers: int = -1,
) -> Chamfer | None:
    """Chamfer distances of two clouds ``[n, 3]`` in metres, sensor at the origin; non-finite points are left
    out.

    Args:
        window: radii [near, far] in metres of the points that count, each cloud by its own radius.
        outside_neighbours: let neighbours lie outside the window.
        thresholds: distances of the F-scores, metres.
        queries: average over at most so many points per direction, drawn evenly at random, each still matched
            against all points of the other cloud: an unbiased estimate at a fraction of the time. None: all
                points.
        workers: threads of the search, -1 for all cores.

    Returns:
        None where either cloud has no point in the window: such a frame has no distance and is counted apart.
    """
    generated_in, generated_all = _in_window(generated, window)
    true_in, true_all = _in_window(true, window)
    if len(generated_in) == 0 or len(true_in) == 0:
        return None
    targets = (true_all, generated_all) if outside_neighbours else (true_in, generated_in)
    rng = np.random.default_rng(seed)
    forward = nearest_distances(_thin(generated_in, queries, rng), targets[0], workers)
    backward = nearest_distances(_thin(true_in, queries, rng), targets[1], workers)
    return Chamfer(
        generated_points=len(generated_in),
        true_points=len(true_in),
        accuracy_m=float(forward.mean()),
        completeness_m=float(backward.mean()),
        accuracy_m2=float(np.square(forward).mean()),
        completeness_m2=float(np.square(backward).mean()),
        precision={t: float((forward < t).mean()) for t in thresholds},
        recall={t: float((backward < t).mean()) for t in thresholds},
    )


def nearest_distances(queries: NDArray, targets: NDArray, workers: int = -1) -> NDArray:
    """Euclidean distance ``[n]`` from each query ``[n, 3]`` to the nearest target ``[m, 3]``."""
    # Points of a range map come in an order that a plain midpoint tree likes: it builds twice as fast as a
    # balanced one.
    tree = cKDTree(targets, leafsize=32, balanced_tree=False, compact_nodes=False)
    return tree.query(queries, workers=workers)[0]


def summarise(results: Iterable[Chamfer | None], seed: int = 0) -> dict[str, Any]:
    """Mean, median and best of each form over frames, and a 95 % bootstrap interval of its mean.

    Frames without a distance are counted under ``empty`` and enter nothing else. The bootstrap (Efron 1979,
    1000 resamples, percentile interval) treats frames as independent; frames of one drive are not, so it is
    optimistic.
    """
    listed = list(results)
    found = [result.to_dict() for result in listed if result is not None]
    summary: dict[str, Any] = {"frames": len(found), "empty": len(listed) - len(found)}
    if not found:
        return summary
    resample = np.random.default_rng(seed).integers(0, len(found), (1000, len(found)))
    for name in found[0]:
        values = np.array([result[name] for result in found], np.float64)
        low, high = np.quantile(values[resample].mean(axis=1), [0.025, 0.975])
        higher_is_better = name.startswith(("precision", "recall", "fscore"))
        summary[name] = {"mean": float(values.mean()), "median": float(np.median(values))}
        if not name.endswith("_points"):
            summary[name]["best"] = float(values.max() if higher_is_better else values.min())
            summary[name]["mean_95"] = [float(low), float(high)]
    return summary


def _in_window(points: NDArray, window: tuple[float, float]) -> tuple[NDArray, NDArray]:
    points = np.asarray(points).reshape(-1, 3)
    radius = np.sqrt(np.einsum("ij,ij->i", points, points))  # not finite where a coordinate is not
    return points[(radius >= window[0]) & (radius <= window[1])], points[np.isfinite(radius)]


def _thin(points: NDArray, count: int | None, rng: np.random.Generator) -> NDArray:
    if count is None or len(points) <= count:
        return points
    # sorted: neighbours in the map are neighbours in the tree, and the search stays in the cache
    return points[np.sort(rng.choice(len(points), count, replace=False, shuffle=False))]
