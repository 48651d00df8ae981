# SPDX-License-Identifier: Apache-2.0
"""The folder of a run in progress: finished slices, and nothing half done.

OUT/.NAME.work/lock             held by the run; the system lets go of it however the run ends
               recipe.json      what the parts were made with
               000012.mcap      a part, made under another name and renamed when it was on the disk
               000012.json      its report, written last: the part counts once this is there
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import durable, sync
from ..mcap_writer import McapWriter, WriteError


@dataclass
class Report:
    """What became of the pictures of the reference camera in a slice; ``failed``: stamp and reason of each."""

    frames: int = 0
    sweeps: int = 0
    unmatched: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damage: str = ""
    seconds: float = 0.0

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    def add(self, other: "Report") -> None:
        """Take another slice in."""
        self.frames += other.frames
        self.sweeps += other.sweeps
        self.unmatched.update(other.unmatched)
        self.failed += other.failed
        self.damage = self.damage or other.damage
        self.seconds += other.seconds
        for text in other.notes:
            self.note(text)


class Workplace:
    """The folder of one bag in progress."""

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.name = out, name
        self.folder = out / f".{name}.work"

    @contextmanager
    def open(self, recipe: dict[str, Any]) -> Iterator[None]:
        """Take the folder, or make it. Parts of an earlier run stay if they were made by the same recipe.

        Raises:
            WriteError: it cannot be made. DataError: another run is at work, or an earlier one was another.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as e:
            raise WriteError(f"{self.folder} cannot be made: {e.strerror or e}") from e
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"another run is writing {self.out / self.name}; wait for it to end"
                ) from None
            for left in [*self.folder.glob(".*"), *self.out.glob(f".{self.name}.new")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._check(recipe)
            yield

    def _check(self, recipe: dict[str, Any]) -> None:
        path = self.folder / "recipe.json"
        if not path.exists():
            write_json(path, recipe)
            return
        if changed := differences(json.loads(path.read_text()), recipe):
            raise DataError(
                f"{self.folder} holds an unfinished run with another {changed}; delete it or choose another --out"
            )

    def part(self, index: int) -> Path:
        """The part of a slice."""
        return self.folder / f"{index:06d}.mcap"

    def done(self) -> dict[int, Report]:
        """Reports of the slices that are finished."""
        return {int(path.stem): _report(path) for path in sorted(self.folder.glob("[0-9]*.json"))}

    def begin(self, index: int) -> McapWriter:
        """A file for a part, under a name that no other process uses."""
        path = self._unfinished(index)
        path.unlink(missing_ok=True)  # left by a failed attempt of this process
        return McapWriter(path)

    def _unfinished(self, index: int) -> Path:
        return self.folder / f".{index:06d}.{os.uname().nodename}.{os.getpid()}.mcap"

    def end(self, file: McapWriter, index: int, report: Report) -> None:
        """Make a part count. Raises WriteError."""
        try:
            file.finish()
            sync(file.path)
            file.path.replace(self.part(index))
            write_json(self.part(index).with_suffix(".json"), vars(report))
        except OSError as e:
            raise WriteError(f"{file.path} cannot be written: {e.strerror or e}") from e

    def give_up(self, index: int, file: McapWriter | None) -> None:
        """Take away a part that was not finished; None: not even begun, as far as is known."""
        if file is not None:
            file.abort()
        self._unfinished(index).unlink(missing_ok=True)

    def remove(self) -> None:
        """The bag is complete: the folder is not needed any more."""
        shutil.rmtree(self.folder)


def _report(path: Path) -> Report:
    values = json.loads(path.read_text())
    failed = [(stamp, reason) for stamp, reason in values.pop("failed")]
    return Report(unmatched=Counter(values.pop("unmatched")), failed=failed, **values)


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two recipes, for a message; empty if nothing does."""
    plain = json.loads(json.dumps(new))
    names = [name for name in plain if old.get(name) != plain[name]]
    return ", ".join(
        name if isinstance(plain[name], list | dict) or len(str(plain[name])) > 40
        else f"{name} ({old.get(name)}, now {plain[name]})"
        for name in names
    )  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Complete or not at all, and on the disk. Raises WriteError."""
    try:
        with durable(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as e:
        raise WriteError(f"{path} cannot be written: {e.strerror or e}") from e
