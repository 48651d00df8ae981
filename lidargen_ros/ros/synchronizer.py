# SPDX-License-Identifier: Apache-2.0
"""Chooses the matcher: the own one, or ``message_filters`` behind the same few methods."""

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .compat import optional
from .matcher import DUPLICATE, INCOMPLETE, Frame, FrameSet, Matcher, MatcherCounters
from .parameters import Settings


class RosMatcher:
    """``message_filters.ApproximateTimeSynchronizer`` behind the interface of :class:`.matcher.Matcher`.

    It says neither which camera broke a set nor that time jumped back, and after a jump it may stay silent; here the
    jump is noticed and the synchroniser replaced. Its callback only stores the set: it runs inside the
    synchroniser's lock, which an exception would leave held.
    """

    def __init__(
        self, cameras: Sequence[str], *, tolerance_s: float, jump_back_s: float, depth: int = 15
    ) -> None:
        self.cameras, self.reference = tuple(cameras), cameras[0]
        self.counters = MatcherCounters()
        self.offset_ns: dict[str, int | None] = dict.fromkeys(self.cameras[1:])
        self.min_cameras = len(self.cameras)
        self._depth = depth
        self._module = optional("message_filters")
        if self._module is None:
            raise ConfigError(
                "synchronizer is message_filters, which is not installed; install ros-DISTRO-message-filters or use "
                "synchronizer: own"
            )
        self.tune(tolerance_s, jump_back_s)

    @property
    def waiting(self) -> int:
        return len(self._open)

    def tune(self, tolerance_s: float, jump_back_s: float) -> None:
        """New rules; frames that wait are forgotten."""
        self.tolerance_ns, self._jump_ns = round(tolerance_s * 1e9), round(jump_back_s * 1e9)
        # The synchroniser tests spread < slop: one nanosecond more lets identical stamps through at tolerance 0.
        self._slop_s = tolerance_s + 1e-9
        self._start()

    def reset(self, reason: str) -> None:
        """Forget every frame."""
        if self._open:
            self.counters.dropped[reason] += len(self._open)
        self._start()

    def jump_back(self, stamp_ns: int) -> None:
        """See :meth:`.matcher.Matcher.jump_back`."""
        if any(newest > stamp_ns + self._jump_ns for newest in self._newest.values()):
            self.counters.jumps += 1
            self.reset("time_jump")

    def add(self, camera: str, frame: Frame) -> list[FrameSet]:
        """See :meth:`.matcher.Matcher.add`."""
        self.counters.received[camera] += 1
        if frame.stamp_ns <= self._newest.get(camera, frame.stamp_ns) - self._jump_ns:
            self.counters.jumps += 1
            self.reset("time_jump")
        self._newest[camera] = max(frame.stamp_ns, self._newest.get(camera, frame.stamp_ns))
        if camera == self.reference:
            if frame.stamp_ns in self._open:
                self.counters.dropped[DUPLICATE] += 1
                return []
            self._open.append(frame.stamp_ns)
        self._inputs[self.cameras.index(camera)].signalMessage(_Stamped(frame))
        found = list(self._found)
        self._found.clear()
        for s in found:
            self._settle(s.stamp_ns)
        while len(self._open) > self._depth:
            self._lose(self._open.pop(0))
        return found

    def _start(self) -> None:
        assert self._module is not None
        self._inputs = [self._module.SimpleFilter() for _ in self.cameras]
        synchronizer = self._module.ApproximateTimeSynchronizer(self._inputs, self._depth, self._slop_s)
        synchronizer.registerCallback(self._store)
        self._synchronizer = synchronizer
        self._newest: dict[str, int] = {}
        self._open: list[int] = []  # stamps of reference frames not decided yet
        self._found: list[FrameSet] = []

    def _store(self, *messages: Any) -> None:
        frames = tuple(m.frame for m in messages)
        stamps = [f.stamp_ns for f in frames]
        self._found.append(FrameSet(frames, stamps[0], max(stamps) - min(stamps)))

    def _settle(self, stamp_ns: int) -> None:
        self.counters.matched += 1
        for older in [t for t in self._open if t < stamp_ns]:
            self._open.remove(older)
            self._lose(older)
        if stamp_ns in self._open:
            self._open.remove(stamp_ns)

    def _lose(self, _: int) -> None:
        self.counters.dropped[f"{INCOMPLETE}:unknown"] += 1


class _Stamped:
    """A frame as a message with a header, which is all that the synchroniser looks at."""

    def __init__(self, frame: Frame) -> None:
        from std_msgs.msg import Header

        self.frame, self.header = frame, Header()
        self.header.stamp.sec, self.header.stamp.nanosec = divmod(frame.stamp_ns, 1_000_000_000)


AnyMatcher = Matcher | RosMatcher


def make_matcher(s: Settings) -> AnyMatcher:
    """The matcher that the settings ask for. Raises ConfigError."""
    if s.synchronizer == "message_filters":
        return RosMatcher(s.cameras, tolerance_s=s.sync_tolerance, jump_back_s=s.time_jump)
    return Matcher(
        s.cameras,
        tolerance_s=s.sync_tolerance,
        min_cameras=s.min_cameras,
        max_wait_s=s.sync_wait,
        jump_back_s=s.time_jump,
    )


def tune(matcher: AnyMatcher, s: Settings) -> None:
    """Make a matcher follow changed settings."""
    if isinstance(matcher, RosMatcher):
        if matcher.tolerance_ns != round(s.sync_tolerance * 1e9):
            matcher.tune(s.sync_tolerance, s.time_jump)
        return
    matcher.tune(
        tolerance_s=s.sync_tolerance,
        min_cameras=s.min_cameras,
        max_wait_s=s.sync_wait,
        jump_back_s=s.time_jump,
    )
