# SPDX-License-Identifier: Apache-2.0
"""Worker, reporter, books, health and pipeline of the node, each without ROS."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from stub_node import SENSOR, StubGenerator

from lidargen_ros.errors import EngineError
from lidargen_ros.ros import statistics
from lidargen_ros.ros.calibrator import CalibrationState
from lidargen_ros.ros.health import Health, Observed
from lidargen_ros.ros.matcher import Frame, FrameSet, Matcher
from lidargen_ros.ros.parameters import Settings
from lidargen_ros.ros.pipeline import Pipeline
from lidargen_ros.ros.reporter import Reporter
from lidargen_ros.ros.statistics import Rate, Samples, Statistics
from lidargen_ros.ros.status import ERROR, OK, WARN, Hysteresis
from lidargen_ros.ros.worker import Worker
from lidargen_ros.sweep import Sweep

CAMERAS = ("front", "rear_left", "rear_right")


# --- worker ----------------------------------------------------------------------------------------------------------


class Gate:
    """Work that waits to be let through."""

    def __init__(self) -> None:
        self.open, self.began = threading.Event(), threading.Event()
        self.done: list[int] = []
        self.replaced: list[int] = []
        self.failed: list[tuple[int, str]] = []

    def work(self, item: int) -> None:
        self.began.set()
        assert self.open.wait(10)
        if item < 0:
            raise ValueError(f"item {item}")
        self.done.append(item)

    def worker(self) -> Worker[int]:
        return Worker(
            "test",
            self.work,
            replaced=self.replaced.append,
            failed=lambda item, e: self.failed.append((item, str(e))),
        )


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_newest_item_wins_and_the_others_are_told() -> None:
    gate = Gate()
    worker = gate.worker()
    worker.submit(1)
    assert gate.began.wait(10)
    for item in (2, 3, 4):
        worker.submit(item)
    assert not worker.idle
    gate.open.set()
    until(lambda: worker.idle)
    assert (gate.done, gate.replaced) == ([1, 4], [2, 3])
    assert worker.stop()


def test_an_exception_is_handed_on_and_the_thread_lives() -> None:
    gate = Gate()
    gate.open.set()
    worker = gate.worker()
    worker.submit(-1)
    until(lambda: gate.failed)
    worker.submit(5)
    until(lambda: gate.done == [5])
    assert gate.failed == [(-1, "item -1")]
    assert worker.stop()


def test_stopping_finishes_the_item_at_hand_and_leaves_the_next() -> None:
    gate = Gate()
    worker = gate.worker()
    worker.submit(1)
    assert gate.began.wait(10)
    worker.submit(2)
    threading.Timer(0.1, gate.open.set).start()
    assert worker.stop()
    worker.submit(3)
    assert (gate.done, gate.replaced) == ([1], [2, 3])


def test_work_that_hangs_is_not_waited_for_for_ever() -> None:
    gate = Gate()
    worker = gate.worker()
    worker.submit(1)
    assert gate.began.wait(10)
    assert worker.stop(timeout_s=0.05) is False
    gate.open.set()


# --- reporter --------------------------------------------------------------------------------------------------------


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str) -> None:
        self.lines.append(text)

    error = warning


def test_a_trouble_is_said_once_and_repetitions_are_counted() -> None:
    log, now = Log(), [0.0]
    reporter = Reporter(log, period_s=5.0, clock=lambda: now[0])
    for _ in range(10):
        reporter.warning("/front", "front is bad")
        now[0] += 0.1
    reporter.warning("/rear", "rear is bad")  # another key is not silenced
    assert log.lines == ["front is bad", "rear is bad"]
    now[0] = 6.0
    reporter.warning("/front", "front is bad")
    assert log.lines[-1] == "front is bad (9 more like it since the last message)"
    assert reporter.recent() == ["front is bad", "rear is bad"]
    now[0] = 12.0
    assert reporter.recent() == ["front is bad"]


# --- books -----------------------------------------------------------------------------------------------------------


def test_rates_and_samples(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(statistics, "time", SimpleNamespace(monotonic=lambda: now))
    rate = Rate()
    assert rate.hz() == 0.0
    assert rate.since_last_s is None
    for _ in range(5):
        rate.tick()
        now += 0.02
    assert rate.hz() == pytest.approx(50.0)
    now += 0.18
    assert rate.since_last_s == pytest.approx(0.2)
    assert rate.hz() == pytest.approx(10.0)  # falls as the next one fails to come
    samples = Samples()
    assert samples.summary() == {}
    for value in range(1, 101):
        samples.add(value / 1000)
    assert samples.summary() == {"p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 100.0}


def test_the_books_balance() -> None:
    matcher, books = Matcher(CAMERAS), Statistics(CAMERAS)
    for i in range(10):
        for camera in CAMERAS:
            if (camera, i) != ("rear_left", 3):
                matcher.add(camera, Frame(i * 100_000_000))
    for i in range(8):
        books.publish(age_s=0.03 * i, spread_s=0.001)
    books.drop("replaced")
    now = books.snapshot(matcher)
    assert (now["frames_in"], now["sweeps_out"], now["dropped"], now["in_flight"]) == (10, 8, 2, 0)
    assert now["dropped_by_reason"] == {"incomplete:rear_left": 1, "replaced": 1}
    assert sum(now["age_histogram"].values()) == 8
    assert now["age_histogram"]["<=50ms"] == 1


# --- health ----------------------------------------------------------------------------------------------------------


def snapshot(**changes):
    base = Statistics(CAMERAS).snapshot(Matcher(CAMERAS))
    base.update(frames_in=100, sweeps_out=100, sets=100, rate_hz=10.0)
    for camera in base["cameras"].values():
        camera.update(received=100, rate_hz=10.0, silent_s=0.05)
    return {**base, **changes}


def judge(health: Health, now, settings: Settings | None = None, **about):
    return {s.name: s for s in health.statuses(now, settings or Settings(), Observed(**about))}


@pytest.fixture
def health() -> Health:
    made = Health()
    made.state = "active"
    return made


def test_all_is_well(health) -> None:
    found = judge(health, snapshot())
    assert {s.level for s in found.values()} == {OK}
    assert found["sweeps"].message == "10.0 Hz of 10.0 Hz"


def test_a_level_must_last_before_it_is_reported() -> None:
    level = Hysteresis()
    assert [level(x) for x in (OK, WARN, WARN, OK, WARN, WARN, WARN, OK, OK, OK)] == [
        *(OK, OK, OK, OK, OK, OK),
        *(WARN, WARN, WARN),
        OK,
    ]


def test_a_falling_rate_warns_then_errs(health) -> None:
    judge(health, snapshot())
    for rate, want in ((8.0, WARN), (4.0, ERROR), (10.0, OK)):
        for _ in range(3):
            found = judge(health, snapshot(rate_hz=rate))
        assert found["sweeps"].level == want
    assert judge(health, snapshot(), Settings(expected_rate=30.0))["sweeps"].message == "10.0 Hz of 30.0 Hz"


def test_old_clouds_warn_and_err(health) -> None:
    for age, want in ((500.0, OK), (2000.0, WARN), (9000.0, ERROR)):
        found = judge(health, snapshot(age_ms={"p95": age}))["sweeps"]
        assert found.level == want
    assert "up to 9.00 s old" in found.message


def test_a_silent_camera_is_named_with_its_topics(health) -> None:
    now = snapshot()
    now["cameras"]["rear_left"]["silent_s"] = 7.0
    topics = {"rear_left": {"/rear_left/image": 0, "/rear_left/image/compressed": 0}}
    found = judge(health, now, publishers=topics)["cameras"]
    assert found.level == ERROR
    assert "no images from rear_left for 7 s: nobody publishes /rear_left/image or" in found.message
    topics["rear_left"]["/rear_left/image"] = 1
    assert "its publisher is silent" in judge(health, now, publishers=topics)["cameras"].message


@pytest.mark.parametrize(
    ("gap", "said"),
    [(33.0, "stamps are +33 ms off, tolerance is 20 ms"), (0.0, "FASTDDS_DEFAULT_PROFILES_FILE")],
)
def test_the_camera_that_breaks_sets_is_named_with_the_remedy(health, gap, said) -> None:
    judge(health, snapshot())
    for i in range(1, 4):
        now = snapshot(frames_in=100 + 10 * i, sets_missing={"rear_right": 3 * i})
        found = judge(health, now, offsets_ms={"rear_right": gap})["cameras"]
    assert found.level == WARN
    assert found.message.startswith("rear_right breaks sets")
    assert said in found.message


def test_trouble_and_states(health) -> None:
    health.state, health.trouble = "unconfigured", "bundle x is altered"
    found = judge(health, snapshot())
    assert (found["node"].level, found["node"].message) == (ERROR, "unconfigured: bundle x is altered")
    assert found["cameras"].level == found["sweeps"].level == OK
    health.state, health.trouble = "loading the model", ""
    assert judge(health, snapshot())["node"].level == WARN


def test_drops_name_the_reason(health) -> None:
    judge(health, snapshot())
    now = snapshot(frames_in=110, dropped=4, dropped_by_reason={"replaced": 3, "engine": 1})
    found = judge(health, now)["drops"]
    assert (found.level, found.message) == (WARN, "4 of 110 frames dropped, lately 4, mostly replaced")


def test_what_takes_long_is_said_and_building_is_a_state(health) -> None:
    health.state = "loading the model"
    assert judge(health, snapshot())["node"].message == "loading the model (0 s so far)"
    health.heard("building engine decoder for sm_90")
    found = judge(health, snapshot())["node"]
    assert (found.level, found.values["state"]) == (WARN, "building")
    assert found.message == "BUILDING: building engine decoder for sm_90 (0 s so far)"
    health.state = "inactive"
    assert judge(health, snapshot())["node"].message == "inactive"


def test_a_stage_that_does_not_end_is_an_error(health) -> None:
    found = judge(health, snapshot(), stalled=("generate", 12.0))["sweeps"]
    assert (found.level, found.message) == (
        ERROR,
        "generate has been at one frame for 12 s; does its device hang?",
    )


def test_a_model_that_rests_is_no_trouble(health) -> None:
    now = snapshot(rate_hz=0.0, dropped=90, dropped_by_reason={"no_subscriber": 90})
    found = judge(health, now, wanted=False)
    assert found["sweeps"].message == "nobody subscribes: the model rests"
    assert found["drops"].level == OK


@pytest.mark.parametrize(
    ("typical_ms", "level", "said"),
    [(-1000.0, WARN, "1.00 s in the future; correct the cameras' clock"), (9e6, ERROR, "set use_sim_time")],
)
def test_stamps_of_another_time_are_named_with_the_remedy(health, typical_ms, level, said) -> None:
    found = judge(health, snapshot(age_ms={"p50": typical_ms, "p95": typical_ms}))["sweeps"]
    assert found.level == level
    assert said in found.message


def test_calibration_missing_doubtful_or_older_than_the_images(health) -> None:
    size = dict.fromkeys(CAMERAS, (640, 352))
    good = CalibrationState("CameraInfo", sizes=size, stamps_ns={"front": 10**9})
    now = snapshot()
    now["cameras"]["front"].update(size=(1280, 704), stamp_ns=2 * 10**9)
    found = judge(health, now, calibration=good)["calibration"]
    assert (found.level, found.message) == (OK, "from CameraInfo")
    now["cameras"]["front"].update(size=(640, 640), stamp_ns=9 * 10**9)
    found = judge(health, now, calibration=good)["calibration"]
    assert found.level == WARN
    assert "front: images are 640 x 640, the calibration is for 640 x 352" in found.message
    assert "front: its CameraInfo is 8 s older than its images" in found.message
    missing = CalibrationState("CameraInfo", missing=["no usable rear_left/camera_info yet"])
    found = judge(health, snapshot(), calibration=missing)["calibration"]
    assert (found.level, found.message) == (ERROR, "missing: no usable rear_left/camera_info yet")


def test_the_gpu_is_judged_by_what_it_tells(health) -> None:
    found = judge(health, snapshot(), unreadable="nvidia-ml-py is not installed")["gpu"]
    assert (found.level, found.message) == (OK, "no readings: nvidia-ml-py is not installed")
    cool = {"gpu_used_mb": 4000.0, "gpu_total_mb": 8000.0, "gpu_temperature_c": 60.0}
    found = judge(health, snapshot(), readings=cool)["gpu"]
    assert (found.level, found.message) == (OK, "4000 of 8000 MB, 60 degrees C")
    for hot, level in ((85.0, WARN), (95.0, ERROR)):
        found = judge(health, snapshot(), readings={**cool, "gpu_temperature_c": hot})["gpu"]
        assert found.level == level
    found = judge(health, snapshot(), readings={**cool, "gpu_used_mb": 7900.0})["gpu"]
    assert found.level == WARN
    assert "memory is nearly full" in found.message


# --- pipeline --------------------------------------------------------------------------------------------------------


class Bench:
    """A pipeline whose publications are kept."""

    def __init__(self, **generator) -> None:
        self.generator = StubGenerator("stub")
        for name, value in generator.items():
            setattr(self.generator, name, value)
        self.books, self.log, self.now_ns = Statistics(CAMERAS), Log(), 0
        self.published: list = []
        self.listening = True
        self.pipeline = Pipeline(self.generator, self, self.books, Reporter(self.log), lambda: self.now_ns)

    def wanted(self) -> bool:
        return self.listening

    def publish(self, job) -> None:
        self.published.append((job.sweep, job.stamp))

    def run(self, settings: Settings | None = None, levels=(50, 50, 50), missing: int | None = None) -> dict:
        frames = []
        for i, level in enumerate(levels):
            data = np.full((352, 640, 3), level, np.uint8).tobytes()
            stamp = SimpleNamespace(sec=0, nanosec=i)
            message = SimpleNamespace(
                header=SimpleNamespace(stamp=stamp),
                encoding="rgb8",
                width=640,
                height=352,
                step=1920,
                is_bigendian=0,
                data=data,
            )
            picture = SimpleNamespace(
                message=message, transport="raw", topic=f"/{CAMERAS[i]}/image", received=0.0
            )
            frames.append(None if i == missing else Frame(i, picture))
        self.pipeline.start()
        self.pipeline.submit(FrameSet(tuple(frames), 0, 2), settings or Settings())
        assert self.pipeline.stop() == ""
        return self.books.snapshot(Matcher(CAMERAS))


def test_a_set_is_published_with_the_stamp_of_the_first_camera() -> None:
    bench = Bench()
    assert bench.run()["sweeps_out"] == 1
    sweep, stamp = bench.published[0]
    assert stamp.nanosec == 0
    assert sweep.range_map[0, 1] == 15.0


def test_limits_of_range_and_threshold_reach_the_output() -> None:
    bench = Bench()
    bench.run(Settings(max_range=12.0, return_threshold=0.8))
    assert not bench.published[0][0].returns.any()  # the walls are at 15 m
    assert bench.generator.return_threshold == 0.8
    bench.run(Settings())
    assert bench.generator.return_threshold == 0.5  # the bundle's own again


@pytest.mark.parametrize("error", [EngineError("no memory"), MemoryError()])
def test_engine_failures_are_counted(error) -> None:
    bench = Bench()

    def fail(*_, **__):
        raise error

    bench.pipeline._generator = type("G", (), {"rig": bench.generator.rig, "__call__": fail})()
    assert bench.run()["dropped_by_reason"] == {"engine": 1}
    assert "the engine failed on a frame" in bench.log.lines[0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "bad_output"),
        (np.inf, "bad_output"),
        (-1.0, "bad_output"),
        (500.0, "bad_output"),
        (0.0, "few_returns"),
    ],
)
def test_output_that_the_model_cannot_have_meant_is_not_published(value, reason, monkeypatch) -> None:
    bench = Bench()
    ranges = np.full(SENSOR.shape, 10, np.float32)
    ranges[5:] = value
    ranges[:5] = value if value == 0 else 10
    monkeypatch.setattr(StubGenerator, "__call__", lambda *_, **__: Sweep(ranges, SENSOR))
    assert bench.run()["dropped_by_reason"] == {reason: 1}
    assert not bench.published
    assert bench.log.lines[0].endswith(("sweep dropped", "or is it dark?"))


def test_nothing_is_spent_while_nobody_listens() -> None:
    bench = Bench()
    bench.listening = False
    assert bench.run()["dropped_by_reason"] == {"no_subscriber": 1}
    assert bench.run(Settings(lazy=False))["sweeps_out"] == 1


def test_a_set_that_will_miss_its_deadline_is_dropped_before_work_is_spent_on_it(monkeypatch) -> None:
    bench, calls = Bench(), []
    slow = StubGenerator.__call__

    def generate(self, *arguments, **options):
        calls.append(1)
        time.sleep(0.2)
        return slow(self, *arguments, **options)

    monkeypatch.setattr(StubGenerator, "__call__", generate)
    settings = Settings(deadline=1.0)
    bench.now_ns = 500_000_000
    assert bench.run(settings)["sweeps_out"] == 1  # what a frame takes is known from here on
    bench.now_ns = 900_000_000
    assert bench.run(settings)["dropped_by_reason"] == {"too_old": 1}
    assert len(calls) == 1
    assert "0.90 s old when their turn comes and need 0.2" in bench.log.lines[0]
    for _ in range(20):  # the guess fades: one slow frame must not lock out those that follow
        found = bench.run(settings)
    assert found["sweeps_out"] > 1


def test_a_stage_that_takes_long_is_named_with_its_time() -> None:
    bench, go_on = Bench(), threading.Event()
    bench.publish = lambda job: go_on.wait(20)
    bench.pipeline.start()
    picture = SimpleNamespace(message=None, transport="raw", topic="/x", received=time.monotonic())
    bench.pipeline._workers[2].submit(SimpleNamespace(frames=FrameSet((Frame(0, picture),), 0, 0)))
    until(lambda: bench.pipeline.stalled()[1] > 0.05)
    assert bench.pipeline.stalled()[0] == "publish"
    go_on.set()
    assert bench.pipeline.stop() == ""


def test_three_sets_are_under_way_at_once() -> None:
    """While one is published and one generated, the next is decoded: the rate is that of the slowest stage."""
    bench = Bench()
    bench.pipeline.start()
    here = threading.Barrier(3, timeout=10)
    for worker in bench.pipeline._workers:
        worker._work = lambda _: here.wait()
        worker.submit(None)
    assert bench.pipeline.stop() == ""
    assert bench.books.snapshot(Matcher(CAMERAS))["dropped"] == 0


def test_min_cameras_lets_a_set_with_a_hole_pass() -> None:
    bench = Bench()
    assert bench.run(missing=1)["dropped_by_reason"] == {"bad_image": 1}
    assert bench.run(Settings(min_cameras=2), missing=1)["sweeps_out"] == 1
