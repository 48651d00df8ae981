# SPDX-License-Identifier: Apache-2.0
"""What the library logs through Python's ``logging`` becomes the node's own log. No ROS in here."""

import logging
from collections.abc import Callable
from typing import Any

BUILDING = ("building", "compiling")
"""A line of the library that begins so tells that an engine is being made, which may take minutes."""


class LogBridge(logging.Handler):
    """Hands records of the logger ``lidargen_ros`` from INFO on to ``logger`` and their text to ``heard``."""

    def __init__(self, logger: Any, heard: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._logger, self._heard = logger, heard
        self._source = logging.getLogger("lidargen_ros")
        self._level = self._source.level
        self._source.setLevel(logging.INFO)
        self._source.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``."""
        text = record.getMessage()
        self._heard(text)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)

    def close(self) -> None:
        """Leave the library's logger as it was."""
        self._source.removeHandler(self)
        self._source.setLevel(self._level)
        super().close()
