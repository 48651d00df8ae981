# SPDX-License-Identifier: Apache-2.0
"""From a set of matched images to published messages: three stages, a thread and a queue of one each. No ROS in here.

The newest set wins at each of them, so at most six sets are under way and none of them waits behind an older one.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cameras import Rig
from ..cameras.encodings import Picture
from ..errors import EngineError
from ..sensors import Sensor
from ..sweep import Sweep
from .decoding import Decoder
from .matcher import FrameSet
from .parameters import Settings
from .reporter import Reporter
from .statistics import Statistics
from .worker import Worker


class Generator(Protocol):
    """What the node needs of :class:`lidargen_ros.LidarGenerator`; tests put in their own.

    A sweep's arrays are the caller's: the next frame is generated while this one is published.
    """

    sensor: Sensor
    return_threshold: float

    @property
    def rig(self) -> Rig: ...

    @property
    def raw_encodings(self) -> frozenset[str]: ...

    def set_rig(self, rig: Rig) -> None: ...

    def check_steps(self, steps: int | None) -> int: ...

    def __call__(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None = None,
        *,
        stamp_ns: int = 0,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sweep: ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where sweeps go."""

    def wanted(self) -> bool:
        """Whether anybody listens."""
        ...

    def publish(self, job: "Job") -> None: ...


@dataclass
class Job:
    """One set on its way; each stage adds what it made."""

    frames: FrameSet
    settings: Settings
    images: list[Picture | None] = field(default_factory=list)
    sweep: Sweep | None = None
    rig: Rig | None = None
    began: float = 0.0  # time.monotonic() at the start of decoding

    @property
    def arrivals(self) -> list[float]:
        """When its messages came, time.monotonic()."""
        return [f.payload.received for f in self.frames.frames if f is not None]

    @property
    def newest_ns(self) -> int:
        """Stamp of its newest image."""
        return max(f.stamp_ns for f in self.frames.frames if f is not None)

    @property
    def stamp(self) -> Any:
        """Stamp message of the first camera's image."""
        of_first = (f for f in self.frames.frames if f is not None and f.stamp_ns == self.frames.stamp_ns)
        return next(of_first).payload.message.header.stamp


