# SPDX-License-Identifier: Apache-2.0
"""Estimates an unknown spinning LiDAR from a few of its clouds: row elevations, columns, direction, start, times.

Rows come from ring numbers, else from the rows of an organised cloud, else from the peaks of the elevation
histogram. Clouds should be as the driver gives them: motion compensation blurs rows and start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .bags.pointclouds import Cloud
from .errors import CalibrationError
from .sensor_rows import LEAST_POINTS, groups, nearest, rings_of, rows_by_peaks, rows_by_ring
from .sensors import Sensor, list_sensors, load_sensor

_NEAR_M = 3.0  # closer points see the beams' distance from the centre of the sensor


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
        elevations, ring_rows = rows_by_ring(ring[far], elevation[far], name, notes)
        row = ring_rows[ring]
    else:
        notes.append("no ring field: rows are the peaks of the elevation histogram")
        elevations, ring_rows = rows_by_peaks(elevation[far], name), None
        row = nearest(elevation, elevations)
    kept = far & (row >= 0)
    residual = np.abs(elevation[kept] - elevations[row[kept]])
    counts = np.bincount(row[kept], minlength=len(elevations))
    residuals = np.array([np.median(part) for part in groups(residual, row[kept], len(elevations))])
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


def _columns(clouds: Sequence[Cloud], azimuths: Sequence[NDArray], rows: Sequence[NDArray]) -> int:
    """Firings per full turn, from the usual azimuth step between neighbours of a row."""
    steps = []
    for cloud, azimuth, row in zip(clouds, azimuths, rows, strict=True):
        if cloud.cell is not None and cloud.ring is None:
            return max(cloud.shape)
        for part in groups(azimuth[row >= 0], row[row >= 0], int(row.max(initial=-1)) + 1):
            gaps = np.diff(np.sort(part))
            steps.append(gaps[gaps > np.deg2rad(0.02)])  # second returns lie on the first ones
    gaps = np.concatenate(steps) if steps else np.zeros(0)
    if len(gaps) < LEAST_POINTS:
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
    begins = np.array([_begin(first_points(c.points, firing_order(c), columns)) for c in clouds])
    mean = np.exp(1j * begins).mean()
    if abs(mean) < 0.9:
        notes.append("spins begin at changing azimuths: 180 deg (straight back) assumed")
        return 180.0, 360.0
    step = 360 / columns * (1 if clockwise else -1)
    begin = float(np.degrees(np.angle(mean))) + step
    even = 15 * round(begin / 15)
    # Drivers cut at even angles; the estimate is good to half a column.
    begin = float(even) if abs(begin - even) < max(0.3, abs(step) / 2) else round(begin, 1)
    return (180.0 if abs(begin) == 180.0 else begin), 360.0


def first_points(points: NDArray, order: NDArray, columns: int) -> NDArray:
    """The farther half of the first two columns' worth of points: motion compensation hardly turns those."""
    first = points[order[: max(1, 2 * len(points) // columns)]]
    ranges = np.linalg.norm(first, axis=1)
    return first[ranges >= np.median(ranges)]


def _begin(first: NDArray) -> float:
    """Circular mean azimuth: one column behind the edge at which the turn begins."""
    return float(np.angle(np.exp(1j * np.arctan2(first[:, 1], first[:, 0])).mean()))


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
    parts = groups(left_all[seen], row_all[seen], count)
    return np.round([np.degrees(np.angle(part.mean())) if len(part) else 0.0 for part in parts], 2) + 0.0


def register(app: Any) -> None:
    """Add ``sensors list`` and ``sensors fit`` to a typer application."""
    import typer

    sensors = typer.Typer(help="LiDAR sensors: those that are known, and unknown ones from their clouds.")
    app.add_typer(sensors, name="sensors")

    @sensors.command("list")
    def list_command() -> None:
        """The ready sensors."""
        from rich.console import Console
        from rich.table import Table

        table = Table("name", "rows", "columns", "elevations (deg)", "range (m)", "source")
        for name in list_sensors():
            s = load_sensor(name)
            elevations = f"{s.elevations_deg[0]:.1f} to {s.elevations_deg[-1]:.1f}"
            limits = f"{s.min_range_m:g} to {s.max_range_m:g}"
            table.add_row(name, str(s.rows), str(s.columns), elevations, limits, s.source)
        Console().print(table)

    @sensors.command("fit")
    def fit_command(
        clouds: Annotated[list[Path], typer.Argument(help="npz, npy, bin or pcd files, or a rosbag.")],
        out: Annotated[Path | None, typer.Option(help="YAML file to write; printed if left out.")] = None,
        topic: Annotated[str, typer.Option(help="PointCloud2 of the bag; may be left out if only one.")] = "",
        name: Annotated[str, typer.Option(help="Name of the sensor.")] = "fitted",
        count: Annotated[int, typer.Option(help="Clouds to take from a bag.", min=1)] = 10,
        columns: Annotated[int | None, typer.Option(help="Firings per turn, if known.", min=1)] = None,
    ) -> None:
        """Estimate an unknown spinning LiDAR from a few of its clouds (not motion-compensated, full turns)."""
        from .bags.cloud_files import read_clouds

        fit = fit_sensor(read_clouds(clouds, topic, count), name, columns)
        _show(fit)
        text = yaml.safe_dump(fit.sensor.to_dict(), sort_keys=False, default_flow_style=None, width=110)
        if out is None:
            typer.echo(text)
        else:
            out.write_text(text)
            typer.echo(f"{out}: use it as --sensor {out}, or as lidar.sensor of from_bag")


def _show(fit: SensorFit) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("row", "ring", "elevation (deg)", "residual (deg)", "points")
    for row, elevation in enumerate(fit.sensor.elevations_deg):
        rings = "" if fit.ring_rows is None else ", ".join(map(str, np.flatnonzero(fit.ring_rows == row)))
        table.add_row(
            str(row), rings, f"{elevation:.3f}", f"{fit.residual_deg[row]:.3f}", str(fit.counts[row])
        )
    console = Console(stderr=True)
    console.print(table)
    for note in fit.notes:
        console.print(f"note: {note}", highlight=False)
