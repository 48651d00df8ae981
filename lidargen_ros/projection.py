# SPDX-License-Identifier: Apache-2.0
"""Range map <-> points, down-sampling, and the shapes that the published model wants.

Where the published model errs, the default here is right and ``reference=True`` does as it does.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .range_coding import Array, namespace
from .sensors import Sensor

REFERENCE_MAX_RANGE_M = 105.0
ELEVATION_MARGIN_DEG = 0.1
_REFERENCE_EMPTY = 1000.0  # stands for "no return" while the published model takes minima

Method = Literal["scatter_min", "scatter_max", "every_n"]


def reference_directions(elevations_deg: ArrayLike, columns: int) -> NDArray:
    """[rows, columns, 3] float64 rays as the published model has them: on the left edges of ``columns`` bins over a
    full turn, whatever the width was cropped from (up to 0.8 deg off for 1792 of 1800 columns)."""
    elevations = np.atleast_1d(np.asarray(elevations_deg, dtype=np.float64))
    order = np.argsort(-elevations)
    sensor = Sensor("reference", elevations[order], columns)
    return sensor.directions(edge=True, dtype=np.float64)[np.argsort(order)]


def range_map_to_points(range_map: NDArray, sensor: Sensor, reference: bool = False) -> NDArray:
    """Returns of a range map [rows, columns] as points [N, 3] float64, row-major, LiDAR frame, metres.

    Args:
        reference: see :func:`reference_directions`; the map may then have any width.

    Raises:
        InputError: if the map does not have the sensor's shape.
    """
    shape = (sensor.rows, np.shape(range_map)[-1]) if reference else sensor.shape
    if np.shape(range_map) != shape:
        raise InputError(
            f"range map is {np.shape(range_map)}, sensor {sensor.name!r} has {shape}; pad_columns a crop"
        )
    directions = sensor.directions(dtype=np.float64)
    if reference:
        directions = reference_directions(sensor.elevations_deg, shape[1])
    seen = np.asarray(range_map) > 0
    return np.asarray(range_map)[seen].astype(np.float64)[:, None] * directions[seen]


def assign_rays(
    points: ArrayLike, sensor: Sensor, rows: ArrayLike | None = None, reference: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """The ray to which each point [N, 3] belongs.

    The column is that of the point's own azimuth; the row is the beam of the nearest elevation, unless ``rows``
    [N] (rings, 0 = highest) are known. Points outside the sensor's range or azimuth, more than 0.1 deg above the
    highest or below the lowest beam, and non-finite ones belong to none.

    Args:
        reference: float32 arithmetic and the range limits of the published converter (0 < r < 105 m).

    Returns:
        row, column: int64 [N], -1 for none; range: [N] metres.
    """
    xyz: Any = np.asarray(points, dtype=np.float32 if reference else np.float64).reshape(-1, 3)
    finite = np.isfinite(xyz).all(axis=1)
    xyz = np.where(finite[:, None], xyz, xyz.dtype.type(0))
    x, y, z = xyz.T
    ranges = np.sqrt(x * x + y * y + z * z)
    elevations = np.degrees(np.arcsin(np.clip(z / np.where(ranges > 0, ranges, 1), -1, 1)))
    table = sensor.elevations_deg.astype(xyz.dtype)
    azimuths = np.arctan2(y, x)
    if reference:
        position = (np.float32(np.pi) - azimuths) / np.float32(2 * np.pi) * np.float32(sensor.columns)
        column = np.clip(position.astype(np.int64), 0, sensor.columns - 1)
        kept = finite & (ranges > 0) & (ranges < REFERENCE_MAX_RANGE_M)
    else:
        column = sensor.columns_of(azimuths)
        kept = (
            finite
            & (ranges > 0)
            & (ranges >= sensor.min_range_m)
            & (ranges <= sensor.max_range_m)
            & (column >= 0)
        )
    if rows is None:
        margin = xyz.dtype.type(ELEVATION_MARGIN_DEG)
        kept &= (elevations >= table[-1] - margin) & (elevations <= table[0] + margin)
        row = sensor.rows_of(np.radians(elevations))
    else:
        row = np.asarray(rows, dtype=np.int64).reshape(-1)
        kept &= (row >= 0) & (row < sensor.rows)
    return np.where(kept, row, -1), np.where(kept, column, -1), ranges


def points_to_range_map(
    points: ArrayLike,
    sensor: Sensor,
    intensity: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    reference: bool = False,
) -> tuple[NDArray, NDArray]:
    """Range map and intensity map, [rows, columns] float32, of points [N, 3] taken at the time of their ray.

    The nearest point of a ray wins and brings its intensity; 0 = no return. See :func:`assign_rays`.
    """
    row, column, ranges = assign_rays(points, sensor, rows, reference)
    range_map, intensity_map = np.zeros((2, *sensor.shape), np.float32)
    kept = np.flatnonzero(row >= 0)
    farthest_first = kept[np.argsort(-ranges[kept], kind="stable")]
    cells = row[farthest_first], column[farthest_first]
    range_map[cells] = ranges[farthest_first]
    if intensity is not None:
        intensity_map[cells] = np.asarray(intensity, dtype=np.float32).reshape(-1)[farthest_first]
    return range_map, intensity_map


def downsample(
    range_map: NDArray,
    factor_rows: int = 1,
    factor_columns: int = 2,
    method: Method = "scatter_min",
    extras: Sequence[NDArray] = (),
    reference: bool = False,
) -> tuple[NDArray, list[NDArray]]:
    """Blocks of a map [..., rows, columns] -> one value: the smallest return, the largest, or the first.

    ``extras`` [..., rows, columns, *any] follow the value that was chosen (the first one on ties and in empty
    blocks); rows are reduced before columns.

    Args:
        reference: as published, a block whose smallest return is 1000 m or more may become 0, and extras come
            back unreduced where the first element was chosen everywhere, or with ``every_n``.

    Raises:
        InputError: if a size is not a multiple of its factor, or the method is unknown.
    """
    axis = np.ndim(range_map) - 2
    for offset, factor in enumerate((factor_rows, factor_columns)):
        range_map, extras = _reduce(range_map, axis + offset, factor, method, extras, reference)
    return range_map, list(extras)


def _reduce(
    x: NDArray, axis: int, factor: int, method: Method, extras: Sequence[NDArray], reference: bool
) -> tuple[NDArray, Sequence[NDArray]]:
    if factor == 1:
        return x, extras
    if factor < 1 or x.shape[axis] % factor:
        raise InputError(
            f"size {x.shape[axis]} is not a multiple of the down-sampling factor {factor}; crop first"
        )

    def blocks(a: NDArray) -> NDArray:
        return a.reshape(*a.shape[:axis], -1, factor, *a.shape[axis + 1 :])

    b = blocks(x)
    if method == "every_n":
        return b.take(0, axis + 1), extras if reference else [blocks(e).take(0, axis + 1) for e in extras]
    if method == "scatter_min":
        empty = _REFERENCE_EMPTY if reference else np.inf
        filled = np.where(b == 0, x.dtype.type(empty), b)
        chosen = filled.argmin(axis + 1)
        out = filled.min(axis + 1)
        out = np.where(out == empty, x.dtype.type(0), out)
    elif method == "scatter_max":
        chosen, out = b.argmax(axis + 1), b.max(axis + 1)
    else:
        raise InputError(
            f"down-sampling method {method!r} is not known; use scatter_min, scatter_max or every_n"
        )
    if reference and not chosen.any():
        return out, extras
    index = np.expand_dims(chosen, axis + 1)
    gathered = []
    for e in extras:
        rest = index.reshape(*index.shape, *[1] * (e.ndim - x.ndim))
        gathered.append(np.take_along_axis(blocks(e), rest, axis + 1).squeeze(axis + 1))
    return out, gathered


def repeat_rows(x: Array, times: int = 4) -> Array:
    """[..., rows, columns] -> [..., rows * times, columns]: each row becomes ``times`` consecutive ones."""
    *lead, rows, columns = x.shape
    spread = namespace(x).broadcast_to(x[..., None, :], (*lead, rows, times, columns))
    return spread.reshape(*lead, rows * times, columns)


def pick_rows(x: Array, times: int = 4, columns: int = 1) -> Array:
    """Inverse of :func:`repeat_rows`: the middle one of each ``times`` rows (and of each ``columns`` columns)."""
    return x[..., times // 2 :: times, columns // 2 :: columns]


def crop_columns(x: Array, width: int, start: int | None = None) -> Array:
    """[..., columns] -> [..., width], from ``start`` or from the middle.

    Raises:
        InputError: if the crop does not fit.
    """
    columns = x.shape[-1]
    first = (columns - width) // 2 if start is None else start
    if not 0 <= first <= first + width <= columns:
        raise InputError(f"a crop of {width} columns from {first} does not fit into {columns} columns")
    return x[..., first : first + width]


def pad_columns(range_map: NDArray, columns: int, start: int | None = None) -> NDArray:
    """Inverse of :func:`crop_columns`: rays that were cropped away have no return. This, not stretching the crop over
    the turn, is how a map of 1792 columns gets back onto its sensor of 1800."""
    missing = columns - range_map.shape[-1]
    left = missing // 2 if start is None else start
    if not 0 <= left <= missing:
        raise InputError(f"{range_map.shape[-1]} columns from {left} do not fit into {columns} columns")
    return np.pad(range_map, [(0, 0)] * (range_map.ndim - 1) + [(left, missing - left)])


def pad_to_multiple(x: NDArray, multiple: int = 16) -> NDArray:
    """[..., height, width] zero-padded on both sides to multiples; an odd one goes to the bottom or right."""
    missing = [-size % multiple for size in x.shape[-2:]]
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(m // 2, m - m // 2) for m in missing])


def unpad(x: Array, height: int, width: int) -> Array:
    """Inverse of :func:`pad_to_multiple`."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
