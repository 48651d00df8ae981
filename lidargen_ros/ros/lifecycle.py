# SPDX-License-Identifier: Apache-2.0
"""Lifecycle transitions that report what went wrong: rclpy swallows every exception of a transition callback."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import TransitionCallbackReturn

from ..errors import LidargenError

Transition = Callable[[Any, Any], None]


def reported(
    doing: str, done: str, *, undo: str = "", keep_trouble: bool = False
) -> Callable[[Transition], Callable[[Any, Any], TransitionCallbackReturn]]:
    """Make ``method(self, state)``, which may raise, a transition callback.

    A :class:`LidargenError` is logged as its one line and ends in FAILURE, which leaves the state as it was; anything
    else is logged with its traceback and ends in ERROR, upon which rclpy calls ``on_error``. Both stand in the
    diagnostics as ``health.trouble``.

    Args:
        doing: state during the transition, for the diagnostics.
        done: state after it.
        undo: name of the method that gives back what a transition took before it failed with a LidargenError.
        keep_trouble: what went wrong before stays in the diagnostics.
    """

    def decorate(method: Transition) -> Callable[[Any, Any], TransitionCallbackReturn]:
        @functools.wraps(method)
        def run(self: Any, state: Any) -> TransitionCallbackReturn:
            before = self.health.state
            self.health.state = doing
            if not keep_trouble:
                self.health.trouble = ""
            try:
                method(self, state)
            except LidargenError as e:
                self.health.state, self.health.trouble = before, str(e)
                self.get_logger().error(f"{doing}: {e}")
                if undo:
                    getattr(self, undo)()
                return TransitionCallbackReturn.FAILURE
            except Exception as e:  # noqa: BLE001  # rclpy would swallow it
                self.health.state, self.health.trouble = "error", f"{type(e).__name__}: {e}"
                self.get_logger().fatal(f"{doing}: {self.health.trouble}\n{traceback.format_exc()}")
                return TransitionCallbackReturn.ERROR
            self.health.state = done
            return TransitionCallbackReturn.SUCCESS

        return run

    return decorate


def start(node: Any) -> bool:
    """Configure and activate; whether both succeeded."""
    return all(
        step() == TransitionCallbackReturn.SUCCESS for step in (node.trigger_configure, node.trigger_activate)
    )
