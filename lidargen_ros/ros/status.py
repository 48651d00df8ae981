# SPDX-License-Identifier: Apache-2.0
"""Entries of /diagnostics, and the judgement of calibration and machine. No ROS in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .calibrator import CalibrationState
from .parameters import Settings

OK, WARN, ERROR, STALE = 0, 1, 2, 3
NAMES = ("OK", "WARN", "ERROR", "STALE")
HYSTERESIS = 3
"""A level must be found this many times in a row before it is reported better or worse."""
SAME_SHAPE = 0.03
"""Images may differ from the calibrated proportions by this share; more means that they are cropped."""


@dataclass
class Status:
    """One entry of /diagnostics."""

    name: str
    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Hysteresis:
    """Follows a level only once it has been seen :data:`HYSTERESIS` times in a row; the first one at once."""

    def __init__(self) -> None:
        self._reported: int | None = None
        self._seen, self._times = OK, 0

    def __call__(self, level: int) -> int:
        self._times = self._times + 1 if level == self._seen else 1
        self._seen = level
        if self._reported is None or self._times >= HYSTERESIS:
            self._reported = level
        return self._reported


def calibration_status(state: CalibrationState | None, cameras: Mapping[str, Any], s: Settings) -> Status:
    """Whether there is a calibration, whether it can be meant, and whether it belongs to these images.

    Args:
        cameras: of a snapshot: size and stamp of each camera's newest image.
    """
    if state is None:
        return Status("calibration", OK, "no model is loaded")
    values = {"source": state.source}
    said = list(state.doubts)
    for name, camera in cameras.items():
        if camera["size"] and name in state.sizes:
            said += _another_shape(name, camera["size"], state.sizes[name])
        if name in state.stamps_ns and camera["stamp_ns"]:
            age_s = (camera["stamp_ns"] - state.stamps_ns[name]) / 1e9
            values[f"{name}.age_s"] = f"{age_s:.3f}"
            if s.calibration_max_age and age_s > s.calibration_max_age:
                said.append(
                    f"{name}: its CameraInfo is {age_s:.0f} s older than its images; is it still published?"
                )
    if state.missing:
        return Status("calibration", ERROR, "missing: " + "; ".join([*state.missing, *said]), values)
    return Status(
        "calibration", WARN if said else OK, "; ".join(said) or f"from {state.source or 'the bundle'}", values
    )


def _another_shape(name: str, size: tuple[int, int], calibrated: tuple[int, int]) -> list[str]:
    stretch = size[0] / size[1] / (calibrated[0] / calibrated[1])
    if abs(stretch - 1) < SAME_SHAPE:
        return []
    return [
        f"{name}: images are {size[0]} x {size[1]}, the calibration is for {calibrated[0]} x {calibrated[1]}: not the "
        "same proportions; correct the rig if the images are cropped"
    ]


def gpu_status(readings: Mapping[str, float], unreadable: str, s: Settings) -> Status:
    """Memory and temperature of the GPU, where they can be read.

    Args:
        readings: see :meth:`.gauges.Gauges.read`.
        unreadable: why something is not there.
    """
    values = {k: f"{v:g}" for k, v in readings.items() if k.startswith("gpu_")}
    if not values:
        return Status("gpu", OK, f"no readings: {unreadable}")
    said, level, parts = [], OK, []
    if "gpu_total_mb" in readings:
        share = readings["gpu_used_mb"] / readings["gpu_total_mb"]
        parts.append(f"{readings['gpu_used_mb']:.0f} of {readings['gpu_total_mb']:.0f} MB")
        if share > s.gpu_memory_warn:
            level = WARN
            said.append("memory is nearly full; end other processes or use a smaller bundle")
    if (celsius := readings.get("gpu_temperature_c")) is not None:
        parts.append(f"{celsius:.0f} degrees C")
        if celsius >= s.gpu_temperature_warn:
            level = ERROR if celsius >= s.gpu_temperature_error else max(level, WARN)
            said.append("too hot; look after its cooling")
    return Status("gpu", level, "; ".join([", ".join(parts), *said]), values)
