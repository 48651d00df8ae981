# SPDX-License-Identifier: Apache-2.0
"""Decodes ``sensor_msgs/PointCloud2`` of the common LiDAR drivers, by field names, without ROS.

Known layouts: Velodyne (x y z intensity ring time), Ouster (x y z intensity t reflectivity ring ambient range),
Hesai and RoboSense (x y z intensity ring timestamp), Livox (x y z intensity tag line timestamp), Autoware
XYZIRC and XYZIRCAEDT, and plain x y z; organised or not, padded or not, of either byte order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MAX_POINTS = 1 << 23
"""More points in one cloud are refused: 8.4 million, above 128 beams x 3600 columns x 4 returns."""
MAX_RINGS = 1024

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}  # sensor_msgs/PointField
_INTENSITY = ("intensity", "intensities", "i", "reflectivity")
_RING = ("ring", "channel", "line", "laser_id")
_TIME = ("time", "t", "time_stamp", "timestamp", "offset_time", "time_offset")


@dataclass(frozen=True)
class Cloud:
    """Points of one message; those with NaN, infinity or at the very origin (no return) are left out.

    Attributes:
        points: [N, 3] float32 metres, in the frame ``frame_id``.
        intensity: [N] float32 in the driver's own unit; 8-bit values are divided by 255.
        ring: [N] int32 laser number in the driver's own order.
        time_s: [N] float64 seconds relative to ``stamp_ns``.
        cell: [N, 2] int32 row and column of an organised cloud (height above 1).
        shape: (height, width) as published.
    """

    points: NDArray
    stamp_ns: int = 0
    frame_id: str = ""
    intensity: NDArray | None = None
    ring: NDArray | None = None
    time_s: NDArray | None = None
    cell: NDArray | None = None
    shape: tuple[int, int] = (1, 0)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def empty_cells(self) -> int:
        """Entries of the message that held no point."""
        return self.shape[0] * self.shape[1] - len(self)


def decode_cloud(
    data: bytes | bytearray | memoryview,
    fields: Sequence[tuple[str, int, int, int]],
    *,
    width: int,
    height: int = 1,
    point_step: int,
    row_step: int = 0,
    big_endian: bool = False,
    stamp_ns: int = 0,
    frame_id: str = "",
    time_unit_s: float | None = None,
    where: str = "point cloud",
) -> Cloud:
    """Cloud from the content of a message.

    Args:
        fields: (name, offset, datatype, count) as in ``sensor_msgs/PointField``.
        row_step: 0 means ``width * point_step``.
        time_unit_s: seconds per unit of the time field, relative to the stamp; None tells by type and size:
            integers are nanoseconds, float32 seconds, float64 seconds or absolute seconds, us or ns.
        where: names the message in errors.

    Raises:
        InputError: sizes that do not fit the data, no x y z of float type, fields outside the point.
    """
    row_step = row_step or width * point_step
    buffer = memoryview(data).cast("B")
    if width < 0 or height < 0 or width * height > MAX_POINTS:
        raise InputError(f"{where}: {width} x {height} points; at most {MAX_POINTS} are read")
    if point_step <= 0 or row_step < width * point_step or len(buffer) < row_step * height:
        raise InputError(
            f"{where}: {len(buffer)} bytes cannot hold {height} rows of {row_step} bytes with {width} points of "
            f"{point_step}; the message is damaged"
        )
    cells = _view(buffer, _chosen(fields, point_step, where), width, height, point_step, row_step, big_endian)
    axes = [np.asarray(cells[axis]) for axis in "xyz"]
    valid = np.isfinite(axes[0]) & np.isfinite(axes[1]) & np.isfinite(axes[2])
    valid &= (axes[0] != 0) | (axes[1] != 0) | (axes[2] != 0)
    ring = _first(cells, _RING)
    if ring is not None:
        ring = ring[valid].astype(np.int32)
        if len(ring) and not 0 <= ring.min() <= ring.max() < MAX_RINGS:
            raise InputError(
                f"{where}: ring numbers {ring.min()} to {ring.max()}; expected 0 to {MAX_RINGS - 1}"
            )
    intensity = _first(cells, _INTENSITY)
    if intensity is not None:
        scale = 255 if intensity.dtype.itemsize == 1 else 1
        intensity = intensity[valid].astype(np.float32) / np.float32(scale)
    time = _first(cells, _TIME)
    return Cloud(
        points=np.stack([axis[valid] for axis in axes], axis=-1).astype(np.float32),
        stamp_ns=stamp_ns,
        frame_id=frame_id,
        intensity=intensity,
        ring=ring,
        time_s=None if time is None else _relative_seconds(time[valid], stamp_ns, time_unit_s, where),
        cell=np.argwhere(valid).astype(np.int32) if height > 1 else None,
        shape=(height, width),
    )


def cloud_from_message(message: Any, where: str = "point cloud", time_unit_s: float | None = None) -> Cloud:
    """Cloud of a PointCloud2 message object of ROS 1 or 2, from ``rosbags`` or rclpy. See :func:`decode_cloud`."""
    stamp = message.header.stamp
    nanoseconds = stamp.nanosec if hasattr(stamp, "nanosec") else stamp.nsec
    data = message.data
    return decode_cloud(
        memoryview(data),
        [(f.name, f.offset, f.datatype, f.count) for f in message.fields],
        width=message.width,
        height=message.height,
        point_step=message.point_step,
        row_step=message.row_step,
        big_endian=bool(message.is_bigendian),
        stamp_ns=stamp.sec * 1_000_000_000 + nanoseconds,
        frame_id=message.header.frame_id,
        time_unit_s=time_unit_s,
        where=where,
    )


def _chosen(
    fields: Sequence[tuple[str, int, int, int]], point_step: int, where: str
) -> dict[str, tuple[str, int]]:
    """The fields that are read: name -> (numpy type without byte order, offset)."""
    known: dict[str, tuple[str, int]] = {}
    for name, offset, datatype, count in fields:
        if name not in ("x", "y", "z", *_INTENSITY, *_RING, *_TIME):
            continue
        if datatype not in _TYPES or count not in (0, 1) or name in known:  # some drivers leave count at 0
            raise InputError(
                f"{where}: field {name} of type {datatype}, count {count} or doubled cannot be read"
            )
        if offset < 0 or offset + int(_TYPES[datatype][1]) > point_step:
            raise InputError(f"{where}: field {name} at {offset} lies outside a point of {point_step} bytes")
        known[name] = _TYPES[datatype], offset
    for axis in "xyz":
        if known.get(axis, ("",))[0] not in ("f4", "f8"):
            names = ", ".join(name for name, *_ in fields)
            raise InputError(f"{where}: needs x, y and z as floats, has {names or 'no fields'}")
    return known


def _view(
    buffer: memoryview,
    known: dict[str, tuple[str, int]],
    width: int,
    height: int,
    point_step: int,
    row_step: int,
    big_endian: bool,
) -> NDArray:
    """[height, width] structured view of the message, no copy."""
    order = ">" if big_endian else "<"
    dtype = np.dtype(
        {
            "names": list(known),
            "formats": [order + kind for kind, _ in known.values()],
            "offsets": [offset for _, offset in known.values()],
            "itemsize": point_step,
        }
    )
    if width * height == 0:
        return np.empty((height, width), dtype)
    return np.ndarray((height, width), dtype, buffer, strides=(row_step, point_step))


def _first(cells: NDArray, names: Sequence[str]) -> NDArray | None:
    present = [name for name in names if name in (cells.dtype.names or ())]
    return np.asarray(cells[present[0]]) if present else None


def _relative_seconds(time: NDArray, stamp_ns: int, unit_s: float | None, where: str) -> NDArray:
    """Seconds relative to the stamp, from whatever the driver wrote."""
    if not len(time):
        return np.zeros(0)
    if not np.isfinite(time).all():
        raise InputError(f"{where}: the time field holds NaN or infinity; is its type right?")
    if unit_s is not None:
        seconds = time.astype(np.float64) * unit_s
    elif time.dtype.kind in "iu":
        # Integers of 32 bits cannot hold an absolute time, so they count nanoseconds from the stamp.
        seconds = time.astype(np.float64) * 1e-9
    elif time.dtype.itemsize == 4 or abs(float(time[0])) < 1e8:
        seconds = time.astype(np.float64)
    else:
        # Absolute: seconds since 1970 are about 2e9 now; the size tells the unit.
        size = abs(float(time[0]))
        per_second = 1e9 if size > 1e17 else 1e6 if size > 1e14 else 1e3 if size > 1e11 else 1.0
        whole, part = divmod(stamp_ns, 1_000_000_000)
        seconds = (time - whole * per_second) / per_second - part * 1e-9
    if np.abs(seconds).max() > 10.0:
        raise InputError(
            f"{where}: points are {np.abs(seconds).max():.3g} s from the stamp; give the unit of the time field"
        )
    return seconds
