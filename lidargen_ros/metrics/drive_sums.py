# SPDX-License-Identifier: Apache-2.0
"""Counts one pair of sweeps after the other; everything of ``drive_report`` but the Chamfer distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..sensors import Sensor
from .edges import bleeding
from .ladder import ConstantMap
from .range_errors import RANGE_EDGES_M, ErrorSums, MaeSums, range_bins, range_labels, window
from .returns import ReturnCounts

_BINS = len(RANGE_EDGES_M)
_PARTS = ("unseen", "seen")


class DriveSums:
    """Running sums over the pairs of a drive; arguments as for ``drive_report``."""

    def __init__(
        self,
        sensor: Sensor,
        truth_sensor: Sensor,
        baseline: ConstantMap,
        seen: NDArray | None,
        window_m: tuple[float, float],
        threshold: float,
    ) -> None:
        self.sensor, self.truth_sensor, self.baseline = sensor, truth_sensor, baseline
        self.window_m, self.threshold, self.seen = window_m, threshold, seen
        check_shape("baseline", baseline.range_map, truth_sensor)
        if seen is not None:
            check_shape("seen mask", seen, sensor)

        self.index = sensor.nearest_rays(truth_sensor)
        self.shared = sensor.covers(truth_sensor)
        self.shared_back = truth_sensor.covers(sensor)
        self.directions, self.true_directions = sensor.directions(), truth_sensor.directions()
        shape = truth_sensor.shape
        self.part = np.zeros(shape, np.intp) if seen is None else seen[self.index].astype(np.intp)
        self.row = np.broadcast_to(np.arange(shape[0])[:, None], shape)

        # groups are [dropped or returned by the generator, unseen or seen, bin of the true range]
        self.groups = np.arange(2 * len(_PARTS) * _BINS).reshape(2, len(_PARTS), _BINS)
        self.errors, self.baseline_errors = ErrorSums(self.groups.size), MaeSums(self.groups.size)
        self.errors_by_row = MaeSums(shape[0])
        self.wanted = np.zeros(self.groups.size, np.int64)  # true returns in the window
        self.missed = np.zeros((2, _BINS), np.int64)  # [all true returns, those that the generator dropped]
        self.returns = [ReturnCounts(shape[0], threshold) for _ in _PARTS]
        self.bleeding = np.zeros((2, 2), np.int64)  # [generated, true] x [bleeding, judged]
        self.points = np.zeros(2, np.int64)
        self.frames = 0

    def add(self, generated: NDArray, returns: NDArray | None, true: NDArray) -> tuple[NDArray, NDArray]:
        """Count one pair. Gives both clouds ``[n, 3]``, without rays that the other sensor cannot see."""
        check_shape(f"pair {self.frames}: generated range map", generated, self.sensor)
        check_shape(f"pair {self.frames}: true range map", true, self.truth_sensor)
        returns = generated > 0 if returns is None else returns
        check_shape(f"pair {self.frames}: returns", returns, self.sensor)
        decided = (returns if returns.dtype == bool else returns >= self.threshold) & (generated > 0)

        self._add_errors(generated[self.index], decided[self.index] & self.shared, true)
        score = decided if returns.dtype == bool else np.where(generated > 0, returns, 0)
        self._add_returns(score[self.index], decided[self.index] & self.shared, true)

        shown = np.where(decided, generated, 0)
        for side, (range_map, sensor) in enumerate(((shown, self.sensor), (true, self.truth_sensor))):
            bleeds, judged = bleeding(range_map, circular=sensor.full_turn)
            self.bleeding[side] += int(bleeds.sum()), int(judged.sum())
            self.points[side] += int((range_map > 0).sum())
        self.frames += 1
        return (
            _points(np.where(self.shared_back, shown, 0), self.directions),
            _points(np.where(self.shared, true, 0), self.true_directions),
        )

    def _add_errors(self, ranges: NDArray, decided: NDArray, true: NDArray) -> None:
        """``ranges`` are the generator's on the true grid, also on rays that it decided to drop."""
        wanted = window(true, *self.window_m) & self.shared
        group = self.groups[decided.astype(np.intp), self.part, range_bins(true)]
        self.wanted += np.bincount(group[wanted], minlength=len(self.wanted))
        counted, base = np.flatnonzero(wanted & (ranges > 0)), self.baseline.range_map.ravel()
        ranges, true, group = ranges.ravel()[counted], true.ravel()[counted], group.ravel()[counted]
        self.errors.add(ranges, true, group)
        self.baseline_errors.add(base[counted], true, group)
        returned = decided.ravel()[counted]
        self.errors_by_row.add(ranges[returned], true[returned], self.row.ravel()[counted][returned])

    def _add_returns(self, score: NDArray, decided: NDArray, true: NDArray) -> None:
        # What the generator's sensor could not have measured is no return for it.
        real = (true > 0) & (true >= self.sensor.min_range_m) & (true <= self.sensor.max_range_m)
        for number, counts in enumerate(self.returns):
            counts.add(score, real, self.shared & (self.part == number))
        bins = range_bins(true)
        for side, mask in enumerate((real & self.shared, real & self.shared & ~decided)):
            self.missed[side] += np.bincount(bins[mask], minlength=_BINS)

    def result(self) -> dict[str, Any]:
        """All entries of the report that do not need the clouds."""
        counts = self.returns[0] + self.returns[1]
        bleeding_rates = [int(b) / int(judged) if judged else None for b, judged in self.bleeding]
        drop_rates = [[None if np.isnan(r) else float(r) for r in side] for side in counts.drop_rates().T]
        report = {
            "frames": self.frames,
            "window_m": list(self.window_m),
            "points_mean": self.points[0] / self.frames,
            "points_true_mean": self.points[1] / self.frames,
            **self._headline(self.groups[1]),
            "return_accuracy": counts.result()["accuracy"],
            "all_rays": self.errors.result(),
            "baseline_all_rays_mae_m": self.baseline_errors.mae(),
            "errors": self.errors.result(self.groups[1].ravel()),
            "errors_by_range": {
                label: self.errors.result(self.groups[1, :, k]) for k, label in enumerate(range_labels())
            },
            "mae_m_by_row": [self.errors_by_row.mae(k) for k in range(self.truth_sensor.rows)],
            "returns": counts.result(),
            "drop_rate_by_row": dict(zip(("generated", "true"), drop_rates, strict=True)),
            "missed_share_by_range": {
                label: int(missed) / int(real) if real else None
                for label, real, missed in zip(range_labels(), *self.missed, strict=True)
            },
            "edge_bleeding_rate": dict(zip(("generated", "true"), bleeding_rates, strict=True)),
        }
        if self.seen is not None:
            for number, name in enumerate(_PARTS):
                report[name] = {
                    **self._headline(self.groups[1, number : number + 1]),
                    "return_accuracy": self.returns[number].result()["accuracy"],
                }
        return report

    def _headline(self, returned: NDArray) -> dict[str, Any]:
        """Of the given groups ``[parts, bins]`` of returned rays."""
        errors = self.errors.result(returned.ravel())
        dropped = returned - self.groups[1, 0, 0]
        wanted = int(self.wanted[[*returned.ravel(), *dropped.ravel()]].sum())
        return {
            "mae_m": errors["mae_m"],
            "abs_rel": errors["abs_rel"],
            "baseline_mae_m": self.baseline_errors.mae(returned.ravel()),
            "rays": errors["rays"],
            "rays_share": errors["rays"] / wanted if wanted else None,
        }


def check_shape(what: str, array: NDArray, sensor: Sensor) -> None:
    """Raise InputError unless the array has one element per ray of the sensor."""
    if array.shape != sensor.shape:
        raise InputError(
            f"{what} is {array.shape} but sensor {sensor.name!r} has {sensor.shape} rays; "
            "give the sensor that made it"
        )


def _points(range_map: NDArray, directions: NDArray) -> NDArray:
    returns = np.flatnonzero(range_map > 0)
    return range_map.ravel()[returns, None] * directions.reshape(-1, 3)[returns]
