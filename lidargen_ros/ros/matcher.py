# SPDX-License-Identifier: Apache-2.0
"""Puts frames of several cameras together by stamp. No ROS in here.

The reference camera (the front one) drives: each of its frames becomes exactly one set, or is counted under
one reason for which it did not. The other cameras contribute their frame nearest in time, never one further
away than the tolerance, so a set cannot glue pictures of different moments together. Nothing is called back
while a frame is being added; sets are returned, so no fault of a consumer can wedge the matcher.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

INCOMPLETE = "incomplete"  # + ":" + cameras joined by "+": no frame of theirs near enough
DUPLICATE = "duplicate"  # a second frame of the reference camera with the same stamp
OLD = "out_of_order"  # a reference frame older than a set that already went out
JUMP = "time_jump"  # waiting when stamps jumped back
_SPARE = 2  # frames


@dataclass(frozen=True, eq=False)  # compared by identity: payloads are messages and arrays
class Frame:
    """One image: its stamp in nanoseconds and whatever the caller wants back."""

    stamp_ns: int
    payload: Any = None


@dataclass(frozen=True)
class FrameSet:
    """Frames of one moment, in the order of the cameras; None for a camera that has none."""

    frames: tuple[Frame | None, ...]
    stamp_ns: int
    spread_ns: int  # latest minus earliest stamp among the frames


@dataclass
class MatcherCounters:
    """What became of the frames. ``received[reference] == matched + sum(dropped.values()) + waiting``."""

    received: Counter[str] = field(default_factory=Counter)  # by camera
    matched: int = 0
    partial: int = 0  # of those, sets that went out without some camera
    dropped: Counter[str] = field(default_factory=Counter)  # reference frames, by reason
    missing: Counter[str] = field(default_factory=Counter)  # by camera: sets that lacked its frame
    ignored: Counter[str] = field(default_factory=Counter)  # frames of other cameras: duplicates
    jumps: int = 0  # times the stamps jumped back


class Matcher:
    """Matches frames of ``cameras``; the one named ``reference`` (default: the first) drives.

    Args:
        tolerance_s: a frame belongs to a set if its stamp is at most this far from the reference's.
        min_cameras: with fewer than all cameras, a set goes out without those that are silent or too late;
            0 means all. The reference camera is always needed.
        max_wait_s: a frame waits at most this long for its partners, measured in stamps.
        depth: frames kept per camera, which bounds the memory.
        jump_back_s: a stamp this much older than the camera's newest means that time restarted (a looping
            bag).
        silent_s: a camera without a frame for this long is not waited for when ``min_cameras`` allows.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        *,
        tolerance_s: float = 0.02,
        min_cameras: int = 0,
        max_wait_s: float = 0.5,
        jump_back_s: float = 1.0,
        depth: int = 15,
        silent_s: float = 1.0,
        reference: str | None = None,
    ) -> None:
        self.cameras = tuple(cameras)
        self.reference = self.cameras[0] if reference is None else reference
        if self.reference not in self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras {self.cameras} must be different and contain {self.reference!r}")
        self.tune(
            tolerance_s=tolerance_s, min_cameras=min_cameras, max_wait_s=max_wait_s, jump_back_s=jump_back_s
        )
        self._silent_ns, self._depth = round(silent_s * 1e9), depth
        self._others = tuple(c for c in self.cameras if c != self.reference)
        self._buffers: dict[str, deque[Frame]] = {c: deque() for c in self.cameras}
        self._newest: dict[str, int] = {}
        self._period: dict[str, int] = {}
        self._lead: dict[str, int] = {}  # a frame's stamp minus the reference's newest, when it came
        self._first: int | None = None  # stamp at which the reference camera began
        self._last_out: int | None = None
        self.counters = MatcherCounters()
        self.offset_ns: dict[str, int | None] = dict.fromkeys(self._others)
        """Stamps of each camera minus the reference's, when last decided; None: no frame. See :meth:`_offset`."""

    def tune(self, *, tolerance_s: float, min_cameras: int, max_wait_s: float, jump_back_s: float) -> None:
        """Change the rules from the next frame on. Raises ConfigError."""
        if not 0 <= min_cameras <= len(self.cameras):
            raise ConfigError(f"min_cameras {min_cameras} must lie between 0 and {len(self.cameras)}")
        self.min_cameras = min_cameras or len(self.cameras)
        self.tolerance_ns = round(tolerance_s * 1e9)
        self._max_wait_ns, self._jump_ns = round(max_wait_s * 1e9), round(jump_back_s * 1e9)

    @property
    def waiting(self) -> int:
        """Reference frames neither matched nor dropped yet."""
        return len(self._buffers[self.reference])

    def reset(self, reason: str = JUMP) -> None:
        """Forget every frame; those of the reference camera count as dropped for ``reason``."""
        self._drop(self.waiting, reason)
        for buffer in self._buffers.values():
            buffer.clear()
        self._newest.clear()
        self._period.clear()
        self._lead.clear()
        self._first = self._last_out = None

    def add(self, camera: str, frame: Frame) -> list[FrameSet]:
        """Take a frame in; returns the sets that it completes, oldest first (usually none or one)."""
        self.counters.received[camera] += 1
        newest = self._newest.get(camera)
        if newest is not None and frame.stamp_ns <= newest - self._jump_ns:
            self._jump(frame.stamp_ns)
            newest = None
        buffer = self._buffers[camera]
        if any(f.stamp_ns == frame.stamp_ns for f in buffer) or (
            camera == self.reference and frame.stamp_ns == self._last_out
        ):
            self._refuse(camera, DUPLICATE)
            return []
        if camera == self.reference and self._last_out is not None and frame.stamp_ns < self._last_out:
            self._refuse(camera, OLD)
            return []
        self._insert(camera, buffer, frame)
        if newest is None or frame.stamp_ns > newest:
            if newest is not None:
                self._period[camera] = frame.stamp_ns - newest
            self._newest[camera] = frame.stamp_ns
        if camera == self.reference and self._first is None:
            self._first = frame.stamp_ns
        return self._collect()

    def _insert(self, camera: str, buffer: deque[Frame], frame: Frame) -> None:
        at = len(buffer)
        while at and buffer[at - 1].stamp_ns > frame.stamp_ns:  # reordered on the way
            at -= 1
        buffer.insert(at, frame)
        if camera == self.reference:
            if len(buffer) > self._depth:
                self._drop_incomplete(buffer.popleft())
            return
        if self.reference in self._newest:
            self._lead[camera] = frame.stamp_ns - self._newest[self.reference]
        # A little more than the reference frames have: when one is given up, its partners are here and not blamed.
        kept_ns = self._max_wait_ns + _SPARE * self._period.get(self.reference, 0)
        while len(buffer) > self._depth + _SPARE or buffer[-1].stamp_ns - buffer[0].stamp_ns > kept_ns:
            buffer.popleft()

    def _collect(self) -> list[FrameSet]:
        """Decide what can be decided. Going from old to new keeps every set that is complete."""
        references = self._buffers[self.reference]
        sets: list[FrameSet] = []
        for frame in list(references):
            found = {c: self._nearest(c, frame.stamp_ns) for c in self._others}
            missing = [c for c in self._others if found[c] is None]
            if missing and not self._may_go_without(missing, frame.stamp_ns):
                if self._newest[self.reference] - frame.stamp_ns > self._max_wait_ns:
                    references.remove(frame)
                    self._drop_incomplete(frame)
                continue
            while references and references[0].stamp_ns < frame.stamp_ns:
                self._drop_incomplete(references.popleft())
            references.popleft()
            sets.append(self._set(frame, found))
        if sets or not references:
            self._forget_before(self._last_out)
        return sets

    def _nearest(self, camera: str, stamp_ns: int) -> Frame | None:
        """The camera's frame nearest to a stamp, if within tolerance and no nearer one can be expected."""
        buffer = self._buffers[camera]
        best = min(buffer, key=lambda f: abs(f.stamp_ns - stamp_ns), default=None)
        if best is None or abs(best.stamp_ns - stamp_ns) > self.tolerance_ns:
            return None
        behind = stamp_ns - best.stamp_ns
        coming = self._newest[camera] + self._period.get(camera, self._max_wait_ns) - stamp_ns
        if best is buffer[-1] and behind > abs(coming):
            return None  # the camera's next frame will be nearer: wait for it
        return best

    def _may_go_without(self, missing: list[str], stamp_ns: int) -> bool:
        if len(self.cameras) - len(missing) < self.min_cameras:
            return False
        late = self._newest[self.reference] - stamp_ns > self._max_wait_ns
        return late or all(self._is_silent(c) for c in missing)

    def _is_silent(self, camera: str) -> bool:
        since = self._newest.get(camera, self._first)
        return since is not None and self._newest[self.reference] - since > self._silent_ns

    def _set(self, reference: Frame, found: dict[str, Frame | None]) -> FrameSet:
        frames = tuple(reference if c == self.reference else found[c] for c in self.cameras)
        stamps = [f.stamp_ns for f in frames if f is not None]
        self._note_offsets(reference.stamp_ns)
        self.counters.matched += 1
        self.counters.partial += len(stamps) < len(frames)
        self.counters.missing.update(c for c, f in found.items() if f is None)
        self._last_out = reference.stamp_ns
        return FrameSet(frames, reference.stamp_ns, max(stamps) - min(stamps))

    def _forget_before(self, stamp_ns: int | None) -> None:
        """Frames of the other cameras that no future reference frame can use."""
        if stamp_ns is None:
            return
        for camera in self._others:
            buffer = self._buffers[camera]
            while buffer and buffer[0].stamp_ns < stamp_ns - self.tolerance_ns:
                buffer.popleft()

    def _gaps(self, camera: str, stamp_ns: int) -> list[int]:
        """Stamps of the camera's frames minus the given one."""
        return [f.stamp_ns - stamp_ns for f in self._buffers[camera]]

    def _offset(self, camera: str, stamp_ns: int) -> int | None:
        """How far the camera's stamps are from the reference's.

        Where its frames lie on both sides, their nearest one tells. A clock that is off by more is seen by the
        stamps of what arrives at the same time (to within a period of the reference), and so is a camera that only
        lacks a frame now and then: its stamps agree.
        """
        gaps = self._gaps(camera, stamp_ns)
        nearest, lead = min(gaps, key=abs, default=None), self._lead.get(camera)
        if nearest is None or lead is None or abs(nearest) <= self.tolerance_ns:
            return nearest
        return nearest if min(gaps) < 0 < max(gaps) and abs(lead) > self.tolerance_ns else lead

    def _note_offsets(self, stamp_ns: int) -> None:
        self.offset_ns.update({c: self._offset(c, stamp_ns) for c in self._others})

    def _drop_incomplete(self, frame: Frame) -> None:
        self._note_offsets(frame.stamp_ns)
        absent = [
            c
            for c in self._others
            if all(abs(gap) > self.tolerance_ns for gap in self._gaps(c, frame.stamp_ns))
        ]
        self.counters.missing.update(absent)
        self._drop(1, ":".join([INCOMPLETE, "+".join(absent)]))

    def _drop(self, count: int, reason: str) -> None:
        if count:
            self.counters.dropped[reason] += count

    def _refuse(self, camera: str, reason: str) -> None:
        if camera == self.reference:
            self._drop(1, reason)
        else:
            self.counters.ignored[f"{reason}:{camera}"] += 1

    def jump_back(self, stamp_ns: int) -> None:
        """Time restarted at ``stamp_ns``: frames stamped later belong to the past run and are forgotten."""
        if any(newest > stamp_ns + self._jump_ns for newest in self._newest.values()):
            self._jump(stamp_ns)

    def _jump(self, stamp_ns: int) -> None:
        self.counters.jumps += 1
        limit = stamp_ns + self._jump_ns // 2
        references = self._buffers[self.reference]
        self._drop(sum(f.stamp_ns > limit for f in references), JUMP)
        for camera, buffer in self._buffers.items():
            kept = [f for f in buffer if f.stamp_ns <= limit]
            buffer.clear()
            buffer.extend(kept)
            self._newest.pop(camera, None)
            if kept:
                self._newest[camera] = kept[-1].stamp_ns
            self._period.pop(camera, None)
        self._lead.clear()
        self._first = self._last_out = None
