# SPDX-License-Identifier: Apache-2.0
"""Generated and true sweeps of held-out frames: what recipes hand over for figures, pictures and ``lidargen evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from lidargen_ros.metrics.report import drive_report
from lidargen_ros.sensors import Sensor


@dataclass(frozen=True)
class Pair:
    """One held-out moment; range maps ``[rows, columns]`` in metres, 0 = no return.

    Attributes:
        returns: probability of a return, where ``generated`` has a range on every ray.
        tokenizer: what the tokenizer alone makes of the truth, for models that have one.
        previous: true map of the sweep before, where there is one.
        seen: rays that some camera sees, bool.
    """

    name: str
    generated: NDArray
    true: NDArray
    returns: NDArray | None = None
    tokenizer: NDArray | None = None
    previous: NDArray | None = None
    seen: NDArray | None = None


def figures(pairs: Sequence[Pair], sensor: Sensor) -> dict[str, float]:
    """Headline figures of ``metrics.report`` for the curve; those of the tokenizer alone begin with ``floor_``."""
    found = _headline([(p.generated, p.returns, p.true) for p in pairs], sensor)
    floor = [(p.tokenizer, None, p.true) for p in pairs if p.tokenizer is not None]
    if floor:
        found |= {f"floor_{name}": value for name, value in _headline(floor, sensor).items()}
    return found


def _headline(maps: Sequence[tuple], sensor: Sensor) -> dict[str, float]:
    report = drive_report(maps, sensor, sensor)
    values = {name: report[name] for name in ("mae_m", "abs_rel", "rays_share", "return_accuracy")}
    values["chamfer_m"] = report["chamfer_m"]["mean"]
    return {name: float(value) for name, value in values.items() if value is not None}
