# SPDX-License-Identifier: Apache-2.0
"""Pictures of a bag are put together by stamp, and nothing depends on where reading begins."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from lidargen_ros.bags.reader import BagMessage
from lidargen_ros.bags.synthesis.matching import UNREADABLE, moments

CAMERAS = ("front", "left", "right")
TOPICS = {f"/{camera}": camera for camera in CAMERAS}
MS = 1_000_000
KIND = "sensor_msgs/msg/CompressedImage"


def message(topic, time_ms, stamp_ms=None, ros1=False):
    seconds, rest = divmod((time_ms if stamp_ms is None else stamp_ms) * MS, 10**9)
    raw = struct.pack("<III", 0, seconds, rest) if ros1 else b"\0\1\0\0" + struct.pack("<iI", seconds, rest)
    return BagMessage(f"/{topic}", KIND, time_ms * MS, raw, ros1)


def match(messages, **changes):
    return list(moments(messages, TOPICS, **{"tolerance_ns": 20 * MS, "wait_ns": 500 * MS, **changes}))


def told(found):
    """(stamp of the reference, stamps of the others or the reason) in ms."""
    return [
        (m.stamp_ns and m.stamp_ns // MS, m.reason or tuple(p and p.stamp_ns // MS for p in m.pictures[1:]))
        for m in found
    ]


def test_every_frame_with_partners_is_used_whatever_the_order() -> None:
    messages = [message(c, 1000 + 100 * i + k) for i in range(4) for k, c in enumerate(CAMERAS)]
    assert told(match(messages)) == [(1000 + 100 * i, (1001 + 100 * i, 1002 + 100 * i)) for i in range(4)]
    late = [
        message(c, 1000 + 100 * i + (150 if c == "front" else 0), 1000 + 100 * i)
        for i in range(4)
        for c in CAMERAS
    ]
    late.sort(key=lambda m: m.time_ns)
    assert told(match(late)) == [(1000 + 100 * i, (1000 + 100 * i,) * 2) for i in range(4)]


def test_reasons() -> None:
    messages = [
        *(message(c, 1000) for c in CAMERAS),
        *(message(c, 1100) for c in ("front", "right")),
        message("left", 1130),
        *(message(c, 1200 + k, 1000 if c == "front" else 1200) for k, c in enumerate(CAMERAS)),
        BagMessage("/front", KIND, 1300 * MS, b"\0\1"),
        BagMessage("/left", KIND, 1300 * MS, b"\0\1"),
        message("front", 1900),
    ]
    found = match(messages)
    assert [m.reason for m in found] == [
        "",
        "incomplete:left",
        "duplicate",
        UNREADABLE,
        "incomplete:left+right",
    ]
    assert [m.time_ns // MS for m in found] == [1000, 1100, 1200, 1300, 1900]
    assert told(match(messages, min_cameras=2))[1] == (1100, (None, 1100))


def test_ros1_headers_and_pictures_recorded_too_far_apart() -> None:
    assert told(match([message(c, 1000, ros1=True) for c in CAMERAS])) == [(1000, (1000, 1000))]
    apart = [message("front", 1000), message("right", 1000), message("left", 1600, 1000)]
    assert told(match(apart)) == [(1000, "incomplete:left")]
    assert told(match(apart, wait_ns=700 * MS)) == [(1000, (1000, 1000))]


def test_time_that_jumps_back_begins_again() -> None:
    run = [(1000 + 100 * i, c) for i in range(10) for c in CAMERAS]
    messages = [message(c, t + lap * 1000, t) for lap in range(3) for t, c in run]
    assert [m.reason for m in match(messages)] == [""] * 30


@given(st.data())
def test_it_does_not_matter_where_reading_begins(data) -> None:
    number = st.integers(0, 3000)
    events = data.draw(
        st.lists(st.tuples(number, st.integers(-60, 60), st.sampled_from(CAMERAS)), max_size=60)
    )
    messages = [message(c, 5000 + t, 5000 + t + d) for t, d, c in sorted(events)]
    whole = match(messages, wait_ns=100 * MS)
    cut = 5000 + data.draw(number)
    parts = []
    for low, high in ((0, cut), (cut, 10**6)):
        near = [m for m in messages if low - 100 <= m.time_ns // MS <= high + 100]
        found = match(near, wait_ns=100 * MS)
        parts += [m for m in found if low <= m.time_ns // MS < high]
    assert told(parts) == told(whole)
    assert len(whole) == sum(c == "front" for _, _, c in events)
    assert [m.time_ns for m in whole] == sorted(m.time_ns for m in whole)
