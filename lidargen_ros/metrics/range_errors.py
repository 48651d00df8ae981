# SPDX-License-Identifier: Apache-2.0
"""Per-ray range errors: both maps share the ray grid, so range is compared with range, ray by ray.

With p the generated and d the true range in metres, g = ln p - ln d, and means over the counted rays:

=============  =======================================  =====================================================
mae_m          mean |p - d|                             Eigen, Puhrsch, Fergus, "Depth Map Prediction from a
rmse_m         sqrt(mean (p - d)^2)                     Single Image using a Multi-Scale Deep Network",
abs_rel        mean |p - d| / d                         NeurIPS 2014, for all of these but the MAE
sq_rel_m       mean (p - d)^2 / d
rmse_log       sqrt(mean g^2)
delta_1,2,3    share with max(p/d, d/p) < 1.25^k
silog          sqrt(mean g^2 - (mean g)^2)              KITTI depth benchmark (Uhrig et al., "Sparsity
                                                        Invariant CNNs", 3DV 2017), which prints it times 100
median_m       median |p - d|, to 0.1 % above 1 m, 1 mm below
=============  =======================================  =====================================================

A ray counts where both maps return (range > 0) and the caller's mask holds; ``rays`` says how many do.
Where no ray counts every error is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGE_EDGES_M = (0.0, 10.0, 20.0, 40.0, 80.0)
NAMES = (
    "mae_m",
    "median_m",
    "rmse_m",
    "abs_rel",
    "sq_rel_m",
    "rmse_log",
    "silog",
    "delta_1",
    "delta_2",
    "delta_3",
)
_DELTAS = tuple(1.25**k for k in (1, 2, 3))
_TERMS = 7 + len(_DELTAS)
_CELLS, _PER_ROOT = (
    12_000,
    1000.0,
)  # cells are even in the root of the error: fine where it is small, up to 144 m


class MaeSums:
    """Running mean absolute error per group of rays; a tenth of the cost of ``ErrorSums``."""

    def __init__(self, groups: int = 1) -> None:
        self.rays, self.absolute = np.zeros(groups, np.int64), np.zeros(groups)

    def add(self, generated: NDArray, true: NDArray, group: NDArray) -> None:
        """Add rays: ranges ``[n]`` in metres and the group number ``[n]`` of each ray."""
        self.rays += np.bincount(group, minlength=len(self.rays))
        self.absolute += np.bincount(group, np.abs(generated - true), len(self.rays))

    def mae(self, select: slice | int | Sequence[int] | NDArray = slice(None)) -> float | None:
        """Mean absolute error of the selected groups together, metres; None where no ray was added."""
        rays = int(self.rays[select].sum())
        return float(self.absolute[select].sum()) / rays if rays else None


class ErrorSums:
    """Running sums of all error terms per group of rays: a drive of any length needs constant memory.

    Args:
        groups: number of groups.
        medians: also keep the histogram of absolute errors that a median needs (96 kB per group).
    """

    def __init__(self, groups: int = 1, *, medians: bool = True) -> None:
        self.groups = groups
        self.sums = np.zeros((groups, _TERMS))
        self.cells = np.zeros((groups, _CELLS), np.int64) if medians else None

    def add(self, generated: NDArray, true: NDArray, group: NDArray | None = None) -> None:
        """Add rays: ranges ``[n]`` in metres, all above 0, and the group number ``[n]`` of each ray."""
        # single precision per ray (ranges are), double in the sums that bincount makes
        p, d = generated.astype(np.float32), true.astype(np.float32)
        group = np.zeros(len(p), np.intp) if group is None else group.astype(np.intp)
        error, log = np.abs(p - d), np.log(p / d).astype(np.float64)  # silog subtracts two sums of log^2
        square, ratio = error**2, np.maximum(p / d, d / p)
        terms = [np.ones_like(p), error, square, error / d, square / d, log, log**2]
        terms += [(ratio < limit).astype(np.float32) for limit in _DELTAS]
        self.sums += np.stack([np.bincount(group, term, self.groups) for term in terms], axis=-1)
        if self.cells is not None:
            cell = np.minimum(np.rint(np.sqrt(error) * _PER_ROOT), _CELLS - 1).astype(np.intp)
            self.cells += np.bincount(group * _CELLS + cell, minlength=self.cells.size).reshape(
                self.cells.shape
            )

    def result(self, select: slice | int | Sequence[int] | NDArray = slice(None)) -> dict[str, Any]:
        """Errors over the rays of the selected groups together; ``median_m`` only where medians are kept."""
        n, absolute, square, relative, square_relative, log, log_square, *deltas = (
            self.sums[select].reshape(-1, _TERMS).sum(axis=0).tolist()
        )
        names = [name for name in NAMES if name != "median_m" or self.cells is not None]
        if n == 0:
            return {"rays": 0, **dict.fromkeys(names)}
        values = {
            "mae_m": absolute / n,
            "rmse_m": (square / n) ** 0.5,
            "abs_rel": relative / n,
            "sq_rel_m": square_relative / n,
            "rmse_log": (log_square / n) ** 0.5,
            "silog": max(log_square / n - (log / n) ** 2, 0.0) ** 0.5,
            **{f"delta_{k + 1}": share / n for k, share in enumerate(deltas)},
        }
        if self.cells is not None:
            values["median_m"] = _median(self.cells[select].reshape(-1, _CELLS).sum(axis=0))
        return {"rays": int(n), **{name: values[name] for name in names}}


def range_errors(generated: NDArray, true: NDArray, mask: NDArray | None = None) -> dict[str, Any]:
    """All errors of one map, or of a stack of maps pooled over all rays.

    Args:
        generated, true: range maps of one shape, metres, 0 = no return.
        mask: which rays may count (broadcast to the maps), for example ``window(true, 5, 65)``.
    """
    sums = ErrorSums()
    counted = _counted(generated, true, mask)
    sums.add(generated[counted], true[counted])
    return sums.result()


def errors_by_range(
    generated: NDArray, true: NDArray, mask: NDArray | None = None, edges: Sequence[float] = RANGE_EDGES_M
) -> dict[str, dict[str, Any]]:
    """Errors in bins of the true range, lower edge included; the last bin is open upwards ("80-")."""
    return _grouped(generated, true, mask, range_bins(true, edges), range_labels(edges))


def errors_by_row(generated: NDArray, true: NDArray, mask: NDArray | None = None) -> list[dict[str, Any]]:
    """Errors of each row of ``[..., rows, columns]`` maps, row 0 first."""
    rows = true.shape[-2]
    group = np.broadcast_to(np.arange(rows)[:, None], true.shape)
    return list(_grouped(generated, true, mask, group, [str(row) for row in range(rows)]).values())


def errors_by_seen(
    generated: NDArray, true: NDArray, seen: NDArray, mask: NDArray | None = None
) -> dict[str, dict[str, Any]]:
    """Errors of rays that some camera sees (bool ``[rows, columns]``) and of those that none does."""
    group = np.broadcast_to(seen, true.shape).astype(np.intp)
    return _grouped(generated, true, mask, group, ["unseen", "seen"])


def range_bins(ranges: NDArray, edges: Sequence[float] = RANGE_EDGES_M) -> NDArray:
    """Bin number of each range: k where ``edges[k] <= range < edges[k + 1]``, the last bin open upwards."""
    return np.searchsorted(np.asarray(edges[1:], ranges.dtype), ranges, side="right")


def range_labels(edges: Sequence[float] = RANGE_EDGES_M) -> list[str]:
    """Names of the bins of ``range_bins``: "0-10", ..., "80-"."""
    ends = [f"{edge:g}" for edge in edges[1:]] + [""]
    return [f"{start:g}-{end}" for start, end in zip(edges, ends, strict=True)]


def window(ranges: NDArray, near: float = 5.0, far: float = 65.0) -> NDArray:
    """Mask of returns whose own range lies in [near, far] metres."""
    return (ranges > 0) & (ranges >= near) & (ranges <= far)


def _counted(generated: NDArray, true: NDArray, mask: NDArray | None) -> NDArray:
    both = (generated > 0) & (true > 0)
    return both if mask is None else both & np.broadcast_to(mask, both.shape)


def _grouped(
    generated: NDArray, true: NDArray, mask: NDArray | None, group: NDArray, labels: list[str]
) -> dict[str, dict[str, Any]]:
    sums = ErrorSums(len(labels))
    counted = _counted(generated, true, mask)
    sums.add(generated[counted], true[counted], group[counted])
    return {label: sums.result(k) for k, label in enumerate(labels)}


def _median(histogram: NDArray) -> float:
    """Median of a histogram of errors; the mean of the two middle ones where the count is even."""
    total = int(histogram.sum())
    below = np.cumsum(histogram)
    cells = np.searchsorted(below, [(total - 1) // 2, total // 2], side="right")
    return float(np.square(cells / _PER_ROOT).mean())
