# SPDX-License-Identifier: Apache-2.0
"""Cuts the stream of turns at another azimuth.

Clips want turns that begin where column 0 does (straight back in the published format), so that columns are in
order of time. Drivers cut where they like, some at another azimuth each time. A new turn is the late part of one
cloud and the early part of the next.
"""

import numpy as np
from numpy.typing import NDArray

from lidargen_ros.sensors import Sensor

from .drive import Spin

_SAME_DEG = 2.0  # nearer cuts than this are left alone


def turn_share(points: NDArray, sensor: Sensor) -> NDArray:
    """[N] share of a turn, 0..1, that the sensor has turned from its start to each point's azimuth."""
    azimuth = np.arctan2(points[:, 1], points[:, 0]).astype(np.float64)
    turned = azimuth - np.deg2rad(sensor.azimuth_start_deg)
    return (-turned if sensor.clockwise else turned) / (2 * np.pi) % 1.0


class Recut:
    """Takes clouds in order, gives turns that begin at the sensor's start.

    Attributes:
        dropped: what could not be put together, by reason.
    """

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._before: tuple[Spin, float] | None = None
        self.dropped: dict[str, int] = {}

    def add(self, spin: Spin, cut: float) -> Spin | None:
        """The turn that this cloud completes, if any; ``cut``: share (:func:`turn_share`) at which it begins."""
        off = min(cut, 1 - cut) * 360  # degrees
        if off <= max(_SAME_DEG, 540 / self._sensor.columns) or not self._sensor.full_turn:
            self._before = None
            return spin
        before, self._before = self._before, (spin, cut)
        if before is None:
            self._count("half turn before the first whole one")
            return None
        joined = self._joined(*before, spin, cut)
        if joined is None:
            self._count("turn cut by a missing cloud")
        return joined

    def _count(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _joined(self, first: Spin, first_cut: float, second: Spin, second_cut: float) -> Spin | None:
        length = first.end_us - first.start_us
        start = first.start_us + round((1 - first_cut) * length)
        end = second.start_us + round((1 - second_cut) * (second.end_us - second.start_us))
        if abs(second.start_us - first.end_us) > 0.2 * length or end <= start:
            return None
        late = turn_share(first.points, self._sensor) < first_cut
        early = turn_share(second.points, self._sensor) >= second_cut

        def both(a: NDArray | None, b: NDArray | None) -> NDArray | None:
            return None if a is None or b is None else np.concatenate([a[late], b[early]])

        points = np.concatenate([first.points[late], second.points[early]])
        return Spin(
            start, end, points, both(first.intensity, second.intensity), both(first.rows, second.rows)
        )
