# SPDX-License-Identifier: Apache-2.0
"""The node's books: what came in, what went out, what was dropped and why, and how long it took. No ROS in here.

One identity holds at every moment, and tests check it: ``frames_in == sweeps_out + dropped + in_flight``, where
frames_in counts images of the first camera.
"""

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STAGES = ("match", "wait", "decode", "generate", "publish", "total")
"""match: first to last image of the set; wait: until the worker is free; total: from the first image on."""

AGE_BINS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_KEPT = 1000  # samples per percentile, the newest
_WINDOW_S, _EVENTS = 10.0, 4096


class Rate:
    """Events per second over the last seconds."""

    def __init__(self, window_s: float = _WINDOW_S) -> None:
        self._times: deque[float] = deque(maxlen=_EVENTS)
        self._window_s = window_s

    def tick(self) -> None:
        self._times.append(time.monotonic())

    @property
    def since_last_s(self) -> float | None:
        """Seconds since the last event, or None before the first."""
        return time.monotonic() - self._times[-1] if self._times else None

    def hz(self) -> float:
        """0 with fewer than two events in the window; falls as an event fails to come."""
        now = time.monotonic()
        recent = [t for t in list(self._times) if now - t <= self._window_s]
        if len(recent) < 2:
            return 0.0
        period = (recent[-1] - recent[0]) / (len(recent) - 1)
        return 1.0 / max(period, (now - recent[-1]) / 2, 1e-9)


class Samples:
    """Durations in milliseconds: percentiles of the newest ones."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_KEPT)

    def add(self, seconds: float) -> None:
        self._values.append(seconds * 1e3)

    def summary(self) -> dict[str, float]:
        """p50, p95, p99, max; empty before the first sample."""
        values = list(self._values)
        if not values:
            return {}
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        numbers = {"p50": p50, "p95": p95, "p99": p99, "max": max(values)}
        return {name: round(float(value), 3) for name, value in numbers.items()}


def _age_bin(age_s: float) -> str:
    if age_s < 0:
        return "<0ms"  # the camera's clock is ahead
    bins = [b for b in AGE_BINS_MS if age_s * 1e3 <= b]
    return f"<={bins[0]}ms" if bins else f">{AGE_BINS_MS[-1]}ms"


@dataclass
class CameraState:
    """What is known about one camera."""

    received: int = 0
    rate: Rate = field(default_factory=Rate)
    transport: str = ""
    size: tuple[int, int] | None = None  # width, height of the last decoded image
    stamp_ns: int = 0  # of the last image
    bad: int = 0


class Statistics:
    """Thread safe. The matcher counts what happens before a set exists; see :meth:`snapshot`."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self.cameras = {name: CameraState() for name in cameras}
        self.stages = {name: Samples() for name in STAGES}
        self.spread, self.age = Samples(), Samples()
        self.age_histogram: Counter[str] = Counter()
        self.published_rate = Rate()
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._since = time.monotonic()

    def activated(self) -> None:
        """Images are expected from now on."""
        self._since = time.monotonic()

    def silence_s(self, camera: str) -> float:
        """Seconds since the camera's last image, or since images are expected."""
        now = time.monotonic() - self._since
        last = self.cameras[camera].rate.since_last_s
        return now if last is None else min(now, last)

    def drop(self, reason: str) -> None:
        """A matched set ends here."""
        with self._lock:
            self._dropped[reason] += 1

    def note(self, event: str, count: int = 1) -> None:
        """Something worth counting that is not the end of a frame."""
        with self._lock:
            self._events[event] += count

    def publish(self, age_s: float, spread_s: float) -> None:
        """A sweep went out; ``age_s``: stamp of its newest image to publication."""
        with self._lock:
            self._published += 1
            self.age_histogram[_age_bin(age_s)] += 1
        self.published_rate.tick()
        self.age.add(age_s)
        self.spread.add(spread_s)

    @property
    def published(self) -> int:
        return self._published

    def snapshot(self, matcher: Any) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON. ``matcher``: its counters and waiting frames."""
        counters = matcher.counters
        with self._lock:
            # The matcher counts on another thread: copying a dict is atomic, walking through it is not.
            dropped = Counter(dict(counters.dropped)) + self._dropped
            frames_in = counters.received[matcher.reference]
            return {
                "frames_in": frames_in,
                "sweeps_out": self._published,
                "dropped": sum(dropped.values()),
                "dropped_by_reason": dict(sorted(dropped.items())),
                "in_flight": frames_in - self._published - sum(dropped.values()),
                "sets": counters.matched,
                "sets_partial": counters.partial,
                "sets_missing": dict(counters.missing),
                "time_jumps": counters.jumps,
                "ignored": dict(counters.ignored),
                "events": dict(self._events),
                "rate_hz": round(self.published_rate.hz(), 3),
                "age_ms": self.age.summary(),
                "age_histogram": dict(self.age_histogram),
                "sync_spread_ms": self.spread.summary(),
                "stages_ms": {name: samples.summary() for name, samples in self.stages.items()},
                "cameras": {
                    name: {
                        "received": counters.received[name],
                        "rate_hz": round(c.rate.hz(), 3),
                        "silent_s": round(self.silence_s(name), 3),
                        "transport": c.transport,
                        "size": c.size,
                        "stamp_ns": c.stamp_ns,
                        "bad_images": c.bad,
                    }
                    for name, c in self.cameras.items()
                },
            }
