# SPDX-License-Identifier: Apache-2.0
"""The tars of a clip: one sample each, members ``CLIP.FRAME.field``; and the spins in ``lidar/CLIP.tar``."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..sensors import Sensor
from .archives import MAX_MEMBER_BYTES, TarMembers, parse_npy, parse_npz
from .clip_metadata import FRAME

_MAX_NPY_BYTES = 4096  # poses and intrinsics


def frame_key(frame: str | int, field: str) -> str:
    """Key of a frame's member."""
    return f"{int(frame):06d}.{field}"


class ClipTar:
    """Members of a tar by key: what follows the clip name, in lower case, frame numbers padded to six digits.

    A leading folder or ``./`` in member names does not matter.

    Raises:
        DataError: see :class:`.archives.TarMembers`; members of several clips; a key that occurs twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = TarMembers(path)
        self.clip = ""
        self._names: dict[str, str] = {}
        try:
            for name in self._tar.names:
                self._add(name)
        except DataError:
            self.close()
            raise

    def _add(self, name: str) -> None:
        clip, _, rest = name.rpartition("/")[2].partition(".")
        if self.clip and clip != self.clip:
            raise DataError(
                f"{self.path}: members of two clips, {self.clip} and {clip}; one tar holds one clip"
            )
        self.clip = clip
        number, _, field = rest.lower().partition(".")
        key = frame_key(number, field) if FRAME.fullmatch(number) else rest.lower()
        if not key or key in self._names:
            raise DataError(f"{self.path}: member {name} occurs twice or has no field; write the tar again")
        self._names[key] = name

    def __contains__(self, key: str) -> bool:
        return key.lower() in self._names

    def frames(self, fields: Iterable[str]) -> list[int]:
        """Frame numbers that have a member for each of ``fields``, rising."""
        found = []
        for field in map(str.lower, fields):
            numbers = (key.removesuffix(f".{field}") for key in self._names if key.endswith(f".{field}"))
            found.append({int(number) for number in numbers if FRAME.fullmatch(number)})
        return sorted(set.intersection(*found))

    def where(self, key: str) -> str:
        """Words that name a member in errors."""
        return f"{self.path}: {self._names.get(key.lower(), key)}"

    def read(self, key: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        """Content of a member of at most ``max_bytes``."""
        if key not in self:
            raise DataError(f"{self.path}: no member {self.clip}.{key}; the clip is incomplete")
        return self._tar.read(self._names[key.lower()], max_bytes)

    def array(self, key: str) -> NDArray:
        """Small array of an npy member."""
        return parse_npy(self.read(key), self.where(key), _MAX_NPY_BYTES)

    def close(self) -> None:
        self._tar.close()


SPIN_FIELDS = ("lidar_row.npz", "lidar_col.npz", "lidar_range.npz")


def read_spin(tar: ClipTar, frame: str | int, sensor: Sensor, value: str = "range") -> NDArray:
    """[rows, columns] float32 of one spin: metres along the ray (``value="range"``) or ``"intensity"``; 0 = none.

    The order of the stored pixels does not matter; of doubled ones the last counts.

    Raises:
        DataError: a missing or damaged member, wrong types, pixels outside the sensor's map, NaN, an empty spin.
    """
    rows, columns = sensor.shape
    most = 4 * rows * columns  # doubled pixels are legal, a flood of them is not
    parts = {}
    where = ""
    for name, kinds in (("row", "iu"), ("col", "iu"), (value, "f")):
        key = frame_key(frame, f"lidar_{name}.npz")
        where = tar.where(key)
        array = parse_npz(tar.read(key), where, most * 8).get("arr_0")
        if array is None or array.ndim != 1 or array.dtype.kind not in kinds or len(array) > most:
            found = "no arr_0" if array is None else f"{array.shape} of {array.dtype}"
            raise DataError(f"{where}: {found}; expected at most {most} numbers of kind {kinds}")
        parts[name] = array
    if len({len(part) for part in parts.values()}) != 1:
        lengths = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
        raise DataError(f"{where}: lengths differ ({lengths}); write the spin again")
    row, column, values = parts["row"], parts["col"], parts[value].astype(np.float32)
    if len(values) == 0:
        raise DataError(f"{where}: empty spin; remove frame {frame} from the metadata")
    if row.min() < 0 or column.min() < 0 or row.max() >= rows or column.max() >= columns:
        raise DataError(
            f"{where}: pixel ({row.max()}, {column.max()}) outside the {rows} x {columns} map of "
            f"{sensor.name}; does lidar_sensor_config fit?"
        )
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError(f"{where}: NaN, infinite or negative values; write the spin again")
    grid = np.zeros((rows, columns), np.float32)
    grid[row, column] = values
    return grid
