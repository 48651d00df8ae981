# SPDX-License-Identifier: Apache-2.0
"""Bags in, bags out: plans each, hands its slices to the crew, puts the parts together, keeps the books."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, LidargenError
from ..mcap_writer import WriteError
from .assemble import SUMMARY, assemble
from .local import Crew
from .models import ModelInfo
from .options import Options
from .parts import Report, Workplace, differences
from .plan import Job, Plan, bag_name, jobs, make_plan

MADE, THERE, FAILED, STOPPED = "made", "there already", "failed", "stopped"


@dataclass
class _Bag:
    """A bag in progress."""

    plan: Plan
    place: Workplace
    left: set[int]
    done: dict[int, Report]
    stack: ExitStack = field(default_factory=ExitStack)
    error: LidargenError | None = None


class Run:
    """One call of the command.

    Args:
        started: called with a bag's name, its pictures in all, and those done by an earlier run.

    Attributes:
        summaries: of each bag, in order; see :meth:`total` for the sum.
        stopped: why the run ended early; None if it did not.
    """

    def __init__(
        self,
        bags: Sequence[Path],
        out: Path,
        options: Options,
        crew: Crew,
        started: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        names = [bag_name(bag) for bag in bags]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"{len(bags)} bags, of which several are named {twice[0]}; synthesise those into different --out"
            )
        self._paths, self._out, self._options = dict(zip(names, bags, strict=True)), out, options
        self._crew, self._started = crew, started
        self._bags: dict[str, _Bag] = {}
        self._begun = time.monotonic()
        self._summaries: dict[str, dict[str, Any]] = {}
        self.stopped: LidargenError | None = None

    @property
    def summaries(self) -> list[dict[str, Any]]:
        return [self._summaries[name] for name in self._paths if name in self._summaries]

    def __call__(self) -> None:
        """Do everything. A bag that fails does not stop the others; a full disk does.

        Raises:
            LidargenError: the folder of the results cannot be made, the model cannot be loaded, or workers are lost
                again and again.
        """
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise WriteError(f"{self._out} cannot be made: {e.strerror or e}; choose another --out") from e
        info = self._crew.info()
        with ExitStack() as locks:
            try:
                for job, outcome in self._crew.run(self._work(info, locks), self._out):
                    self._take(self._bags[job.plan.name], job, outcome)
            except WriteError as e:
                self.stopped = e
            finally:
                for name, bag in self._bags.items():
                    if name not in self._summaries:
                        self._end(bag, STOPPED, bag.error or self.stopped)

    def _work(self, info: ModelInfo, locks: ExitStack) -> Iterator[Job]:
        for name, path in self._paths.items():
            try:
                bag = self._start(name, path, info, locks)
            except WriteError:
                raise
            except LidargenError as e:
                self._summaries[name] = {"bag": str(path), "state": FAILED, "error": str(e)}
                continue
            if bag is not None:
                yield from jobs(bag.plan, bag.done)

    def _start(self, name: str, path: Path, info: ModelInfo, locks: ExitStack) -> _Bag | None:
        """Plan a bag; None if nothing is left to be done."""
        plan = make_plan(path, self._options, info)
        place, recipe = Workplace(self._out, name), plan.recipe()
        if (self._out / name).exists():
            self._summaries[name] = {**_summary_of(self._out / name, recipe), "state": THERE}
            shutil.rmtree(
                place.folder, ignore_errors=True
            )  # left by a run that ended just after its last step
            self._started(name, plan.frames, plan.frames)
            return None
        stack = locks.enter_context(ExitStack())
        stack.enter_context(place.open(recipe))
        done = place.done()
        bag = _Bag(plan, place, set(range(plan.slices)) - done.keys(), done, stack)
        self._bags[name] = bag
        self._started(name, plan.frames, sum(report.frames for report in done.values()))
        if not bag.left:
            self._finish(bag)
            return None
        return bag

    def _take(self, bag: _Bag, job: Job, outcome: Any) -> None:
        """What came of a job."""
        if isinstance(outcome, WriteError):
            raise outcome
        if isinstance(outcome, LidargenError):
            bag.error = bag.error or outcome
            self._end(bag, FAILED, bag.error)
            return
        for index, report in outcome:
            bag.done[index] = report
            bag.left.discard(index)
        if not bag.left and bag.error is None:
            self._finish(bag)

    def _finish(self, bag: _Bag) -> None:
        report = _sum(bag)
        if not report.sweeps:
            bag.place.remove()
            why = ", ".join(f"{reason} {n}" for reason, n in report.unmatched.most_common(3))
            failed = f"; {report.failed[0][1]}" if report.failed else ""
            self._end(
                bag,
                FAILED,
                DataError(f"bag {bag.plan.bag}: none of {report.frames} frames gave a sweep ({why}{failed})"),
            )
            return
        summary = self._summary(bag, MADE, None)
        assemble(bag.plan, bag.place, {**summary, "recipe": bag.plan.recipe()})
        self._end(bag, MADE, None)

    def _end(self, bag: _Bag, state: str, error: LidargenError | None) -> None:
        self._summaries[bag.plan.name] = self._summary(bag, state, error)
        bag.stack.close()

    def _summary(self, bag: _Bag, state: str, error: LidargenError | None) -> dict[str, Any]:
        report, plan = _sum(bag), bag.plan
        return {
            "bag": str(plan.bag),
            "out": str(self._out / plan.name),
            "state": state,
            **({"error": str(error)} if error else {}),
            "frames_in": report.frames,
            "sweeps_out": report.sweeps,
            "unmatched": dict(report.unmatched),
            "failed": [{"stamp_ns": stamp, "reason": reason} for stamp, reason in report.failed],
            "damage": report.damage,
            "notes": [*plan.notes, *report.notes],
            "seconds": round(report.seconds, 3),
            "frames_per_second": round(report.frames / report.seconds, 3) if report.seconds else 0.0,
            "machine": plan.info.machine,
        }

    def total(self) -> dict[str, Any]:
        """All bags together; ``seconds`` is time on the clock, a bag's own are seconds of its workers."""
        seconds = time.monotonic() - self._begun
        sums = {k: sum(s.get(k, 0) for s in self.summaries) for k in ("frames_in", "sweeps_out")}
        lost = sum(sum(s.get("unmatched", {}).values()) for s in self.summaries)
        return {
            "bags": len(self._paths),
            **{
                state: sum(s["state"] == state for s in self.summaries)
                for state in (MADE, THERE, FAILED, STOPPED)
            },
            **sums,
            "unmatched": lost,
            "failed_frames": sum(len(s.get("failed", [])) for s in self.summaries),
            "damaged": sum(bool(s.get("damage")) for s in self.summaries),
            "seconds": round(seconds, 3),
        }


def _sum(bag: _Bag) -> Report:
    report = Report()
    for index in sorted(bag.done):
        report.add(bag.done[index])
    return report


def _summary_of(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The summary in a bag that is there already. Raises DataError if it is not the one that is wanted."""
    path = folder / SUMMARY
    if not path.is_file():
        raise DataError(
            f"{folder} exists and was not made by this command; delete it or choose another --out"
        )
    summary: dict[str, Any] = json.loads(path.read_text())
    if changed := differences(summary.pop("recipe"), recipe):
        raise DataError(f"{folder} was made with another {changed}; delete it or choose another --out")
    return summary
