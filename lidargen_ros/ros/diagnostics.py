# SPDX-License-Identifier: Apache-2.0
"""Publishes the node's health on /diagnostics, from a thread of its own: it goes on while a transition loads a model."""

import threading
import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from . import qos
from .reporter import Reporter
from .status import NAMES, OK, Status

_LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE)


def diagnostic_array(statuses: list[Status], source: str, hardware: str, stamp: Any) -> DiagnosticArray:
    """``DiagnosticStatus.level`` is a byte string in Python, which compares unequal to every number."""
    array = DiagnosticArray()
    array.header.stamp = stamp
    array.status = [
        DiagnosticStatus(
            name=f"{source}: {s.name}",
            level=_LEVELS[s.level],
            message=s.message,
            hardware_id=hardware,
            values=[KeyValue(key=k, value=v) for k, v in s.values.items()],
        )
        for s in statuses
    ]
    return array


class Diagnostics:
    """Asks ``statuses()`` every period, publishes the answer, and logs each change of level once."""

    def __init__(
        self, node: Any, period_s: float, statuses: Callable[[], list[Status]], reporter: Reporter
    ) -> None:
        self._node, self._period_s, self._statuses, self._reporter = node, period_s, statuses, reporter
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._levels: dict[str, int] = {}
        self._stop = threading.Event()
        self.hardware_id = ""
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Now, in addition to the periodic ones."""
        statuses = self._statuses()
        stamp = self._node.get_clock().now().to_msg()
        source = self._node.get_fully_qualified_name().lstrip("/")
        self._publisher.publish(diagnostic_array(statuses, source, self.hardware_id, stamp))
        for s in statuses:
            if s.level != self._levels.get(s.name, OK):
                self._levels[s.name] = s.level
                text = f"{s.name} {NAMES[s.level]}: {s.message}"
                self._node.get_logger().info(text) if s.level == OK else self._node.get_logger().warning(text)

    def stop(self) -> None:
        """Publish once more, see it arrive (for a second at most) and end the thread."""
        self._stop.set()
        self._thread.join(5.0)
        self.publish()
        self._publisher.wait_for_all_acked(qos.LAST_WORDS)

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self.publish()
            except Exception:  # noqa: BLE001  # said, not hidden; without this thread nobody would hear of anything
                self._reporter.error("diagnostics", f"no diagnostics this time\n{traceback.format_exc()}")
