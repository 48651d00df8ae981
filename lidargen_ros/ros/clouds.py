# SPDX-License-Identifier: Apache-2.0
"""Sweeps as the bytes of ``sensor_msgs/PointCloud2``, in the layouts that existing LiDAR stacks read.

| point_type | who reads it | bytes per point |
|---|---|---|
| ``xyzi`` | RViz, PCL, KISS-ICP; Ouster's ``o_xyzi`` | 16 |
| ``xyzirc`` | Autoware, Nebula ``PointXYZIRC`` | 16 |
| ``xyzircaedt`` | Autoware, Nebula ``PointXYZIRCAEDT`` | 32 |
| ``velodyne`` | ``velodyne_pointcloud`` ``XYZIRT`` | 22 |
| ``ouster`` | ``ouster_ros::Point`` | 48 |

Field by field, with units, in docs/node.md.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..sensors import Sensor
from ..sweep import Sweep

_XYZ = [("x", "<f4", 0), ("y", "<f4", 4), ("z", "<f4", 8)]
_XYZIRC = [*_XYZ, ("intensity", "u1", 12), ("return_type", "u1", 13), ("channel", "<u2", 14)]
LAYOUTS: dict[str, tuple[int, list[tuple[str, str, int]]]] = {
    "xyzi": (16, [*_XYZ, ("intensity", "<f4", 12)]),
    "xyzirc": (16, _XYZIRC),
    "xyzircaedt": (
        32,
        [
            *_XYZIRC,
            ("azimuth", "<f4", 16),
            ("elevation", "<f4", 20),
            ("distance", "<f4", 24),
            ("time_stamp", "<u4", 28),
        ],
    ),
    "velodyne": (22, [*_XYZ, ("intensity", "<f4", 12), ("ring", "<u2", 16), ("time", "<f4", 18)]),
    "ouster": (
        48,
        [
            *_XYZ,
            ("intensity", "<f4", 16),
            ("t", "<u4", 20),
            ("reflectivity", "<u2", 24),
            ("ring", "<u2", 26),
            ("ambient", "<u2", 28),
            ("range", "<u4", 32),
        ],
    ),
}
"""point_type -> (point_step, fields as (name, dtype, offset)), as the drivers publish them."""

# sensor_msgs/PointField datatype numbers.
_DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
_SINGLE_STRONGEST = 1  # autoware_point_types::ReturnType; 0 is INVALID
FULL_INTENSITY = 255.0
"""Intensity 1.0 of a sweep as published, in every layout: the 8-bit scale that Velodyne and Autoware use."""


@dataclass(frozen=True)
class Cloud:
    """What goes into a ``PointCloud2`` beside its header."""

    points: NDArray  # structured, [height, width], contiguous
    is_dense: bool

    @property
    def height(self) -> int:
        return self.points.shape[0]

    @property
    def width(self) -> int:
        return self.points.shape[1]

    @property
    def point_step(self) -> int:
        return self.points.dtype.itemsize

    @property
    def row_step(self) -> int:
        return self.point_step * self.width

    def data(self) -> NDArray:
        """Flat uint8 view of the points."""
        return self.points.reshape(-1).view(np.uint8)


def point_dtype(point_type: str, probability: bool = False) -> np.dtype:
    """Structured dtype of one point; ``probability`` appends ``return_probability`` float32.

    Raises:
        ConfigError: for an unknown ``point_type``.
    """
    if point_type not in LAYOUTS:
        raise ConfigError(f"point_type {point_type!r} is not known; use one of {', '.join(LAYOUTS)}")
    step, fields = LAYOUTS[point_type]
    if probability:
        fields, step = [*fields, ("return_probability", "<f4", step)], step + 4
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})


def point_fields(dtype: np.dtype, make: Any) -> list[Any]:
    """``PointField`` messages of a dtype; ``make`` is the message class."""
    assert dtype.fields is not None
    ordered = sorted(dtype.fields.items(), key=lambda item: item[1][1])
    return [
        make(name=name, offset=int(offset), datatype=_DATATYPES[kind.str[1:]], count=1)
        for name, (kind, offset, *_) in ordered
    ]


class CloudPacker:
    """Packs sweeps of one sensor into one layout; what does not change between sweeps is written once.

    The points of a cloud are overwritten by the next :meth:`pack`: publish it (which copies) before that.

    Args:
        organised: keep every ray, [rows, columns] with NaN for no return (``velodyne``: transposed, as its
            driver does); otherwise [1, returns].
        spin: per-point times follow the column over the spin; otherwise 0, a snapshot at the header's stamp.
    """

    def __init__(
        self,
        sensor: Sensor,
        point_type: str = "xyzirc",
        *,
        organised: bool = True,
        probability: bool = False,
        spin: bool = False,
    ) -> None:
        self.dtype = point_dtype(point_type, probability)
        self.point_type, self.organised, self.sensor = point_type, organised, sensor
        self._directions = np.ascontiguousarray(np.moveaxis(sensor.directions(), -1, 0))
        self._points = np.zeros(sensor.shape, self.dtype)
        rows = np.arange(sensor.rows)[:, None]
        times = sensor.column_times()[None, :] if spin else np.zeros((1, sensor.columns))
        azimuths = np.arctan2(np.sin(sensor.azimuths()), np.cos(sensor.azimuths()))
        fixed = {
            "channel": rows,
            # Velodyne counts rings from the lowest beam, everybody else from the highest.
            "ring": rows[::-1] if point_type == "velodyne" else rows,
            "azimuth": azimuths[None, :],
            "elevation": sensor.elevations()[:, None],
            "time": times,
            "time_stamp": np.rint(times * 1e9),
            "t": np.rint(times * 1e9),
        }
        for name in fixed.keys() & set(self.dtype.names or ()):
            self._points[name] = fixed[name]

    def pack(self, sweep: Sweep) -> Cloud:
        """The cloud of a sweep of :attr:`sensor`. A missing intensity is published as 0."""
        points, ranges = self._points, sweep.range_map
        seen = ranges > 0
        metres = np.where(seen, ranges, np.float32(np.nan))
        for axis, name in enumerate("xyz"):
            np.multiply(metres, self._directions[axis], out=points[name])
        names = self.dtype.names or ()
        self._write_intensity(sweep, seen)
        if "return_type" in names:
            points["return_type"] = np.where(seen, _SINGLE_STRONGEST, 0)
        if "distance" in names:
            points["distance"] = metres
        if "range" in names:
            points["range"] = np.rint(ranges * 1000.0)
        if "return_probability" in names:
            given = sweep.return_probability
            points["return_probability"] = seen if given is None else given  # undecided models say 1 or 0
        if not self.organised:
            return Cloud(points[seen][None, :], is_dense=True)
        if self.point_type == "velodyne":
            return Cloud(np.ascontiguousarray(points.T), is_dense=bool(seen.all()))
        return Cloud(points, is_dense=bool(seen.all()))

    def _write_intensity(self, sweep: Sweep, seen: NDArray) -> None:
        points = self._points
        level: NDArray | float = 0.0
        if sweep.intensity is not None:
            level = np.clip(sweep.intensity, 0.0, 1.0) * np.float32(FULL_INTENSITY) * seen
        points["intensity"] = np.rint(level) if points["intensity"].dtype == np.uint8 else level
        if "reflectivity" in (self.dtype.names or ()):
            points["reflectivity"] = np.rint(level)


def fill_cloud(message: Any, cloud: Cloud, fields: list[Any], assign: Any) -> Any:
    """Write a cloud into a ``PointCloud2`` message, header excepted; returns the message."""
    message.height, message.width = cloud.height, cloud.width
    message.fields = fields
    message.is_bigendian = False
    message.point_step, message.row_step = cloud.point_step, cloud.row_step
    message.is_dense = cloud.is_dense
    assign(message, cloud.data())
    return message
