# SPDX-License-Identifier: Apache-2.0
"""The same work on a Ray cluster whose machines share the folder of the results and the bags."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, LidargenError
from .local import RETRIES, Outcome
from .models import ModelInfo
from .options import Options
from .plan import Job
from .worker import Worker


class RayCrew:
    """Actors, each a :class:`.worker.Worker`. A lost one is started anew by Ray, and its slice done again.

    Args:
        workers: 0 is one per GPU of the cluster, or one per machine.
        address: of the cluster; empty: the one of ``RAY_ADDRESS``, or one of this machine alone.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, options: Options, workers: int, tell: Callable[[str], None], address: str = ""
    ) -> None:
        try:
            import ray
        except ImportError as e:
            raise ConfigError("--engine ray needs Ray, which is not installed; pip install ray") from e
        self._ray, self._tell = ray, tell
        try:
            ray.init(
                address=address or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise ConfigError(
                f"no Ray cluster at {address or 'this machine'}: {' '.join(str(e).split())[:200]}; start one with "
                "ray start --head"
            ) from e
        have = ray.cluster_resources()
        gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
        count = workers or gpus or len(ray.nodes())
        threads = options.settings.threads or max(1, cores // count)
        options = replace(options, settings=replace(options.settings, threads=threads))
        # Fractions, so that several workers may share a GPU.
        actor: Any = ray.remote(Worker).options(
            num_cpus=min(threads, max(1, cores // count)),
            num_gpus=min(1.0, gpus / count),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        self._idle: list[Any] = [actor.remote(options) for _ in range(count)]

    def info(self) -> ModelInfo:
        found: ModelInfo | LidargenError = self._get(self._idle[0].info.remote())
        if isinstance(found, LidargenError):
            raise found
        return found

    def run(self, work: Iterable[Job], out: Path) -> Iterator[tuple[Job, Outcome]]:
        source = iter(work)
        running: dict[Any, tuple[Job, Any]] = {}  # what will become of a job -> (the job, who does it)
        out = out.resolve()
        while True:
            while self._idle and (job := next(source, None)) is not None:
                actor = self._idle.pop()
                plan = replace(job.plan, bag=job.plan.bag.resolve())
                running[actor.run.remote(replace(job, plan=plan), out)] = job, actor
            if not running:
                return
            ended, _ = self._ray.wait(list(running), num_returns=1)
            for reference in ended:
                job, actor = running.pop(reference)
                self._idle.append(actor)
                outcome: Outcome = self._get(reference)
                if not isinstance(outcome, LidargenError):
                    for _ in range(sum(report.frames for _, report in outcome)):
                        self._tell(job.plan.name)
                yield job, outcome

    def close(self) -> None:
        self._ray.shutdown()

    def _get(self, reference: Any) -> Any:
        """What a call returned, or the error that it raised; losses of workers beyond the retries become one."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as e:
            if isinstance(e.cause, LidargenError):
                return e.cause
            raise
        except exceptions.RayActorError as e:
            return LidargenError(f"a worker was lost {RETRIES + 1} times: {' '.join(str(e).split())[:200]}")
