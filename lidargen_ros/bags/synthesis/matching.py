# SPDX-License-Identifier: Apache-2.0
"""Puts recorded pictures together by stamp.

A live node must decide with what has arrived; a bag can be read ahead. So every picture of the reference camera (the
first) gets the nearest picture of each other camera, of those recorded at most ``wait_ns`` before or after it. What
becomes of it depends on its surroundings alone: reading may begin anywhere.
"""

import heapq
import itertools
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ...errors import DataError
from ...ros.matcher import DUPLICATE, INCOMPLETE, OLD
from ..reader import BagMessage, header_stamp_ns

UNREADABLE = "no_header"


@dataclass(frozen=True)
class Picture:
    """A recorded image message; stamps and times in nanoseconds."""

    stamp_ns: int
    time_ns: int
    message: BagMessage


@dataclass(frozen=True)
class Moment:
    """What became of one picture of the reference camera.

    Attributes:
        time_ns: when it was recorded.
        stamp_ns: its stamp; None where its header cannot be read.
        pictures: in the order of the cameras, None where one is missing; empty if the set is not used.
        reason: why not; empty if it is used.
    """

    time_ns: int
    stamp_ns: int | None
    pictures: tuple[Picture | None, ...] = ()
    reason: str = ""


def stamp_of(message: BagMessage) -> int:
    """Stamp of a message that begins with a header, without decoding it. Raises DataError."""
    if not message.ros1:
        return header_stamp_ns(message.raw)
    if len(message.raw) < 12:
        raise DataError(f"{message.topic} at {message.time_ns} ns: too short for a header")
    seconds, nanoseconds = struct.unpack_from("<II", message.raw, 4)  # a sequence number comes first
    return int(seconds * 1_000_000_000 + nanoseconds)


def moments(
    messages: Iterable[BagMessage],
    topics: Mapping[str, str],
    *,
    tolerance_ns: int,
    wait_ns: int,
    min_cameras: int = 0,
) -> Iterator[Moment]:
    """One :class:`Moment` for each picture of the reference camera, in order of recording.

    Memory: the pictures of twice ``wait_ns``.

    Args:
        messages: of the cameras, nearly in order of recording.
        topics: topic -> camera; the first camera is the reference.
        min_cameras: sets with fewer pictures are not used; 0 is all.
    """
    cameras = tuple(dict.fromkeys(topics.values()))
    others: dict[str, deque[Picture]] = {camera: deque() for camera in cameras[1:]}
    waiting: list[
        tuple[int, int, Picture | None]
    ] = []  # time, number, picture; None: its header cannot be read
    recent: deque[tuple[int, int]] = deque()  # (time, stamp) of decided reference pictures
    number, newest = itertools.count(), 0

    def decide(time: int, _: int, reference: Picture | None) -> Moment:
        if reference is None:
            return Moment(time, None, (), UNREADABLE)
        stamp = reference.stamp_ns
        while recent and recent[0][0] < time - wait_ns:
            recent.popleft()
        reason = ""
        if recent and recent[-1][0] > time:
            reason = OLD
        elif any(s == stamp for _, s in recent):
            reason = DUPLICATE
        recent.append((max(time, recent[-1][0]) if recent else time, stamp))
        found = [_nearest(buffer, reference, tolerance_ns, wait_ns) for buffer in others.values()]
        missing = [camera for camera, picture in zip(others, found, strict=True) if picture is None]
        if not reason and len(cameras) - len(missing) < (min_cameras or len(cameras)):
            reason = f"{INCOMPLETE}:{'+'.join(missing)}"
        return Moment(time, stamp, () if reason else (reference, *found), reason)

    for message in messages:
        newest = max(newest, message.time_ns)
        while waiting and waiting[0][0] < newest - wait_ns:
            yield decide(*heapq.heappop(waiting))
        oldest = (waiting[0][0] if waiting else newest) - wait_ns
        for buffer in others.values():
            while buffer and buffer[0].time_ns < oldest:
                buffer.popleft()
        camera = topics[message.topic]
        picture: Picture | None = None
        with suppress(DataError):  # a picture without a stamp belongs to no set
            picture = Picture(stamp_of(message), message.time_ns, message)
        if camera == cameras[0]:
            heapq.heappush(waiting, (message.time_ns, next(number), picture))
        elif picture is not None:
            others[camera].append(picture)
    while waiting:
        yield decide(*heapq.heappop(waiting))


def _nearest(
    buffer: Iterable[Picture], reference: Picture, tolerance_ns: int, wait_ns: int
) -> Picture | None:
    near = (p for p in buffer if abs(p.time_ns - reference.time_ns) <= wait_ns)
    best = min(near, key=lambda p: (abs(p.stamp_ns - reference.stamp_ns), p.time_ns), default=None)
    if best is None or abs(best.stamp_ns - reference.stamp_ns) > tolerance_ns:
        return None
    return best
