# SPDX-License-Identifier: Apache-2.0
"""One clear message per trouble: the first at once, repetitions counted and said once in a while. No ROS in here."""

import threading
import time
from collections.abc import Callable
from typing import Any

PERIOD_S = 5.0
RECENT_S = 10.0


class Reporter:
    """Logs through ``logger`` (``info``, ``warning``, ``error``), at most once per key and period.

    rclpy's own throttling goes by line of code; here the key is the topic or file, so that one camera cannot
    silence another. What was said lately stands in the diagnostics as well, see :meth:`recent`.
    """

    def __init__(
        self, logger: Any, period_s: float = PERIOD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger, self._period_s, self._clock = logger, period_s, clock
        self._said: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._texts: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    # Each level has a line of its own: rclpy refuses another severity from a line that has logged before.
    def warning(self, key: str, text: str) -> None:
        """Something to look after; the node goes on."""
        if said := self._due(key, text):
            self._logger.warning(said)

    def error(self, key: str, text: str) -> None:
        """Something that costs output."""
        if said := self._due(key, text):
            self._logger.error(said)

    def recent(self) -> list[str]:
        """What was reported within the last :data:`RECENT_S` seconds, newest text per key."""
        now = self._clock()
        with self._lock:
            return [text for when, text in self._texts.values() if now - when <= RECENT_S]

    def _due(self, key: str, text: str) -> str:
        """What to log now; empty while the key has been said lately."""
        now = self._clock()
        with self._lock:
            self._texts[key] = (now, text)
            if now - self._said.get(key, -1e9) < self._period_s:
                self._held[key] = self._held.get(key, 0) + 1
                return ""
            self._said[key] = now
            held = self._held.pop(key, 0)
        return f"{text} ({held} more like it since the last message)" if held else text
