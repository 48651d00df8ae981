# SPDX-License-Identifier: Apache-2.0
"""Makes the parts of slices: reading, decoding, inference and packing overlap, in bounded memory.

reader thread: match, hand to decoders -> queue -> caller's thread: inference -> packers -> file, in order
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...cameras.encodings import Picture, picture_size
from ...errors import DataError, EngineError, InputError, LidargenError
from ...ros.messages import picture_of
from ..mcap_writer import Chunk, McapWriter, Message, WriteError
from ..reader import BagMessage, BagReader
from ..writer import add_topic
from .encode import Encoder
from .host import settle_in
from .matching import Moment, moments
from .models import Model, ModelInfo, load_model, make_sweep
from .options import Options
from .parts import Report, Workplace
from .plan import Job, Plan

AHEAD = 8
"""Sets that are decoded before their turn, and sweeps that are packed after it."""
_STRETCH = 0.03  # proportions of a picture and of its calibration that count as the same

Images = list[Picture | None]


class Stopped(Exception):
    """The run was told to stop."""


class Worker:
    """One model, and the bags it has open.

    Args:
        tell: called with the name of a bag whenever one of its pictures has been dealt with.
        stop: set when work should end soon.
    """

    def __init__(
        self,
        options: Options,
        tell: Callable[[str], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> None:
        settle_in()
        self._model: Model = load_model(options)
        self._tell, self._stop = tell, stop or threading.Event()
        threads = options.settings.threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(max(2, threads), thread_name_prefix="synthesis")
        self._open: dict[str, BagReader] = {}

    def info(self) -> ModelInfo:
        """What the model is."""
        return self._model.info()

    def close(self) -> None:
        """End the threads and close the bags."""
        self._pool.shutdown(cancel_futures=True)
        self._close_bags()

    def run(self, job: Job, out: Path) -> list[tuple[int, Report]]:
        """Make the parts of a job; returns the report of each slice.

        Raises:
            WriteError: nothing more can be written. LidargenError: the bag cannot be read any more. Stopped.
        """
        plan, place = job.plan, Workplace(out, job.plan.name)
        encoder = Encoder(plan.info, plan.rig, plan.options, plan.channels)
        reader = self._bag(plan, "pictures")
        feed = _Feed(self._moments(reader, job), lambda m: self._pool.submit(self._decode, m, plan))
        originals = _Originals(self._bag(plan, "originals"), job) if plan.options.merge else None
        reports = []
        try:
            for index in job.slices:
                file = None
                try:
                    file = place.begin(index)
                    report = self._slice(index, plan, file, feed, encoder, originals)
                    report.damage = next((r.damage for r in self._open.values() if r.damage), "")
                    place.end(file, index, report)
                except BaseException:
                    place.give_up(index, file)
                    raise
                reports.append((index, report))
        finally:
            feed.close()
        return reports

    def _slice(
        self,
        index: int,
        plan: Plan,
        file: McapWriter,
        feed: "_Feed",
        encoder: Encoder,
        originals: "_Originals | None",
    ) -> Report:
        begun, report = time.monotonic(), Report()
        packing: deque[tuple[int, Future[list[Chunk]]]] = deque()
        channels = plan.channels
        for topic in plan.topics:
            add_topic(file, topic)

        def copy(until_ns: int) -> None:
            for m in originals.until(index, until_ns) if originals else ():
                if m.topic not in channels:
                    continue
                try:
                    file.write(Message(channels[m.topic], m.time_ns, m.cdr()))
                except WriteError:
                    raise
                except DataError as e:  # of a ROS 1 bag, where messages are converted
                    report.note(f"{e}; it is left out")

        def write(keep: int) -> None:
            while len(packing) > keep:
                time_ns, chunks = packing.popleft()
                copy(time_ns)
                for chunk in chunks.result():
                    file.append(chunk)
                report.sweeps += 1

        if index == 0:
            for chunk in encoder.metadata(plan.start_ns):
                file.append(chunk)
        while (item := feed.next_until(plan.begin(index + 1))) is not None:
            if self._stop.is_set():
                raise Stopped
            moment, images = item
            report.frames += 1
            if images is None:
                report.unmatched[moment.reason] += 1
            else:
                stamp = moment.stamp_ns or 0
                try:
                    sweep = make_sweep(
                        self._model, _usable(images.result(), plan, report), plan.rig, stamp, plan.options
                    )
                except (EngineError, InputError, MemoryError) as e:
                    report.failed.append((stamp, str(e) or type(e).__name__))
                else:
                    packing.append((moment.time_ns, self._pool.submit(encoder, sweep, moment.time_ns)))
                    write(AHEAD)
            self._tell(plan.name)
        write(0)
        copy(plan.begin(index + 1))
        report.seconds = time.monotonic() - begun
        return report

    def _moments(self, reader: BagReader, job: Job) -> Iterator[Moment]:
        """Those of the job's slices."""
        plan, options, wanted = job.plan, job.plan.options, set(job.slices)
        start, stop = plan.begin(job.slices[0]), plan.begin(job.slices[-1] + 1)
        span = (start - options.wait_ns, stop + options.wait_ns + 1) if plan.indexed else (None, None)
        found = moments(
            reader.messages(list(plan.cameras), *span),
            plan.cameras,
            tolerance_ns=options.tolerance_ns,
            wait_ns=options.wait_ns,
            min_cameras=options.settings.min_cameras,
        )
        return (m for m in found if start <= m.time_ns < stop and plan.slice_of(m.time_ns) in wanted)

    def _decode(self, moment: Moment, plan: Plan) -> tuple[Images, list[str], list[tuple[int, int] | None]]:
        """Prepared images in the order of the cameras, what was wrong with the others, and sizes."""
        images: Images = []
        faults: list[str] = []
        sizes: list[tuple[int, int] | None] = []
        for picture in moment.pictures:
            image = None
            if picture is not None:
                try:
                    pixels = plan.options.settings.max_image_pixels
                    image = picture_of(
                        picture.message.decode(), raw=self._model.raw_encodings, max_pixels=pixels
                    )
                except LidargenError as e:
                    faults.append(f"{picture.message.topic}: {e}")
            sizes.append(None if image is None else picture_size(image)[::-1])
            images.append(None if image is None else self._model.prepare(image))
        return images, faults, sizes

    def _bag(self, plan: Plan, use: str) -> BagReader:
        """The bag, opened once for each use: iterations over one reader disturb each other."""
        if any(reader.path != plan.bag for reader in self._open.values()):
            self._close_bags()
        if use not in self._open:
            self._open[use] = BagReader(plan.bag)
        self._open[use].damage = None if plan.indexed else self._open[use].damage
        return self._open[use]

    def _close_bags(self) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()


