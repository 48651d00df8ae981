# SPDX-License-Identifier: Apache-2.0
"""The three-camera matcher: drops, offsets, lag, jitter, jumps; every reference frame is accounted for."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.errors import ConfigError
from lidargen_ros.ros.matcher import Frame, FrameSet, Matcher

CAMERAS = ("front", "rear_left", "rear_right")
MS = 1_000_000


def feed(matcher: Matcher, events: list[tuple[str, int]]) -> list[FrameSet]:
    """Add (camera, stamp in ms) in order."""
    return [s for camera, stamp in events for s in matcher.add(camera, Frame(stamp * MS, (camera, stamp)))]


def stamps(sets: list[FrameSet]) -> list[int]:
    return [s.stamp_ns // MS for s in sets]


def check_books(matcher: Matcher) -> None:
    c = matcher.counters
    assert c.received["front"] == c.matched + sum(c.dropped.values()) + matcher.waiting


def drive(n: int, period: int = 100, start: int = 1000) -> list[tuple[str, int]]:
    return [(camera, start + i * period) for i in range(n) for camera in CAMERAS]


def test_complete_sets_come_out_in_camera_order() -> None:
    matcher = Matcher(CAMERAS)
    sets = feed(matcher, drive(5))
    assert stamps(sets) == [1000, 1100, 1200, 1300, 1400]
    assert [f.payload[0] for f in sets[0].frames if f] == list(CAMERAS)
    assert all(s.spread_ns == 0 for s in sets)
    check_books(matcher)


def test_identical_stamps_match_with_no_tolerance() -> None:
    assert len(feed(Matcher(CAMERAS, tolerance_s=0.0), drive(3))) == 3


def test_jitter_keeps_every_set_and_bounds_the_spread() -> None:
    rng = random.Random(1)
    matcher = Matcher(CAMERAS)
    sets = feed(matcher, [(c, t + rng.randint(-8, 8)) for c, t in drive(200)])
    assert len(sets) == 200
    assert max(s.spread_ns for s in sets) <= 16 * MS
    check_books(matcher)


@pytest.mark.parametrize("tolerance", [0.02, 0.09, 0.5])
def test_dropped_frames_never_glue_different_moments(tolerance: float) -> None:
    rng = random.Random(2)
    matcher = Matcher(CAMERAS, tolerance_s=tolerance)
    events = [e for e in drive(600) if rng.random() > 0.1]
    sets = feed(matcher, events)
    check_books(matcher)
    if tolerance < 0.1:  # below one period no neighbour may stand in
        assert all(s.spread_ns == 0 for s in sets)
        complete = set.intersection(*({t for c, t in events if c == camera} for camera in CAMERAS))
        assert len(sets) == len(complete)
        assert sum(n for r, n in matcher.counters.dropped.items() if r.startswith("incomplete:")) > 50
    assert all(s.spread_ns <= 2 * tolerance * 1e9 for s in sets)


def test_a_constant_offset_beyond_the_tolerance_names_the_camera() -> None:
    matcher = Matcher(CAMERAS)
    events = [(c, t + (33 if c == "rear_left" else 0)) for c, t in drive(50)]
    assert feed(matcher, events) == []
    assert matcher.counters.missing["rear_left"] == sum(matcher.counters.dropped.values()) > 40
    assert set(matcher.counters.dropped) == {"incomplete:rear_left"}
    assert abs(matcher.offset_ns["rear_left"] or 0) == 33 * MS
    check_books(matcher)


@pytest.mark.parametrize("order", [CAMERAS, CAMERAS[::-1]])
@pytest.mark.parametrize("offset", [1000, -1000])
def test_a_stamp_one_second_off_names_the_camera_and_the_second(offset: int, order) -> None:
    matcher = Matcher(CAMERAS)
    events = [(c, t + (offset if c == "rear_right" else 0)) for _, t in drive(30)[::3] for c in order]
    assert feed(matcher, events) == []
    assert set(matcher.counters.dropped) == {"incomplete:rear_right"}
    assert abs((matcher.offset_ns["rear_right"] or 0) - offset * MS) <= 100 * MS  # a period
    check_books(matcher)


def test_the_clock_of_a_camera_that_lacks_every_second_frame_is_not_blamed() -> None:
    matcher = Matcher(CAMERAS)
    feed(matcher, [(c, t) for c, t in drive(30) if c != "rear_left" or t % 200 == 0])
    assert matcher.offset_ns["rear_left"] == 0
    assert set(matcher.counters.dropped) == {"incomplete:rear_left"}
    check_books(matcher)


@pytest.mark.parametrize("offset", [-15, 15])
def test_a_small_offset_costs_no_waiting(offset: int) -> None:
    matcher = Matcher(CAMERAS)
    events = sorted(((c, t + (offset if c == "rear_left" else 0)) for c, t in drive(20)), key=lambda e: e[1])
    for camera, stamp in events:
        sets = feed(matcher, [(camera, stamp)])
        if sets:
            # The set comes with its last member, not with a later frame.
            assert stamp - stamps(sets)[0] <= max(offset, 0)
    assert matcher.counters.matched == 20


def test_wide_tolerance_waits_for_the_nearer_frame() -> None:
    matcher = Matcher(("front", "rear"), tolerance_s=0.09)
    # rear is late on the wire: when front's frame comes, rear's previous one is in reach but not the nearest.
    order = [("rear", 1000), ("front", 1000), ("front", 1100)]
    assert stamps(feed(matcher, [*order[:2]])) == [1000]
    feed(matcher, [("rear", 1050), ("rear", 1100), ("front", 1100)])
    sets = feed(matcher, [("front", 1150), ("rear", 1150)])
    assert stamps(sets) == [1150]
    assert sets[0].spread_ns == 0


@pytest.mark.parametrize("lag_ms", [200, 450])
def test_one_camera_late_on_the_wire_loses_nothing(lag_ms: int) -> None:
    matcher = Matcher(CAMERAS)
    arrivals = sorted((t + (lag_ms if c == "rear_left" else 0), c, t) for c, t in drive(100, period=33))
    sets = feed(matcher, [(c, t) for _, c, t in arrivals])
    assert len(sets) == 100
    assert all(s.spread_ns == 0 for s in sets)


def test_a_dead_camera_is_named_and_comes_back() -> None:
    matcher = Matcher(CAMERAS)
    events = [e for e in drive(100) if not (e[0] == "rear_right" and 3000 <= e[1] < 6000)]
    sets = feed(matcher, events)
    assert len(sets) == 70
    assert matcher.counters.dropped == {"incomplete:rear_right": 30}
    check_books(matcher)


def test_two_dead_cameras_are_both_named() -> None:
    matcher = Matcher(CAMERAS)
    assert feed(matcher, [e for e in drive(20) if e[0] == "front"]) == []
    assert set(matcher.counters.dropped) == {"incomplete:rear_left+rear_right"}
    assert matcher.offset_ns == {"rear_left": None, "rear_right": None}


@pytest.mark.parametrize("gone_from", [0, 3000])
def test_min_cameras_goes_on_without_a_silent_camera(gone_from: int) -> None:
    matcher = Matcher(CAMERAS, min_cameras=2)
    events = [e for e in drive(60) if not (e[0] == "rear_right" and e[1] >= gone_from)]
    sets = feed(matcher, events)
    late = [s for s in sets if s.stamp_ns >= (gone_from + 2500) * MS]
    assert late
    assert all(s.frames[2] is None and s.frames[1] is not None for s in late)
    # Once known to be silent it is not waited for any more: the set leaves with its last present frame.
    assert feed(matcher, [("front", 9000), ("rear_left", 9000)])[-1].stamp_ns == 9000 * MS
    assert matcher.counters.partial == matcher.counters.missing["rear_right"] > 20
    check_books(matcher)


def test_half_rate_camera_keeps_every_second_set() -> None:
    matcher = Matcher(CAMERAS)
    sets = feed(matcher, [e for e in drive(100) if e[0] != "rear_left" or e[1] % 200 == 0])
    assert len(sets) == 50
    assert matcher.counters.missing == {"rear_left": 50 - matcher.waiting}
    check_books(matcher)


def test_duplicates_are_counted_and_change_nothing() -> None:
    matcher = Matcher(CAMERAS)
    sets = feed(matcher, [e for e in drive(20) for _ in range(2)])
    assert len(sets) == 20
    assert matcher.counters.dropped == {"duplicate": 20}
    assert matcher.counters.ignored == {"duplicate:rear_left": 20, "duplicate:rear_right": 20}
    check_books(matcher)


def test_reordered_messages_lose_at_most_their_own_set() -> None:
    matcher = Matcher(CAMERAS)
    events = drive(60)
    for i in range(30, 120, 30):  # swap two frames of the same camera
        events[i], events[i + 3] = events[i + 3], events[i]
    sets = feed(matcher, events)
    assert stamps(sets) == sorted(stamps(sets))
    assert len(sets) >= 57
    assert matcher.counters.jumps == 0
    check_books(matcher)


@pytest.mark.parametrize("silent", [None, "front", "rear_left"])  # for the last 6 frames of the lap
def test_a_looping_bag_goes_on_at_once(silent: str | None) -> None:
    matcher = Matcher(CAMERAS)
    lap = drive(50)
    first = [e for e in lap if not (e[0] == silent and e[1] >= 1000 + 44 * 100)]
    feed(matcher, first)
    second = feed(matcher, lap)
    assert stamps(second) == [1000 + 100 * i for i in range(50)]
    assert 1 <= matcher.counters.jumps <= 2
    check_books(matcher)


def test_frames_waiting_at_a_jump_are_counted() -> None:
    matcher = Matcher(CAMERAS)
    feed(matcher, [*drive(10), ("front", 2000), ("front", 2100)])
    assert matcher.waiting == 2
    sets = feed(matcher, drive(3, start=100))
    assert stamps(sets) == [100, 200, 300]
    assert matcher.counters.dropped == {"time_jump": 2}
    check_books(matcher)


def test_a_jump_forward_goes_on() -> None:
    matcher = Matcher(CAMERAS)
    assert len(feed(matcher, [*drive(10), *drive(10, start=1_000_000)])) == 20


def test_one_wild_stamp_does_not_stop_the_camera() -> None:
    matcher = Matcher(CAMERAS)
    events = drive(60)
    events.insert(90, ("rear_left", 10_000_000))
    assert len(feed(matcher, events)) >= 58
    check_books(matcher)


def test_memory_is_bounded_by_the_depth() -> None:
    matcher = Matcher(CAMERAS, depth=4)
    feed(matcher, [e for e in drive(100) if e[0] != "front"])
    feed(matcher, [("front", t) for t in range(0, 400, 40)])
    assert all(len(b) <= 4 + 2 for b in matcher._buffers.values())
    check_books(matcher)


def test_reset_counts_what_it_forgets() -> None:
    matcher = Matcher(CAMERAS)
    feed(matcher, [("front", 1000), ("rear_left", 1000)])
    matcher.reset("deactivated")
    assert matcher.counters.dropped == {"deactivated": 1}
    assert len(feed(matcher, drive(2))) == 2
    check_books(matcher)


def test_a_consumer_that_raises_leaves_the_matcher_working() -> None:
    matcher = Matcher(CAMERAS)
    with pytest.raises(RuntimeError):
        for _ in feed(matcher, drive(1)):
            raise RuntimeError("a consumer's fault")
    assert len(feed(matcher, drive(5, start=2000))) == 5


def test_cameras_are_checked() -> None:
    with pytest.raises(ConfigError, match="must be different"):
        Matcher(("front", "front"))
    with pytest.raises(ConfigError, match="min_cameras 4"):
        Matcher(CAMERAS, min_cameras=4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CAMERAS), st.integers(0, 6000)), max_size=120), st.integers(0, 3))
def test_any_order_of_any_stamps_balances(events: list[tuple[str, int]], needed: int) -> None:
    matcher = Matcher(CAMERAS, min_cameras=needed, depth=6)
    sets = feed(matcher, events)
    check_books(matcher)
    assert len(sets) == matcher.counters.matched
    for s in sets:
        present = [f for f in s.frames if f is not None]
        assert len(present) >= (needed or 3)
        assert s.frames[0] is not None
        assert s.frames[0].stamp_ns == s.stamp_ns
        assert all(abs(f.stamp_ns - s.stamp_ns) <= matcher.tolerance_ns for f in present)
