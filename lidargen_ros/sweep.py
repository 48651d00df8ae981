# SPDX-License-Identifier: Apache-2.0
"""One turn of the LiDAR."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .sensors import Sensor


@dataclass
class Sweep:
    """A range map with the sensor it belongs to.

    Attributes:
        range_map: [rows, columns] float32, metres along the ray, 0 = no return.
        stamp_ns: the time to which the sweep belongs, nanoseconds.
        return_probability: [rows, columns] float32 in 0..1, where the model gives it.
        intensity: [rows, columns] float32 in 0..1, where the model gives it.

    Raises:
        InputError: if an array does not have the sensor's shape.
    """

    range_map: NDArray
    sensor: Sensor
    stamp_ns: int = 0
    return_probability: NDArray | None = None
    intensity: NDArray | None = None

    def __post_init__(self) -> None:
        for name in ("range_map", "return_probability", "intensity"):
            value = getattr(self, name)
            if value is None:
                continue
            if np.shape(value) != self.sensor.shape:
                raise InputError(
                    f"sweep {name} is {np.shape(value)}, its sensor {self.sensor.name!r} has "
                    f"{self.sensor.shape}; use the sensor that made it, or Sensor.with_columns"
                )
            setattr(self, name, np.asarray(value, dtype=np.float32))

    @property
    def returns(self) -> NDArray:
        """[rows, columns] bool: rays that came back."""
        return self.range_map > 0

    @property
    def column_times(self) -> NDArray:
        """[columns] seconds after the start of the spin."""
        return self.sensor.column_times()

    def points(self) -> NDArray:
        """[N, 3] float32 of the returns, row-major, LiDAR frame at the time of each ray."""
        seen = np.flatnonzero(self.returns)
        rays = self.sensor.directions().reshape(-1, 3)
        return np.take(self.range_map.reshape(-1, 1), seen, axis=0) * np.take(rays, seen, axis=0)

    def organised_points(self) -> NDArray:
        """[rows, columns, 3] float32; NaN where nothing came back."""
        ranges = np.where(self.returns, self.range_map, np.float32(np.nan))
        return ranges[..., None] * self.sensor.directions()