Decoded = Future[tuple[Images, list[str], list[tuple[int, int] | None]]]


class _Feed:
    """Moments with their images in the making, read ahead by a thread of its own."""

    def __init__(self, found: Iterator[Moment], decode: Callable[[Moment], Decoded]) -> None:
        self._items: queue.Queue[tuple[Moment, Decoded | None] | BaseException | None] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._head: tuple[Moment, Decoded | None] | None = None
        self._thread = threading.Thread(target=self._read, args=(found, decode), daemon=True)
        self._thread.start()

    def next_until(self, stop_ns: int) -> tuple[Moment, Decoded | None] | None:
        """The next moment recorded before ``stop_ns``, if there is one. Raises what reading raised."""
        if self._head is None and not self._ended.is_set():
            item = self._items.get()
            if isinstance(item, BaseException):
                self._ended.set()
                raise item
            self._head = item
            if item is None:
                self._ended.set()
        if self._head is None or self._head[0].time_ns >= stop_ns:
            return None
        head, self._head = self._head, None
        return head

    def close(self) -> None:
        """Stop reading."""
        self._ended.set()
        while self._thread.is_alive():
            try:
                self._items.get(timeout=0.05)
            except queue.Empty:
                continue

    def _read(self, found: Iterator[Moment], decode: Callable[[Moment], Decoded]) -> None:
        try:
            for moment in found:
                if self._ended.is_set():
                    return
                self._items.put((moment, decode(moment) if moment.pictures else None))
            self._items.put(None)
        except BaseException as e:  # noqa: BLE001  # raised again where the items are taken
            self._items.put(e)


class _Originals:
    """Messages of the bag, each once, in the slices of a job.

    A message that was recorded out of order belongs to the slice in which it is read.
    """

    def __init__(self, reader: BagReader, job: Job) -> None:
        self._plan = job.plan
        span = (job.plan.begin(job.slices[0]), job.plan.begin(job.slices[-1] + 1))
        self._messages = reader.messages(None, *(span if job.plan.indexed else (None, None)))
        self._head = next(self._messages, None)
        self._clock = self._head.time_ns if self._head else 0

    def until(self, index: int, stop_ns: int) -> Iterator[BagMessage]:
        """The next messages of a slice up to and with ``stop_ns``."""
        while self._head is not None and self._clock <= stop_ns:
            there = self._plan.slice_of(self._clock)
            if there > index:
                return
            if there == index:
                yield self._head
            self._head = next(self._messages, None)
            self._clock = max(self._clock, self._head.time_ns) if self._head else 0


def _usable(
    decoded: tuple[Images, list[str], list[tuple[int, int] | None]], plan: Plan, report: Report
) -> Sequence[Picture | None]:
    """The images, if they are enough; notes odd sizes. Raises InputError."""
    images, faults, sizes = decoded
    needed = plan.options.settings.min_cameras or len(images)
    if sum(image is not None for image in images) < needed:
        raise InputError("; ".join(faults))
    for text in faults:
        report.note(f"{text}; the set was used without it")
    for topic, size, view in zip(plan.cameras, sizes, plan.rig.views, strict=True):
        calibrated = view.camera
        if size and abs(size[0] * calibrated.height / (size[1] * calibrated.width) - 1) > _STRETCH:
            report.note(
                f"{topic}: images are {size[0]} x {size[1]}, the calibration is for {calibrated.width} x "
                f"{calibrated.height}: not the same proportions; correct the rig if the images are cropped"
            )
    return images
