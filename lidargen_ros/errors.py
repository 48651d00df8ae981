# SPDX-License-Identifier: Apache-2.0
"""Errors that a user may meet. Each message names the thing, the reason and the remedy, in one line."""


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
