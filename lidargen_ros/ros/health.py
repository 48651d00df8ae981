# SPDX-License-Identifier: Apache-2.0
"""Judges the node's books: OK, WARN or ERROR with a sentence that names the culprit and the remedy. No ROS in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .parameters import Settings

OK, WARN, ERROR, STALE = 0, 1, 2, 3
NAMES = ("OK", "WARN", "ERROR", "STALE")
HYSTERESIS = 3
"""A level must be found this many times in a row before it is reported better or worse."""

REMEDY_TRANSPORT = (
    "images may be lost in DDS: start publisher and node with FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds.xml, "
    "or publish compressed images"
)


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


class Health:
    """Turns snapshots of :class:`.statistics.Statistics` into statuses; remembers levels between calls.

    Attributes:
        state: lifecycle state in words: unconfigured, loading model, inactive, active, ...
        trouble: why the node is in that state, where it did not get further; empty otherwise.
    """

    def __init__(self) -> None:
        self.state, self.trouble = "unconfigured", ""
        self.identity: dict[str, Any] = {}
        self._rate, self._sets = Hysteresis(), Hysteresis()
        self._last: dict[str, Any] = {}

    def statuses(
        self,
        snapshot: dict[str, Any],
        settings: Settings,
        *,
        offsets_ms: Mapping[str, float | None],
        publishers: Mapping[str, Mapping[str, int]],
        notes: list[str],
    ) -> list[Status]:
        """One status each for life, sweeps, cameras and drops.

        Args:
            offsets_ms: stamp of each camera minus the first one's.
            publishers: by camera and topic, how many publish.
            notes: what was reported lately about inputs.
        """
        found = [self._life(), self._sweeps(snapshot, settings)]
        complaints, level = self._complaints(snapshot, settings, offsets_ms, publishers)
        found.append(
            self._cameras(snapshot, offsets_ms, [*complaints, *notes], max(level, WARN if notes else OK))
        )
        found.append(self._drops(snapshot))
        self._last = snapshot
        return found

    def _life(self) -> Status:
        level = ERROR if self.trouble else OK if self.state in ("active", "finalized") else WARN
        message = f"{self.state}: {self.trouble}" if self.trouble else self.state
        return Status("node", level, message, {k: str(v) for k, v in self.identity.items()})

    def _sweeps(self, now: dict[str, Any], s: Settings) -> Status:
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
        if now["sweeps_out"] < 3:
            return Status("sweeps", WARN, "waiting for the first sweeps", text)
        reference = next(iter(now["cameras"].values()))
        expected = s.expected_rate or reference["rate_hz"]
        share = now["rate_hz"] / expected if expected else 1.0
        level = self._rate(ERROR if share < s.rate_error else WARN if share < s.rate_warn else OK)
        message = f"{now['rate_hz']:.1f} Hz of {expected:.1f} Hz"
        age_s = now["age_ms"].get("p95", 0.0) / 1e3
        late = ERROR if age_s > s.latency_error else WARN if age_s > s.latency_warn else OK
        if late:
            message += f"; 95 % of the clouds are up to {age_s:.2f} s old when published"
        if max(level, late) != OK:
            message += "; use a smaller bundle, fewer steps or a faster engine"
        return Status("sweeps", max(level, late), message, text)

    def _cameras(
        self, now: dict[str, Any], offsets: Mapping[str, float | None], said: list[str], level: int
    ) -> Status:
        values: dict[str, str] = {
            "sets": str(now["sets"]),
            "time_jumps": str(now["time_jumps"]),
            "sync_spread_ms": str(now["sync_spread_ms"].get("p95", "")),
        }
        for name, camera in now["cameras"].items():
            for key in ("received", "rate_hz", "transport", "size", "bad_images"):
                values[f"{name}.{key}"] = str(camera[key])
            values[f"{name}.missing_sets"] = str(now["sets_missing"].get(name, 0))
            if name in offsets:
                values[f"{name}.offset_ms"] = str(offsets[name])
        if self.state != "active":
            return Status("cameras", OK, "not active", values)
        return Status("cameras", level, "; ".join(said) or "all cameras match", values)

    def _complaints(
        self,
        now: dict[str, Any],
        s: Settings,
        offsets: Mapping[str, float | None],
        publishers: Mapping[str, Mapping[str, int]],
    ) -> tuple[list[str], int]:
        """Which camera is silent, or breaks sets."""
        silent = []
        for name, camera in now["cameras"].items():
            if camera["silent_s"] > s.silent_after:
                topics = publishers.get(name, {})
                why = (
                    "nobody publishes " + " or ".join(topics)
                    if not any(topics.values())
                    else "its publisher is silent"
                )
                silent.append(f"no images from {name} for {camera['silent_s']:.0f} s: {why}")
        if silent:
            return silent, ERROR
        breaking = self._breaking(now, offsets, s)
        return breaking, self._sets(WARN if breaking else OK)

    def _breaking(self, now: dict[str, Any], offsets: Mapping[str, float | None], s: Settings) -> list[str]:
        """Cameras that lately left too many sets incomplete."""
        before = self._last or {"frames_in": 0, "sets_missing": {}}
        frames = now["frames_in"] - before["frames_in"]
        said = []
        for name, count in now["sets_missing"].items():
            missed = count - before["sets_missing"].get(name, 0)
            if frames < 1 or missed / frames <= s.incomplete_warn:
                continue
            gap = offsets.get(name)
            if gap is not None and abs(gap) > s.sync_tolerance * 1e3:
                said.append(
                    f"{name} breaks sets: its stamps are {gap:+.0f} ms off, tolerance is "
                    f"{s.sync_tolerance * 1e3:.0f} ms; correct its clock or raise sync_tolerance"
                )
            else:
                said.append(f"{name} breaks sets: {missed} of {frames} lack its image; {REMEDY_TRANSPORT}")
        return said

    def _drops(self, now: dict[str, Any]) -> Status:
        values = {"dropped": str(now["dropped"])}
        values.update({f"dropped.{k}": str(v) for k, v in now["dropped_by_reason"].items()})
        values.update({f"ignored.{k}": str(v) for k, v in now["ignored"].items()})
        values.update({f"events.{k}": str(v) for k, v in now["events"].items()})
        new = now["dropped"] - self._last.get("dropped", 0)
        share = new / max(now["frames_in"] - self._last.get("frames_in", 0), 1)
        message = f"{now['dropped']} of {now['frames_in']} frames dropped"
        if new:
            last = self._last.get("dropped_by_reason", {})
            newest = max(now["dropped_by_reason"].items(), key=lambda item: item[1] - last.get(item[0], 0))[0]
            message += f", lately {new}, mostly {newest}"
        return Status("drops", WARN if share > 0.05 and new > 1 else OK, message, values)
