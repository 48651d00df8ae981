# SPDX-License-Identifier: Apache-2.0
"""Errors that a user may meet. Each message names the thing, the reason and the remedy, in one line."""

import sys
from collections.abc import Sequence


class LidargenError(Exception):
    """Base of all errors raised on purpose; command-line tools print it without a traceback."""


class BundleError(LidargenError):
    """A model bundle is missing, incomplete or altered."""


class EngineError(LidargenError):
    """A graph cannot be run on this machine, or with these inputs."""


class CalibrationError(LidargenError):
    """A camera or LiDAR calibration is missing or implausible."""


class InputError(LidargenError):
    """An image, message or array has a size, encoding or content that cannot be used."""


class DataError(LidargenError):
    """A dataset, clip or bag is damaged or incomplete."""


class CheckpointError(LidargenError):
    """Weights are missing, truncated or do not fit the network."""


class ConfigError(LidargenError):
    """A configuration has an unknown key or a value out of range."""


def failed(error: LidargenError | OSError, place: object, remedy: str) -> int:
    """Prints why a command ends, and returns its exit status; ``place`` and ``remedy`` are for errors of the system."""
    if isinstance(error, OSError):
        print(f"error: {error.filename or place}: {error.strerror}; {remedy}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    return 1


LISTED = 12  # names that an error spells out


def listed(names: Sequence[str]) -> str:
    """The first names and how many more, for a message of one line."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
