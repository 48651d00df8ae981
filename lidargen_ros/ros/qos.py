# SPDX-License-Identifier: Apache-2.0
"""Quality of service: what is subscribed and published how, and why.

Subscriptions are best effort, which matches every publisher. Publications are reliable by default: a best-effort
cloud of 3.7 MB does not arrive over stock Fast DDS, and reliable matches both kinds of subscriber. Everything can be
overridden from YAML, for example ``qos_overrides./points.publisher.reliability: best_effort``.
"""

from typing import Any

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

PRESETS = ("reliable", "sensor_data")
_DEPTH = 5
LAST_WORDS = Duration(seconds=1)  # for what was published reliably to arrive, before its publisher goes


def subscription(depth: int = _DEPTH) -> QoSProfile:
    """For images and CameraInfo."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def publication(preset: str) -> QoSProfile:
    """For clouds and images; ``preset`` is the parameter ``qos``."""
    reliability = ReliabilityPolicy.BEST_EFFORT if preset == "sensor_data" else ReliabilityPolicy.RELIABLE
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=_DEPTH, reliability=reliability)


def latched() -> QoSProfile:
    """For what is constant: whoever comes later still receives it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def overridable() -> Any:
    """Lets users override history, depth, reliability and durability from YAML."""
    kinds = (
        QoSPolicyKind.HISTORY,
        QoSPolicyKind.DEPTH,
        QoSPolicyKind.RELIABILITY,
        QoSPolicyKind.DURABILITY,
    )
    return QoSOverridingOptions(kinds)
