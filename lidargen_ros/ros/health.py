# SPDX-License-Identifier: Apache-2.0
"""Judges the node's books: OK, WARN or ERROR with a sentence that names the culprit and the remedy. No ROS in here."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .calibrator import CalibrationState
from .logs import BUILDING
from .parameters import Settings
from .status import ERROR, OK, WARN, Hysteresis, Status, calibration_status, gpu_status

REMEDY_TRANSPORT = (
    "images may be lost in DDS: start publisher and node with FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds.xml, "
    "or publish compressed images"
)
REMEDY_SLOW = "use a smaller bundle, fewer steps or a faster engine"
_RESTS = ("unconfigured", "inactive", "active", "finalized", "error")
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Observed:
    """What is judged beside the books.

    Attributes:
        offsets_ms: stamp of each camera minus the first one's.
        publishers: by camera and topic, how many publish.
        notes: what was reported lately about inputs.
        stalled: the stage that has been at its frame for longest, and for how many seconds.
        wanted: somebody subscribes to the output.
        readings: see :meth:`.gauges.Gauges.read`; ``unreadable``: why something is missing there.
    """

    offsets_ms: Mapping[str, float | None] = field(default_factory=dict)
    publishers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calibration: CalibrationState | None = None
    stalled: tuple[str, float] = ("", 0.0)
    wanted: bool = True
    readings: Mapping[str, float] = field(default_factory=dict)
    unreadable: str = ""


class Health:
    """Turns snapshots of :class:`.statistics.Statistics` into statuses; remembers levels between calls.

    Attributes:
        state: lifecycle state in words: unconfigured, loading model, inactive, active, ...
        trouble: why the node is in that state, where it did not get further; empty otherwise.
    """

    def __init__(self) -> None:
        self._state, self._since, self._heard = "unconfigured", time.monotonic(), ""
        self.trouble = ""
        self.identity: dict[str, Any] = {}
        self._rate, self._sets = Hysteresis(), Hysteresis()
        self._last: dict[str, Any] = {}

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, value: str) -> None:
        self._state, self._since, self._heard = value, time.monotonic(), ""

    def heard(self, text: str) -> None:
        """What the library says it does; shown while a transition lasts."""
        self._heard = text

    def statuses(self, snapshot: dict[str, Any], settings: Settings, seen: Observed) -> list[Status]:
        """One status each for life, sweeps, cameras, calibration, drops and the GPU."""
        complaints, level = self._complaints(snapshot, settings, seen)
        said = [*complaints, *seen.notes]
        found = [
            self._life(seen),
            self._sweeps(snapshot, settings, seen),
            self._cameras(snapshot, seen, said, max(level, WARN if seen.notes else OK)),
            calibration_status(seen.calibration, snapshot["cameras"], settings),
            self._drops(snapshot, settings),
            gpu_status(seen.readings, seen.unreadable, settings),
        ]
        self._last = snapshot
        return found

    def _life(self, seen: Observed) -> Status:
        level = ERROR if self.trouble else OK if self.state in ("active", "finalized") else WARN
        values = {k: str(v) for k, v in self.identity.items()}
        values["resident_mb"] = f"{seen.readings.get('resident_mb', 0):.0f}"
        if self.state in _RESTS:
            return Status("node", level, ": ".join(filter(None, (self.state, self.trouble))), values)
        building = self._heard.startswith(BUILDING)
        doing = ": ".join(filter(None, ("BUILDING" if building else self.state, self._heard)))
        values["state"] = "building" if building else self.state
        return Status("node", level, f"{doing} ({time.monotonic() - self._since:.0f} s so far)", values)

    def _sweeps(self, now: dict[str, Any], s: Settings, seen: Observed) -> Status:
        values = {
            "rate_hz": now["rate_hz"],
            "frames_in": now["frames_in"],
            "sweeps_out": now["sweeps_out"],
            "in_flight": now["in_flight"],
            **{f"age_ms.{k}": v for k, v in now["age_ms"].items()},
            **{f"age_histogram.{k}": v for k, v in now["age_histogram"].items()},
            **{f"{stage}_ms.{k}": v for stage, parts in now["stages_ms"].items() for k, v in parts.items()},
        }
        text = {k: str(v) for k, v in values.items()}
        if self.state != "active":
            return Status("sweeps", OK, "not active", text)
        stage, busy_s = seen.stalled
        if busy_s > s.stalled_after:
            return Status(
                "sweeps",
                ERROR,
                f"{stage} has been at one frame for {busy_s:.0f} s; does its device hang?",
                text,
            )
        if s.lazy and not seen.wanted:
            return Status("sweeps", OK, "nobody subscribes: the model rests", text)
        if now["sweeps_out"] < 3:
            return Status("sweeps", WARN, "waiting for the first sweeps", text)
        reference = next(iter(now["cameras"].values()))
        expected = s.expected_rate or reference["rate_hz"]
        share = now["rate_hz"] / expected if expected else 1.0
        level = self._rate(ERROR if share < s.rate_error else WARN if share < s.rate_warn else OK)
        said = [f"{now['rate_hz']:.1f} Hz of {expected:.1f} Hz"]
        late, why = _age(now["age_ms"], s)
        said += why or [REMEDY_SLOW] * (level != OK)
        return Status("sweeps", max(level, late), "; ".join(said), text)

    def _cameras(self, now: dict[str, Any], seen: Observed, said: list[str], level: int) -> Status:
        values: dict[str, str] = {
            "sets": str(now["sets"]),
            "time_jumps": str(now["time_jumps"]),
            "sync_spread_ms": str(now["sync_spread_ms"].get("p95", "")),
        }
        for name, camera in now["cameras"].items():
            for key in ("received", "rate_hz", "transport", "size", "bad_images"):
                values[f"{name}.{key}"] = str(camera[key])
            values[f"{name}.missing_sets"] = str(now["sets_missing"].get(name, 0))
            if name in seen.offsets_ms:
                values[f"{name}.offset_ms"] = str(seen.offsets_ms[name])
        if self.state != "active":
            return Status("cameras", OK, "not active", values)
        return Status("cameras", level, "; ".join(said) or "all cameras match", values)

    def _complaints(self, now: dict[str, Any], s: Settings, seen: Observed) -> tuple[list[str], int]:
        """Which camera is silent, or breaks sets."""
        silent = []
        for name, camera in now["cameras"].items():
            if camera["silent_s"] > s.silent_after:
                topics = seen.publishers.get(name, {})
                why = (
                    "nobody publishes " + " or ".join(topics)
                    if not any(topics.values())
                    else "its publisher is silent"
                )
                silent.append(f"no images from {name} for {camera['silent_s']:.0f} s: {why}")
        if silent:
            return silent, ERROR
        breaking = self._breaking(now, seen.offsets_ms, s)
        return breaking, self._sets(WARN if breaking else OK)

    def _breaking(self, now: dict[str, Any], offsets: Mapping[str, float | None], s: Settings) -> list[str]:
        """Cameras that lately left too many sets incomplete."""
        before = self._last or {"sets": 0, "dropped": 0, "sets_missing": {}}
        # Frames are decided in bursts: those that wait are not counted yet.
        decided = now["sets"] - before["sets"] + now["dropped"] - before["dropped"]
        reference = next(iter(now["cameras"].values()))
        said = []
        for name, count in now["sets_missing"].items():
            missed = count - before["sets_missing"].get(name, 0)
            if missed <= s.incomplete_warn * decided:
                continue
            gap, rate = offsets.get(name), now["cameras"][name]["rate_hz"]
            if gap is not None and abs(gap) > s.sync_tolerance * 1e3:
                said.append(
                    f"{name} breaks sets: its stamps are {gap:+.0f} ms off, tolerance is "
                    f"{s.sync_tolerance * 1e3:.0f} ms; correct its clock or raise sync_tolerance"
                )
            elif rate < 0.8 * reference["rate_hz"]:
                said.append(
                    f"{name} breaks sets: {missed} of {decided} lack its image; it comes at {rate:.1f} Hz, the first "
                    f"camera at {reference['rate_hz']:.1f} Hz; set both to one rate"
                )
            else:
                said.append(f"{name} breaks sets: {missed} of {decided} lack its image; {REMEDY_TRANSPORT}")
        return said

    def _drops(self, now: dict[str, Any], s: Settings) -> Status:
        values = {"dropped": str(now["dropped"])}
        values.update({f"dropped.{k}": str(v) for k, v in now["dropped_by_reason"].items()})
        values.update({f"ignored.{k}": str(v) for k, v in now["ignored"].items()})
        values.update({f"events.{k}": str(v) for k, v in now["events"].items()})
        frames = now["frames_in"] - self._last.get("frames_in", 0)
        before = Counter(self._last.get("dropped_by_reason", {}))
        lately = Counter(now["dropped_by_reason"]) - before
        del lately["no_subscriber"]  # nothing is lost there
        new = sum(lately.values())
        message = f"{now['dropped']} of {now['frames_in']} frames dropped"
        if new:
            message += f", lately {new}, mostly {lately.most_common(1)[0][0]}"
        return Status("drops", WARN if new > 1 and new > s.drop_warn * frames else OK, message, values)


def _age(age_ms: Mapping[str, float], s: Settings) -> tuple[int, list[str]]:
    """Level and words about the age of the clouds when they are published."""
    typical_s, age_s = age_ms.get("p50", 0.0) / 1e3, age_ms.get("p95", 0.0) / 1e3
    if typical_s > _HOUR_S:
        return ERROR, [
            f"images are stamped {typical_s / _HOUR_S:.0f} hours ago; for a bag set use_sim_time and play it with "
            "--clock"
        ]
    if typical_s < -s.clock_warn:
        return WARN, [f"images are stamped {-typical_s:.2f} s in the future; correct the cameras' clock"]
    late = ERROR if age_s > s.latency_error else WARN if age_s > s.latency_warn else OK
    said = f"95 % of the clouds are up to {age_s:.2f} s old when published"
    return late, [f"{said}; {REMEDY_SLOW}"] if late else []
