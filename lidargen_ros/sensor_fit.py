# SPDX-License-Identifier: Apache-2.0
"""Estimates an unknown spinning LiDAR from a few of its clouds: row elevations, columns, direction, start, times.

Rows come from ring numbers, else from the rows of an organised cloud, else from the peaks of the elevation
histogram. Clouds should be as the driver gives them: motion compensation blurs rows and start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from .bags.pointclouds import Cloud
from .errors import CalibrationError
from .sensors import Sensor

_NEAR_M = 3.0  # closer points see the beams' distance from the centre of the sensor
_LEAST_POINTS = 20  # a row with fewer over all clouds has no trustworthy elevation
_BIN_DEG = 0.01
_UNEVEN = 0.12  # median residual / row spacing; points spread evenly would give 0.25


@dataclass(frozen=True)
class SensorFit:
    """What was found.

    Attributes:
        ring_rows: [rings] row of each ring number, -1 for rings without enough points; None without rings.
        residual_deg: [rows] median distance of a row's points from its elevation.
        counts: [rows] points used.
        notes: what could not be told from the clouds and was assumed.
    """

    sensor: Sensor
    ring_rows: NDArray | None
    residual_deg: NDArray
    counts: NDArray
    notes: list[str] = field(default_factory=list)


def rings_of(cloud: Cloud) -> NDArray | None:
    """[N] ring numbers of a cloud: its own, else the rows (or columns) of the organised message, else None."""
    if cloud.ring is not None or cloud.cell is None or not len(cloud):
        return cloud.ring
    # Along a ring elevations hardly change: Ouster has rings as rows, Velodyne as columns.
    elevation = np.degrees(np.arcsin(cloud.points[:, 2] / np.linalg.norm(cloud.points, axis=1)))
    spread = [_spread_within(elevation, cloud.cell[:, axis]) for axis in (0, 1)]
    return cloud.cell[:, int(spread[1] < spread[0])]


def fit_sensor(
    clouds: Sequence[Cloud],
    name: str = "fitted",
    columns: int | None = None,
    spin_time_s: float | None = None,
) -> SensorFit:
    """Sensor that fits the clouds (one full spin each, sensor frame: x forward, y left, z up, metres).

    Args:
        columns: firings per turn; None estimates them.
        spin_time_s: None takes the time field, else the spacing of the stamps, else 0.1 s.

    Raises:
        CalibrationError: no cloud, too few points, or elevations that form no rows.
    """
    clouds = [cloud for cloud in clouds if len(cloud)]
    if not clouds:
        raise CalibrationError(f"sensor {name!r}: no cloud with points; give at least one full spin")
    notes: list[str] = []
    points = np.concatenate([cloud.points for cloud in clouds]).astype(np.float64)
    ranges = np.linalg.norm(points, axis=1)
    elevation = np.degrees(np.arcsin(np.clip(points[:, 2] / ranges, -1, 1)))
    far = ranges > _NEAR_M
    rings = [rings_of(cloud) for cloud in clouds]
    if all(ring is not None for ring in rings):
        ring = np.concatenate([r for r in rings if r is not None])
        elevations, ring_rows = _rows_by_ring(ring[far], elevation[far], name, notes)
        row = ring_rows[ring]
    else:
        notes.append("no ring field: rows are the peaks of the elevation histogram")
        elevations, ring_rows = _rows_by_peaks(elevation[far], name), None
        row = _nearest(elevation, elevations)
    kept = far & (row >= 0)
    residual = np.abs(elevation[kept] - elevations[row[kept]])
    counts = np.bincount(row[kept], minlength=len(elevations))
    residuals = np.array([np.median(part) for part in _groups(residual, row[kept], len(elevations))])
    if len(elevations) > 1 and (blurred := np.flatnonzero(residuals > 0.2 * -np.gradient(elevations))).size:
        notes.append(
            f"{blurred.size} of {len(elevations)} rows are blurred: are the clouds motion-compensated?"
        )

    start = np.cumsum([0, *map(len, clouds)])
    rows = [row[a:b] for a, b in pairwise(start)]
    azimuths = [np.arctan2(cloud.points[:, 1], cloud.points[:, 0]).astype(np.float64) for cloud in clouds]
    if columns is None:
        columns = _columns(clouds, azimuths, rows)
    spin = _spin_time(clouds, columns, notes) if spin_time_s is None else spin_time_s
    clockwise = _clockwise(clouds, azimuths, rows, notes)
    begin, span = _start_and_span(clouds, azimuths, clockwise, columns, notes)
    sensor = Sensor(
        name=name,
        elevations_deg=np.round(elevations, 4),
        columns=max(1, round(columns * span / 360)),
        azimuth_offsets_deg=_azimuth_offsets(clouds, azimuths, rows, len(elevations), spin, clockwise, notes),
        azimuth_start_deg=begin,
        azimuth_span_deg=span,
        clockwise=clockwise,
        # A few clouds do not show the limits: wide enough not to cut what later clouds hold.
        min_range_m=min(0.5, float(np.floor(ranges.min() * 10) / 10)),
        max_range_m=float(max(120.0, np.ceil(ranges.max() * 1.5))),
        spin_time_s=spin,
        source=f"fitted to {len(clouds)} clouds of {len(points)} points",
    )
    return SensorFit(sensor, ring_rows, residuals, counts, notes)


def _groups(values: NDArray, group: NDArray, count: int) -> list[NDArray]:
    """``values`` split by group number."""
    order = np.argsort(group, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(group, minlength=count))[:-1])


def _spread_within(values: NDArray, group: NDArray) -> float:
    """Mean distance of values from the median of their group."""
    parts = [part for part in _groups(values, group, int(group.max()) + 1) if len(part) > 1]
    return float(np.mean([np.abs(part - np.median(part)).mean() for part in parts])) if parts else np.inf


def _nearest(values: NDArray, falling: NDArray) -> NDArray:
    middles = (falling[1:] + falling[:-1]) / 2
    return len(middles) - np.searchsorted(middles[::-1], values)


def _rows_by_ring(ring: NDArray, elevation: NDArray, name: str, notes: list[str]) -> tuple[NDArray, NDArray]:
    """Falling elevations, and the row of each ring number."""
    parts = _groups(elevation, ring, int(ring.max()) + 1 if len(ring) else 0)
    found = [i for i, part in enumerate(parts) if len(part) >= _LEAST_POINTS]
    if not found:
        raise CalibrationError(f"sensor {name!r}: no ring has {_LEAST_POINTS} points; give more clouds")
    sparse = [i for i, part in enumerate(parts) if 0 < len(part) < _LEAST_POINTS]
    if sparse:
        notes.append(f"rings {sparse} have fewer than {_LEAST_POINTS} points and are left out")
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


def _rows_by_peaks(elevation: NDArray, name: str) -> NDArray:
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
            parts = _groups(elevation, _nearest(elevation, rows), len(rows))
            rows = np.array([np.median(p) for p in parts if len(p) >= _LEAST_POINTS])
        if len(rows) < 2:
            continue
        row = _nearest(elevation, rows)
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


def _columns(clouds: Sequence[Cloud], azimuths: Sequence[NDArray], rows: Sequence[NDArray]) -> int:
    """Firings per full turn, from the usual azimuth step between neighbours of a row."""
    steps = []
    for cloud, azimuth, row in zip(clouds, azimuths, rows, strict=True):
        if cloud.cell is not None and cloud.ring is None:
            return max(cloud.shape)
        for part in _groups(azimuth[row >= 0], row[row >= 0], int(row.max(initial=-1)) + 1):
            gaps = np.diff(np.sort(part))
            steps.append(gaps[gaps > np.deg2rad(0.02)])  # second returns lie on the first ones
    gaps = np.concatenate(steps) if steps else np.zeros(0)
    if len(gaps) < _LEAST_POINTS:
        raise CalibrationError("sensor fit: too few points to tell the columns; give them")
    single = np.median(gaps)
    return round(2 * np.pi / float(np.mean(gaps[np.abs(gaps - single) < 0.25 * single])))


def _spin_time(clouds: Sequence[Cloud], columns: int, notes: list[str]) -> float:
    spans = [np.ptp(cloud.time_s) for cloud in clouds if cloud.time_s is not None and len(cloud) > 1]
    if spans and np.median(spans) > 0.01:
        return round(float(np.median(spans)) * columns / max(columns - 1, 1), 4)
    gaps = np.diff(sorted(cloud.stamp_ns for cloud in clouds)) * 1e-9
    if len(gaps) and 0.01 < np.median(gaps) < 1:
        return round(float(np.median(gaps)), 4)
    notes.append("no times: 0.1 s per spin assumed")
    return 0.1


def firing_order(cloud: Cloud) -> NDArray:
    """[N] indices of the points by time, else by column of an organised cloud, else as they stand in the message."""
    if cloud.time_s is not None:
        return np.argsort(cloud.time_s, kind="stable")
    if cloud.cell is None:
        return np.arange(len(cloud))
    # Firings run along the longer side; rings along the shorter.
    return np.argsort(cloud.cell[:, int(cloud.shape[1] >= cloud.shape[0])], kind="stable")


def _clockwise(
    clouds: Sequence[Cloud], azimuths: Sequence[NDArray], rows: Sequence[NDArray], notes: list[str]
) -> bool:
    votes = []
    for cloud, azimuth, row in zip(clouds, azimuths, rows, strict=True):
        order = firing_order(cloud)
        order = order[np.argsort(row[order], kind="stable")]  # within each row, in firing order
        steps = np.angle(np.exp(1j * np.diff(azimuth[order])))
        same = np.diff(row[order]) == 0
        votes.append(np.sign(steps[same & (np.abs(steps) < 0.1) & (steps != 0)]))
    turn = float(np.concatenate(votes).mean()) if votes else 0.0
    if abs(turn) < 0.5:
        notes.append("direction of turn not clear from the order of the points: clockwise assumed")
        return True
    return turn < 0


def _start_and_span(
    clouds: Sequence[Cloud], azimuths: Sequence[NDArray], clockwise: bool, columns: int, notes: list[str]
) -> tuple[float, float]:
    """Left edge of the first column and the span, degrees."""
    everything = np.sort(np.concatenate(azimuths))
    gaps = np.diff(everything, append=everything[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    if gaps[widest] > np.deg2rad(20):
        step = 360 / columns
        first = everything[widest] if clockwise else everything[(widest + 1) % len(everything)]
        edge = float(np.degrees(first)) + (step / 2 if clockwise else -step / 2)
        return round(edge, 2), round(360 - float(np.degrees(gaps[widest])) + step, 2)
    begins = np.array([_begin(azimuths[i][firing_order(c)], columns) for i, c in enumerate(clouds)])
    mean = np.exp(1j * begins).mean()
    if abs(mean) < 0.9:
        notes.append("spins begin at changing azimuths: 180 deg (straight back) assumed")
        return 180.0, 360.0
    step = 360 / columns * (1 if clockwise else -1)
    begin = round(float(np.degrees(np.angle(mean))) + step, 1)
    return (180.0 if abs(begin) == 180.0 else begin), 360.0


def _begin(azimuth: NDArray, columns: int) -> float:
    """Circular mean azimuth of the first two columns' worth of points: one step behind the first edge."""
    count = max(1, 2 * len(azimuth) // columns)
    return float(np.angle(np.exp(1j * azimuth[:count]).mean()))


def _azimuth_offsets(
    clouds: Sequence[Cloud],
    azimuths: Sequence[NDArray],
    rows: Sequence[NDArray],
    count: int,
    spin_s: float,
    clockwise: bool,
    notes: list[str],
) -> NDArray:
    """[rows] degrees counter-clockwise of the head: what is left of azimuth once the turn by time is taken off."""
    if any(cloud.time_s is None for cloud in clouds):
        notes.append("no time field: azimuth offsets of the rows (only used for firing times) set to zero")
        return np.zeros(count)
    turn = (-2 * np.pi if clockwise else 2 * np.pi) / spin_s
    left, row = [], []
    for cloud, azimuth, r in zip(clouds, azimuths, rows, strict=True):
        assert cloud.time_s is not None
        head = np.exp(1j * (azimuth - turn * cloud.time_s))
        left.append(head / (head.mean() / abs(head.mean())))
        row.append(r)
    left_all, row_all = np.concatenate(left), np.concatenate(row)
    seen = row_all >= 0
    parts = _groups(left_all[seen], row_all[seen], count)
    return np.round([np.degrees(np.angle(part.mean())) if len(part) else 0.0 for part in parts], 2)


def read_clouds(paths: Sequence[Path], topic: str = "", count: int = 10) -> list[Cloud]:
    """Clouds from single files (npz, npy, bin, pcd), or the first ``count`` of a topic of a rosbag.

    Raises:
        DataError: a file that cannot be read, a bag without that topic.
    """
    from .bags.cloud_files import SUFFIXES, read_cloud

    clouds: list[Cloud] = []
    for path in paths:
        if path.suffix in SUFFIXES:
            clouds.append(read_cloud(path))
            continue
    return clouds


def register(app: Any) -> None:
    """Add ``sensors list`` and ``sensors fit`` to a typer application."""
    import typer

    sensors = typer.Typer(help="LiDAR sensors: those that are known, and unknown ones from their clouds.")
    app.add_typer(sensors, name="sensors")
