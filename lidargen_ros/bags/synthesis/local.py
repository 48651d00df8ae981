# SPDX-License-Identifier: Apache-2.0
"""Work on this machine: in this process, or in several. A process that is lost is replaced, and its slices done again."""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ...errors import LidargenError
from .models import ModelInfo, visible_gpus
from .options import Options
from .parts import Report
from .plan import Job
from .worker import Worker

log = logging.getLogger(__name__)
RETRIES = 3
"""How often the processes of a run may be lost before it ends."""
PER_GPU = 4
"""Workers that share a GPU, at most: one process decodes and packs less than half of what a GPU makes (docs/synthesis.md)."""
CORES = 4
"""Cores of each of them, at least."""

Reports = list[tuple[int, Report]]
Outcome = Reports | LidargenError


class Crew(Protocol):
    """Workers, wherever they are."""

    def info(self) -> ModelInfo:
        """What their model is. Raises LidargenError if it cannot be loaded."""
        ...

    def run(self, work: Iterable[Job], out: Path) -> Iterator[tuple[Job, Outcome]]:
        """Do jobs, taken as workers become free; yields each when it has ended, in any order."""
        ...

    def close(self) -> None:
        """End the workers; what they have begun is given up."""
        ...


def workers_here(gpus: int, cores: int, published: bool) -> int:
    """As many workers as this machine can feed: one without a GPU, and one per GPU of the published model, which fills it."""
    if not gpus or published:
        return max(1, gpus)
    return gpus * min(PER_GPU, max(1, cores // (gpus * CORES)))


def local_crew(options: Options, workers: int, tell: Callable[[str], None]) -> Crew:
    """``workers`` on this machine; 0 is as many as it can feed."""
    gpus, cores = visible_gpus(), os.cpu_count() or 1
    count = workers or workers_here(len(gpus), cores, bool(options.checkpoint))
    threads = options.settings.threads or max(1, cores // count)
    options = replace(options, settings=replace(options.settings, threads=threads))
    return Alone(options, tell) if count == 1 else Processes(options, count, gpus, tell)


class Alone:
    """One worker, in this process."""

    def __init__(self, options: Options, tell: Callable[[str], None]) -> None:
        self._worker = Worker(options, tell)

    def info(self) -> ModelInfo:
        return self._worker.info()

    def run(self, work: Iterable[Job], out: Path) -> Iterator[tuple[Job, Outcome]]:
        for job in work:
            outcome: Outcome
            try:
                outcome = self._worker.run(job, out)
            except LidargenError as e:
                outcome = e
            yield job, outcome

    def close(self) -> None:
        self._worker.close()


class Processes:
    """Several workers, each with a process and, in turn, a GPU of its own."""

    def __init__(self, options: Options, count: int, gpus: list[str], tell: Callable[[str], None]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._told: Any = self._context.SimpleQueue()
        self._stop: Any = self._context.Event()
        self._options, self._count, self._gpus, self._tell = options, count, gpus, tell
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        number = self._context.Value("i", 0)
        return ProcessPoolExecutor(
            self._count,
            self._context,
            _begin,
            (self._options, number, self._gpus, self._told, self._stop),
        )

    def info(self) -> ModelInfo:
        return self._pool.submit(_info).result()

    def run(self, work: Iterable[Job], out: Path) -> Iterator[tuple[Job, Outcome]]:
        source, again = iter(work), deque[Job]()
        running: dict[Future[Reports], Job] = {}
        lost = 0
        while True:
            while len(running) < 2 * self._count and (
                job := again.popleft() if again else next(source, None)
            ):
                running[self._pool.submit(_run, job, out)] = job
            if not running:
                return
            ended, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            self._hear()
            for future in ended:
                job = running.pop(future)
                try:
                    yield job, future.result()
                except LidargenError as e:
                    yield job, e
                except BrokenProcessPool:
                    again.append(job)
            if again:
                again.extend(running.values())
                running.clear()
                lost += 1
                self._renew(lost)

    def _renew(self, lost: int) -> None:
        """Other processes in place of those that were lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if lost > RETRIES:
            raise LidargenError(
                f"workers were lost {lost} times; use fewer (--workers), they may not fit into memory"
            )
        log.warning("a worker was lost; the slices in progress are done again")
        self._pool = self._new_pool()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._hear()

    def _hear(self) -> None:
        while not self._told.empty():
            self._tell(self._told.get())


_arguments: tuple[Any, ...] = ()
_worker: list[Worker] = []


def _begin(options: Options, number: Any, gpus: list[str], told: Any, stop: Any) -> None:
    """In a new process: its GPU, before anything looks for one; and its end together with its parent."""
    global _arguments
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[mine % len(gpus)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _arguments = (options, told.put, stop)


def _here() -> Worker:
    # Not in _begin: a pool hides what its initializer raises.
    if not _worker:
        _worker.append(Worker(*_arguments))
    return _worker[0]


def _info() -> ModelInfo:
    return _here().info()


def _run(job: Job, out: Path) -> Reports:
    return _here().run(job, out)
