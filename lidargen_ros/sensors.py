# SPDX-License-Identifier: Apache-2.0
"""The LiDAR being imitated: where its rays point, when they fire and how far they see.

Frame: x forward, y left, z up (REP-103), metres; azimuth counter-clockwise from +x. Row 0 is the highest
beam. Conventions are laid out in docs/conventions.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .errors import CalibrationError, ConfigError
from .resources import config_path


@dataclass(frozen=True, eq=False)
class Sensor:
    """A spinning LiDAR as a grid of rays, ``rows`` x ``columns``.

    The grid is separable: a ray's elevation depends on its row and its azimuth on its column. Per-row azimuth
    offsets of the hardware never move a ray (a point goes to the column of its own azimuth); they only tell
    when the ray fires (:meth:`ray_times`).

    Attributes:
        elevations_deg: [rows] float64, strictly decreasing, degrees above the x-y plane.
        columns: number of columns over ``azimuth_span_deg``.
        azimuth_offsets_deg: [rows] counter-clockwise offset of the beam from the head's azimuth.
        azimuth_start_deg: left edge of column 0; 180 is straight back.
        clockwise: direction of the columns seen from above.
        spin_time_s: time of one pass over ``azimuth_span_deg``.
        source: where the table comes from, and whether it is nominal.

    Raises:
        CalibrationError: for a table or limit that no sensor can have.
    """

    name: str
    elevations_deg: NDArray
    columns: int
    azimuth_offsets_deg: NDArray = field(default_factory=lambda: np.zeros(0))  # empty: zeros
    azimuth_start_deg: float = 180.0
    azimuth_span_deg: float = 360.0
    clockwise: bool = True
    min_range_m: float = 0.5
    max_range_m: float = 120.0
    spin_time_s: float = 0.1
    source: str = ""

    def __post_init__(self) -> None:
        elevations = np.array(self.elevations_deg, dtype=np.float64)
        offsets = np.array(self.azimuth_offsets_deg, dtype=np.float64)
        offsets = offsets if offsets.size else np.zeros_like(elevations)
        for key, value in (("elevations_deg", elevations), ("azimuth_offsets_deg", offsets)):
            value.setflags(write=False)
            object.__setattr__(self, key, value)
        limits = (
            self.azimuth_start_deg,
            self.azimuth_span_deg,
            self.min_range_m,
            self.max_range_m,
            self.spin_time_s,
        )
        for wrong, why in (
            (elevations.ndim != 1 or elevations.size == 0, "elevations_deg must be a list of numbers"),
            (
                not np.isfinite(elevations).all() or (np.abs(elevations) > 90).any(),
                "elevations_deg must lie within +-90",
            ),
            (
                (np.diff(elevations) >= 0).any(),
                "elevations_deg must fall strictly from row 0, the highest beam",
            ),
            (offsets.shape != elevations.shape, "azimuth_offsets_deg must have one number per row"),
            (not np.isfinite(offsets).all(), "azimuth_offsets_deg must be finite"),
            (not np.isfinite(limits).all(), "start, span, range limits and spin time must be finite"),
            (self.columns < 1, "columns must be at least 1"),
            (not 0 < self.azimuth_span_deg <= 360, "azimuth_span_deg must be above 0 and at most 360"),
            (
                not 0 <= self.min_range_m < self.max_range_m,
                "range limits must satisfy 0 <= min_range_m < max_range_m",
            ),
            (self.spin_time_s <= 0, "spin_time_s must be above 0"),
        ):
            if wrong:
                raise CalibrationError(f"sensor {self.name!r}: {why}; correct its table")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sensor) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.rows, self.columns))

    @property
    def rows(self) -> int:
        return len(self.elevations_deg)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    @property
    def full_turn(self) -> bool:
        """Whether the first and the last column are neighbours."""
        return self.azimuth_span_deg == 360.0

    @property
    def column_step_rad(self) -> float:
        """Signed azimuth step from a column to the next: negative when clockwise."""
        step = np.deg2rad(self.azimuth_span_deg) / self.columns
        return -step if self.clockwise else step

    def elevations(self) -> NDArray:
        """[rows] radians."""
        return np.deg2rad(self.elevations_deg)

    def azimuths(self, edge: bool = False) -> NDArray:
        """[columns] radians of the bin centres (``edge``: of the left, first fired edges); not wrapped."""
        position = np.arange(self.columns) + (0.0 if edge else 0.5)
        return np.deg2rad(self.azimuth_start_deg) + self.column_step_rad * position

    def directions(self, edge: bool = False, dtype: Any = np.float32) -> NDArray:
        """[rows, columns, 3] unit vectors through the bin centres (``edge``: left edges), LiDAR frame; read-only."""
        return self._centre_rays if not edge and dtype is np.float32 else self._rays(edge).astype(dtype)

    def _rays(self, edge: bool) -> NDArray:
        e, a = self.elevations()[:, None], self.azimuths(edge)[None, :]
        return np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e) + 0 * a], axis=-1)

    @cached_property
    def _centre_rays(self) -> NDArray:
        rays = self._rays(edge=False).astype(np.float32)
        rays.setflags(write=False)
        return rays

    def column_times(self) -> NDArray:
        """[columns] seconds after the start of the spin at which the head passes each bin centre."""
        return (np.arange(self.columns) + 0.5) * (self.spin_time_s / self.columns)

    def ray_times(self) -> NDArray:
        """[rows, columns] seconds after the start of the spin at which each ray fires.

        A beam offset by o hits azimuth a when the head is at a - o; over the seam it belongs to the other end
        of the same spin.
        """
        head = self.column_times() - (np.deg2rad(self.azimuth_offsets_deg) / self.column_step_rad)[
            :, None
        ] * (self.spin_time_s / self.columns)
        return head % self.spin_time_s if self.full_turn else np.clip(head, 0.0, self.spin_time_s)

    def columns_of(self, azimuths: NDArray) -> NDArray:
        """Column of each azimuth (radians, any turn) as int64; -1 outside the span."""
        past_start = (
            np.asarray(azimuths, dtype=np.float64) - np.deg2rad(self.azimuth_start_deg)
        ) / self.column_step_rad
        columns = np.floor(past_start % (360.0 / self.azimuth_span_deg * self.columns)).astype(np.int64)
        if self.full_turn:
            # The remainder of a tiny negative number rounds up to a whole turn, which is column 0 again.
            return columns % self.columns
        return np.where(columns < self.columns, columns, -1)

    def rows_of(self, elevations: NDArray) -> NDArray:
        """Row whose elevation is nearest (radians in, int64 out); beyond the outermost beams, that beam."""
        rising = self.elevations()[::-1]
        if self.rows == 1:
            return np.zeros(np.shape(elevations), np.int64)
        nearest = np.searchsorted((rising[1:] + rising[:-1]) / 2, np.asarray(elevations, dtype=np.float64))
        return self.rows - 1 - nearest

    def nearest_rays(self, other: "Sensor") -> tuple[NDArray, NDArray]:
        """The ray of this sensor nearest (by angle) to each ray of ``other``.

        Returns:
            rows, columns: int64 [other.rows, other.columns], so that ``range_map[rows, columns]`` reads this
            sensor's map on the grid of ``other``. Rays of ``other`` outside this sensor's field of view get
            its outermost ray: mask them with :meth:`covers`. Columns must be narrower than half a turn.
        """
        turns = (other.azimuths() - self.azimuths()[0]) / self.column_step_rad
        whole = 360.0 / self.azimuth_span_deg * self.columns
        position = turns % whole
        if self.full_turn:
            columns = np.rint(position).astype(np.int64) % self.columns
        else:  # in the gap behind the sensor the nearer end wins
            position = np.where(position > (self.columns - 1 + whole) / 2, 0.0, position)
            columns = np.clip(np.rint(position), 0, self.columns - 1).astype(np.int64)
        gap = other.azimuths() - self.azimuths()[columns]
        e = other.elevations()[:, None]
        # sin e sin e' + cos e cos e' cos gap = A cos(e' - best): the nearest row is the nearest to best.
        best = np.arctan2(np.sin(e) + 0 * gap, np.cos(e) * np.cos(gap))
        return self.rows_of(best), np.broadcast_to(columns, other.shape)

    def covers(self, other: "Sensor") -> NDArray:
        """[other.rows, other.columns] bool: rays of ``other`` in this field of view, plus half a spacing."""
        top, bottom = self.elevations_deg[0], self.elevations_deg[-1]
        pad = (top - bottom) / max(2 * (self.rows - 1), 1)
        rows = (other.elevations_deg <= top + pad) & (other.elevations_deg >= bottom - pad)
        return rows[:, None] & (self.columns_of(other.azimuths()) >= 0)[None, :]

    def with_columns(self, columns: int) -> "Sensor":
        """The same sensor read out at another number of columns."""
        return replace(self, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as in ``config/sensors/*.yaml``."""
        return {
            f.name: value.tolist() if isinstance(value := getattr(self, f.name), np.ndarray) else value
            for f in fields(self)
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sensor":
        """Inverse of :meth:`to_dict`.

        ``elevations_deg`` may also be ``{top, bottom, rows}`` (evenly spaced), and ``base`` may name another
        sensor whose values stand for the absent ones.

        Raises:
            ConfigError: for an unknown or missing key. CalibrationError: for implausible values.
        """
        given = dict(data)
        if base := given.pop("base", None):
            inherited = load_sensor(base).to_dict()
            if "elevations_deg" in given:  # another table: what belongs to the base's beams does not apply
                del inherited["azimuth_offsets_deg"], inherited["source"]
            given = {**inherited, **given}
        unknown = given.keys() - {f.name for f in fields(cls)}
        missing = {"name", "elevations_deg", "columns"} - given.keys()
        if unknown or missing:
            raise ConfigError(
                f"sensor {given.get('name', '?')!r}: unknown keys {sorted(unknown)}, "
                f"missing keys {sorted(missing)}; see config/sensors/pandar128.yaml"
            )
        if isinstance(span := given["elevations_deg"], Mapping):
            try:
                given["elevations_deg"] = np.linspace(span["top"], span["bottom"], span["rows"])
            except (KeyError, TypeError) as e:
                raise ConfigError(
                    f"sensor {given['name']!r}: even elevations_deg need top, bottom and rows"
                ) from e
        try:
            return cls(**given)
        except (TypeError, ValueError) as e:
            raise ConfigError(
                f"sensor {given['name']!r}: a value is not a number ({e}); correct the file"
            ) from e


def load_sensor(name_or_path: str | Path) -> Sensor:
    """A ready sensor by name (``pandar128`` -> ``config/sensors/pandar128.yaml``) or one's own from YAML.

    Names are matched by their letters and digits only: ``VLP-16`` is ``vlp16``.

    Raises:
        ConfigError: if there is no such sensor or the file is not one.
        CalibrationError: for implausible values.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        ready = {_plain(name): name for name in list_sensors()}
        if (known := ready.get(_plain(str(name_or_path)))) is None:
            raise ConfigError(
                f"sensor {str(name_or_path)!r} is not known; give a .yaml file or one of "
                f"{', '.join(ready.values())}"
            )
        path = config_path("sensors", f"{known}.yaml")
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"sensor file {path} cannot be read: {' '.join(str(e).split())}") from e
    if not isinstance(data, dict):
        raise ConfigError(
            f"sensor file {path} holds no mapping; see config/sensors/pandar128.yaml for the keys"
        )
    return Sensor.from_dict(data)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def list_sensors() -> list[str]:
    """Names of the ready sensors."""
    return sorted(p.stem for p in config_path("sensors").glob("*.yaml"))