class Pipeline:
    """Decodes, generates, checks and publishes; each set ends published or under a drop reason.

    Args:
        now_ns: the node's clock, for the age of data.
        convert: for image encodings that :mod:`.messages` does not know.
    """

    def __init__(
        self,
        generator: Generator,
        sink: Sink,
        statistics: Statistics,
        reporter: Reporter,
        now_ns: Callable[[], int],
        convert: Callable[[Any], NDArray] | None = None,
    ) -> None:
        self._generator, self._sink, self._statistics = generator, sink, statistics
        self._reporter, self._now_ns = reporter, now_ns
        self._decoder = Decoder(statistics, reporter, generator.raw_encodings, convert)
        self._default_threshold = generator.return_threshold
        self._usual_s = {"decode": 0.0, "generate": 0.0, "publish": 0.0}
        self._workers: tuple[Worker[Job], ...] = ()
        self._running = False
        self.failed_in_row, self.last_failure = 0, ""
        """Frames that failed on the engine since the last one that did not, and why."""
        self.wanted = True
        """Whether somebody subscribed when the last set came."""

    def start(self) -> None:
        """Start the threads of the stages."""
        self._workers = tuple(
            Worker(stage, work, replaced=self._on_replaced, failed=self._on_failure)
            for stage, work in (
                ("decode", self._decode),
                ("generate", self._generate),
                ("publish", self._publish),
            )
        )
        self._running = True

    def submit(self, frames: FrameSet, settings: Settings) -> None:
        """Hand over a set; never blocks."""
        if not self._running:
            self._statistics.drop("deactivated")
            return
        self.wanted = self._sink.wanted()
        if settings.lazy and not self.wanted:
            self._statistics.drop("no_subscriber")
        else:
            self._workers[0].submit(Job(frames, settings))

    def stop(self) -> str:
        """Stop within the frame at hand, which is still published.

        Returns:
            The stage that hangs and was left behind, or "".
        """
        self._running = False
        ended = {w.name: w.stop(drain=w is self._workers[-1]) for w in self._workers}
        return next((name for name, in_time in ended.items() if not in_time), "")

    def close(self) -> None:
        """End the decoding threads."""
        self._decoder.close()

    def stalled(self) -> tuple[str, float]:
        """The stage that has been at its frame for longest, and since how many seconds."""
        return max(((w.name, w.busy_s) for w in self._workers), key=lambda item: item[1], default=("", 0.0))

    # --- stages ----------------------------------------------------------------------------------------------------

    def _decode(self, job: Job) -> None:
        job.began = start = time.monotonic()
        if self._too_late(job, "decode", "generate", "publish"):
            return
        images = self._decoder(job.frames, job.settings)
        if images is None:
            self._statistics.drop("bad_image")
            return
        job.images = images
        self._took("decode", start)
        self._workers[1].submit(job)

    def _generate(self, job: Job) -> None:
        if self._too_late(job, "generate", "publish"):
            return
        start, s = time.monotonic(), job.settings
        self._generator.return_threshold = s.return_threshold or self._default_threshold
        job.rig = self._generator.rig
        try:
            sweep = self._generator(
                job.images, stamp_ns=job.frames.stamp_ns, steps=s.steps or None, seed=s.seed
            )
        except (EngineError, MemoryError) as e:
            what = str(e) or type(e).__name__
            self.failed_in_row, self.last_failure = self.failed_in_row + 1, what
            self._reporter.error("engine", f"the engine failed on a frame: {what}; it is dropped")
            self._statistics.drop("engine")
            return
        self.failed_in_row = 0
        job.sweep = self._checked(sweep, s)
        if job.sweep is None:
            return
        self._took("generate", start)
        self._workers[2].submit(job)

    def _publish(self, job: Job) -> None:
        start = time.monotonic()
        self._sink.publish(job)
        self._took("publish", start)
        arrivals, stages = job.arrivals, self._statistics.stages
        stages["match"].add(max(arrivals) - min(arrivals))
        stages["wait"].add(job.began - max(arrivals))
        stages["total"].add(time.monotonic() - min(arrivals))
        age_s = (self._now_ns() - job.newest_ns) / 1e9
        self._statistics.publish(age_s, job.frames.spread_ns / 1e9)

    # --- what the stages need --------------------------------------------------------------------------------------

    def _too_late(self, job: Job, *stages: str) -> bool:
        """Whether a set will miss its deadline if the stages to come take as long as they usually do."""
        deadline = job.settings.deadline
        age_s = (self._now_ns() - job.frames.stamp_ns) / 1e9
        needed_s = sum(self._usual_s[stage] for stage in stages)
        if not deadline or age_s + needed_s <= deadline:
            return False
        self._reporter.warning(
            "deadline",
            f"sets are {age_s:.2f} s old when their turn comes and need {needed_s:.2f} s more, deadline is "
            f"{deadline:g} s: dropped",
        )
        self._statistics.drop("too_old")
        if (
            age_s <= deadline
        ):  # only the guess speaks against it: let it fade, or one slow frame locks out the rest
            for stage in stages:
                self._usual_s[stage] *= 0.9
        return True

    def _took(self, stage: str, start: float) -> None:
        seconds, usual = time.monotonic() - start, self._usual_s[stage]
        self._usual_s[stage] = usual + 0.2 * (seconds - usual) if usual else seconds
        self._statistics.stages[stage].add(seconds)

    def _checked(self, sweep: Sweep, s: Settings) -> Sweep | None:
        """The sweep within the limits of range; None, reported and counted, if the model cannot have meant it."""
        ranges = sweep.range_map
        low, high, limit = ranges.min(), ranges.max(), self._generator.sensor.max_range_m
        if not (low >= 0 and high <= 1.001 * limit):  # NaN fails as well; rounding may pass the limit
            self._reporter.error(
                "output",
                f"the model gave ranges from {low:g} to {high:g} m, the sensor ends at {limit:g} m: sweep dropped",
            )
            self._statistics.drop("bad_output")
            return None
        share = np.count_nonzero(ranges) / ranges.size
        if share < s.min_returns:
            self._reporter.warning(
                "returns",
                f"{share:.1%} of the rays return, min_returns is {s.min_returns:.1%}: sweep dropped; are the "
                "cameras covered, or is it dark?",
            )
            self._statistics.drop("few_returns")
            return None
        if s.min_range <= 0 and s.max_range >= limit:
            return sweep
        kept = (ranges >= s.min_range) & (ranges <= s.max_range)
        return replace(sweep, range_map=np.where(kept, ranges, np.float32(0)))

    def _on_replaced(self, _: Job) -> None:
        self._statistics.drop("replaced" if self._running else "deactivated")

    def _on_failure(self, _: Job, error: Exception) -> None:
        text = "".join(traceback.format_exception(error)).rstrip()
        self._reporter.error("failure", f"{type(error).__name__}: {error}; the frame is dropped\n{text}")
        self._statistics.drop("failed")
