# SPDX-License-Identifier: Apache-2.0
"""Driver clouds as turns of a sensor: rows, times, intensity, and motion compensation undone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.errors import CalibrationError, DataError
from lidargen_ros.motion import transform
from lidargen_ros.sensor_fit import SensorFit, firing_order, first_points, fit_sensor
from lidargen_ros.sensor_rows import rings_of
from lidargen_ros.sensors import Sensor, load_sensor

from .bag_config import LidarConfig
from .drive import Spin, Track, to_ray_time
from .recut import turn_share

_SECTORS = 36
_LEAST_SECTORS = 0.8  # of those that the sensor sweeps; a cloud with fewer is a packet, not a turn


class CloudReader:
    """Turns of one topic.

    Args:
        first: clouds from which the sensor is told.
        turned: [4, 4] rotation, LiDAR frame of the driver -> x forward, y left, z up.
        notes: takes what had to be assumed.
        sensor: where it is known; otherwise the one named in ``config``, otherwise it is fitted.
        cut: share of a turn (see recut) at which clouds begin; None tells it from the order of the points.

    Attributes:
        sensor: of the turns that :meth:`turn` gives.

    Raises:
        CalibrationError: the sensor cannot be told from the clouds and is not given.
    """

    def __init__(
        self,
        first: Sequence[Cloud],
        config: LidarConfig,
        turned: NDArray,
        notes: list[str],
        sensor: Sensor | None = None,
        cut: float | None = None,
    ) -> None:
        self._config, self._turned, self._fixed_cut = config, turned, cut
        first = [self._oriented(cloud) for cloud in first]
        self._ring_rows: NDArray | None = None
        if sensor is not None or config.sensor:
            self.sensor = sensor or load_sensor(config.sensor)
            if config.rows != "elevation" and rings_of(first[0]) is not None:
                self._ring_rows = self._known_rings(fit_sensor(first), notes)
        else:
            fit = fit_sensor(first, "fitted", spin_time_s=config.spin_time_s or None)
            self.sensor, self._ring_rows = fit.sensor, fit.ring_rows
            if config.rows == "elevation":
                self._ring_rows = None
            notes.append(
                f"sensor fitted: {fit.sensor.rows} rows from {fit.sensor.elevations_deg[0]:.2f} to "
                f"{fit.sensor.elevations_deg[-1]:.2f} deg, {fit.sensor.columns} columns, "
                f"{'clockwise' if fit.sensor.clockwise else 'counter-clockwise'} from "
                f"{fit.sensor.azimuth_start_deg:.1f} deg, {fit.sensor.spin_time_s:.3f} s"
            )
            notes.extend(f"sensor: {note}" for note in fit.notes)
        self._scale = config.intensity_scale or _intensity_scale(first)
        if self._scale != 1 and not config.intensity_scale:
            notes.append(f"intensity divided by {self._scale:g}")
        swept = round(_SECTORS * self.sensor.azimuth_span_deg / 360)
        self._least_sectors = int(_LEAST_SECTORS * max(1, min(swept, _sectors(first))))

    def _known_rings(self, fit: SensorFit, notes: list[str]) -> NDArray | None:
        """Row of each ring in the given sensor, where its table is the one that made the clouds."""
        table = fit.sensor.elevations_deg
        rows = self.sensor.rows_of(np.deg2rad(table))
        spacing = np.abs(np.gradient(self.sensor.elevations_deg)) if self.sensor.rows > 1 else np.array([1.0])
        off = np.abs(self.sensor.elevations_deg[rows] - table) / spacing[rows]
        if len(set(rows.tolist())) == len(rows) and np.median(off) < 0.25 and fit.ring_rows is not None:
            return np.where(fit.ring_rows >= 0, rows[fit.ring_rows], -1)
        if self._config.rows == "ring":
            raise CalibrationError(
                f"sensor {self.sensor.name!r} has other elevations than the rings of the clouds; use "
                "lidar.rows=elevation, or leave lidar.sensor empty"
            )
        notes.append(f"rings do not fit sensor {self.sensor.name!r}: rows are told by elevation")
        return None

    def _oriented(self, cloud: Cloud) -> Cloud:
        if np.array_equal(self._turned, np.eye(4)):
            return cloud
        return replace(cloud, points=transform(cloud.points, self._turned).astype(np.float32))

    def start_us(self, cloud: Cloud) -> int:
        """Time at which the turn begins."""
        if cloud.time_s is not None and len(cloud):
            first = float(cloud.time_s.min())
            # The first columns may lack returns; the stamp is the start if it is that near.
            if 0 <= first < 3 * self.sensor.spin_time_s / self.sensor.columns:
                first = 0.0
            return (cloud.stamp_ns + round(first * 1e9)) // 1000
        late = self.sensor.spin_time_s if self._config.stamp_at == "end" else 0.0
        return cloud.stamp_ns // 1000 - round(late * 1e6)

    def turn(self, cloud: Cloud, next_start_us: int | None, track: Track) -> tuple[Spin, float]:
        """The turn, every point at its own time, and the share of a turn (see recut) at which it begins.

        Raises:
            DataError: an empty cloud, or one that covers too little to be a turn.
        """
        cloud = self._oriented(cloud)
        found = _sectors([cloud])
        if found < self._least_sectors:
            raise DataError(f"cloud covers {found * 360 // _SECTORS} deg: not a full turn")
        start = self.start_us(cloud)
        nominal = round(self.sensor.spin_time_s * 1e6)
        # The end is the start of the next turn, unless clouds are missing.
        end = start + nominal
        if next_start_us is not None and abs(next_start_us - end) < 0.3 * nominal:
            end = next_start_us
        points = cloud.points
        known = track.covers(start) and track.covers(end) and track.covers(cloud.stamp_ns // 1000)
        cut = self._cut(cloud, points)
        if self._config.deskewed != "no" and known:
            at = {"start": start, "end": end, "stamp": cloud.stamp_ns // 1000}[self._config.deskewed]
            poses = track.at([start, end, at])
            # De-skewing moved near points sideways, and with them the azimuth at which the turn seems to begin.
            for _ in range(1 if cloud.time_s is not None else 2):
                points = to_ray_time(cloud.points, self._fractions(cloud, start, end, cut), *poses)
                cut = self._cut(cloud, points)
        rows = None
        ring = rings_of(cloud)
        if self._ring_rows is not None and ring is not None:
            inside = ring < len(self._ring_rows)
            rows = np.where(inside, self._ring_rows[np.where(inside, ring, 0)], -1)
        intensity = None
        if cloud.intensity is not None:
            intensity = np.clip(np.nan_to_num(cloud.intensity) / np.float32(self._scale), 0, 1)
        return Spin(start, end, points, intensity, rows), cut

    def _fractions(self, cloud: Cloud, start: int, end: int, cut: float) -> NDArray:
        if cloud.time_s is not None:
            seconds = cloud.time_s + (cloud.stamp_ns // 1000 - start) * 1e-6
            return np.clip(seconds / ((end - start) * 1e-6), 0, 1)
        share = (turn_share(cloud.points, self.sensor) - cut) % 1.0
        rank = np.empty(len(cloud))
        rank[firing_order(cloud)] = np.arange(len(cloud)) / len(cloud)
        if abs(np.exp(2j * np.pi * (share - rank)).mean()) > 0.8:
            # In firing order: a point that was moved across the seam belongs to the end that it was fired at.
            share = np.clip(share + np.rint(rank - share), 0.0, 1.0)
        return share

    def _cut(self, cloud: Cloud, points: NDArray) -> float:
        """Share of a turn at which the cloud begins: one column before the middle of its first two."""
        if self._fixed_cut is not None:
            return self._fixed_cut
        first = first_points(points, firing_order(cloud), self.sensor.columns)
        angle = np.exp(2j * np.pi * turn_share(first, self.sensor)).mean()
        return float((np.angle(angle) / (2 * np.pi) - 1 / self.sensor.columns) % 1.0)


def forwards(yaw_deg: float) -> NDArray:
    """[4, 4] that turns a frame whose axis at ``yaw_deg`` points forwards into one whose x axis does."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", -yaw_deg, degrees=True).as_matrix()
    return pose


def _sectors(clouds: Sequence[Cloud]) -> int:
    """How many of 36 equal sectors of azimuth hold points, at most over the clouds."""
    counts = [0]
    for cloud in clouds:
        azimuth = np.arctan2(cloud.points[:, 1], cloud.points[:, 0])
        sector = ((azimuth + np.pi) / (2 * np.pi) * _SECTORS).astype(int) % _SECTORS
        counts.append(len(np.unique(sector)))
    return max(counts)


def _intensity_scale(clouds: Sequence[Cloud]) -> float:
    """1 for values in 0..1, 255 up to 255, else the brightest but one in a thousand."""
    values = [cloud.intensity for cloud in clouds if cloud.intensity is not None]
    if not values:
        return 1.0
    everything = np.concatenate(values)
    top = float(np.nanmax(everything, initial=0.0))
    return 1.0 if top <= 1 else 255.0 if top <= 255 else float(np.nanquantile(everything, 0.999))
