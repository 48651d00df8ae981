# SPDX-License-Identifier: Apache-2.0
"""The rungs that a number must be read against: predictors that understand nothing of the pictures.

Without them "Chamfer 3.0 m" may be good or worse than copying the last sweep. From weak to strong: the best
constant map, the nearest training sweep (an oracle: it searches with the truth in hand), the previous true
sweep; and, for models with a tokenizer, what its decoder makes of the encoded truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConstantMap:
    """The best constant predictor of a set of maps.

    Attributes:
        range_map: ``[rows, columns]`` metres, the median of each ray over its returns: the constant with the
            smallest mean absolute error. Rays that never returned hold the median of their row (of the map,
            where a whole row is empty), so that a range is there for every ray.
        return_share: ``[rows, columns]`` share of the maps in which the ray returned.
    """

    range_map: NDArray
    return_share: NDArray

    @property
    def returns(self) -> NDArray:
        """The majority: rays that returned in at least half of the maps."""
        return self.return_share >= 0.5


def constant_map(maps: Iterable[NDArray]) -> ConstantMap:
    """Fit the best constant predictor to maps ``[rows, columns]`` of one sensor, in metres, 0 = no return."""
    stack = np.stack(list(maps), axis=-1).astype(np.float32)
    counts = (stack > 0).sum(axis=-1)
    ordered = np.sort(np.where(stack > 0, stack, np.inf), axis=-1)
    low, high = (
        np.take_along_axis(ordered, np.maximum(k, 0)[..., None], axis=-1)[..., 0] for k in _middle(counts)
    )
    ranges = np.where(counts > 0, (low + high) / 2, np.nan).astype(np.float32)
    return ConstantMap(_filled(ranges), (counts / stack.shape[-1]).astype(np.float32))


class SweepLibrary:
    """Training sweeps searched by likeness to a true sweep.

    Likeness is the mean absolute difference of ln range over a thinned grid, no return counting as ``far``
    metres: a missing return is about as wrong as a far one.
    """

    def __init__(
        self, maps: Sequence[NDArray], rows_step: int = 4, columns_step: int = 8, far: float = 120.0
    ) -> None:
        self.maps = maps
        self._thin = (slice(None, None, rows_step), slice(None, None, columns_step))
        self._far = far
        self._described = np.stack([self._describe(map_) for map_ in maps])

    def nearest(self, true: NDArray) -> NDArray:
        """The map of the library most like ``true`` ``[rows, columns]``."""
        differences = np.abs(self._described - self._describe(true)).mean(axis=1)
        return self.maps[int(differences.argmin())]

    def _describe(self, map_: NDArray) -> NDArray:
        thin = map_[self._thin].astype(np.float32)
        return np.log(np.where(thin > 0, np.minimum(thin, self._far), self._far)).ravel()


def _middle(counts: NDArray) -> tuple[NDArray, NDArray]:
    return (counts - 1) // 2, counts // 2 - (counts == 0)


def _filled(ranges: NDArray) -> NDArray:
    if np.isnan(ranges).all():
        return np.zeros_like(ranges)
    for row in ranges:
        empty = np.isnan(row)
        if empty.any() and not empty.all():
            row[empty] = np.median(row[~empty])
    return np.where(np.isnan(ranges), np.nanmedian(ranges), ranges).astype(np.float32)
