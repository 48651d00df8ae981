# SPDX-License-Identifier: Apache-2.0
"""Rows of an unknown LiDAR: from ring numbers, or from the peaks of the elevation histogram."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from .bags.pointclouds import Cloud
from .errors import CalibrationError

LEAST_POINTS = 20  # a row with fewer over all clouds has no trustworthy elevation
_BIN_DEG = 0.01
_UNEVEN = 0.12  # median residual / row spacing; points spread evenly would give 0.25


def rings_of(cloud: Cloud) -> NDArray | None:
    """[N] ring numbers of a cloud: its own, else the rows (or columns) of the organised message, else None."""
    if cloud.ring is not None or cloud.cell is None or not len(cloud):
        return cloud.ring
    # Along a ring elevations hardly change: Ouster has rings as rows, Velodyne as columns.
    elevation = np.degrees(np.arcsin(cloud.points[:, 2] / np.linalg.norm(cloud.points, axis=1)))
    spread = [_spread_within(elevation, cloud.cell[:, axis]) for axis in (0, 1)]
    return cloud.cell[:, int(spread[1] < spread[0])]


def groups(values: NDArray, group: NDArray, count: int) -> list[NDArray]:
    """``values`` split by group number."""
    order = np.argsort(group, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(group, minlength=count))[:-1])


def _spread_within(values: NDArray, group: NDArray) -> float:
    """Mean distance of values from the median of their group."""
    parts = [part for part in groups(values, group, int(group.max()) + 1) if len(part) > 1]
    return float(np.mean([np.abs(part - np.median(part)).mean() for part in parts])) if parts else np.inf


def nearest(values: NDArray, falling: NDArray) -> NDArray:
    middles = (falling[1:] + falling[:-1]) / 2
    return len(middles) - np.searchsorted(middles[::-1], values)


def rows_by_ring(ring: NDArray, elevation: NDArray, name: str, notes: list[str]) -> tuple[NDArray, NDArray]:
    """Falling elevations, and the row of each ring number."""
    parts = groups(elevation, ring, int(ring.max()) + 1 if len(ring) else 0)
    found = [i for i, part in enumerate(parts) if len(part) >= LEAST_POINTS]
    if not found:
        raise CalibrationError(f"sensor {name!r}: no ring has {LEAST_POINTS} points; give more clouds")
    sparse = [i for i, part in enumerate(parts) if 0 < len(part) < LEAST_POINTS]
    if sparse:
        notes.append(f"rings {sparse} have fewer than {LEAST_POINTS} points and are left out")
    medians = {i: float(np.median(parts[i])) for i in found}
    order = sorted(found, key=lambda i: -medians[i])
    elevations: list[float] = []
    ring_rows = np.full(len(parts), -1)
    for i in order:
        if elevations and elevations[-1] - medians[i] < 1e-3:
            notes.append(f"ring {i} points as high as another one and shares its row")
        else:
            elevations.append(medians[i])
        ring_rows[i] = len(elevations) - 1
    return np.array(elevations), ring_rows


def rows_by_peaks(elevation: NDArray, name: str) -> NDArray:
    """Falling elevations at the peaks of the histogram, for the smoothing under which rows are sharpest."""
    histogram = np.histogram(elevation, bins=np.arange(-90, 90 + _BIN_DEG, _BIN_DEG))[0].astype(float)
    best, sharpest = np.zeros(0), np.inf
    for sigma in (1.5, 3.0, 6.0, 12.0):
        smooth = gaussian_filter1d(histogram, sigma)
        peaks, _ = find_peaks(smooth, height=0.02 * smooth.max(), distance=4 * sigma)
        if len(peaks) < 2:
            continue
        rows = -90 + (peaks[::-1] + 0.5) * _BIN_DEG
        for _ in range(3):  # peaks of a histogram -> medians of the points around them
            parts = groups(elevation, nearest(elevation, rows), len(rows))
            rows = np.array([np.median(p) for p in parts if len(p) >= LEAST_POINTS])
        if len(rows) < 2:
            continue
        row = nearest(elevation, rows)
        gaps = np.pad(-np.diff(rows), 1, mode="edge")
        # Against the nearer neighbour: a row split in two by noise counts as blurred, not as two sharp rows.
        spacing = np.minimum(gaps[1:], gaps[:-1])
        blur = float(np.median(np.abs(elevation - rows[row]) / spacing[row]))
        if blur < sharpest:
            best, sharpest = rows, blur
    if sharpest > _UNEVEN:
        raise CalibrationError(
            f"sensor {name!r}: elevations form no rows (blur {sharpest:.2f} of their spacing); use clouds that "
            "are not motion-compensated, or with a ring field, or a sensor file"
        )
    return best
