# SPDX-License-Identifier: Apache-2.0
"""Child processes that are started, watched and ended by their id, and whose shared memory is given back."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

_SHM = Path("/dev/shm")


class Child:
    """A process with its own session, its output in a file.

    A terminal's Ctrl-C does not reach it: whoever started it ends it.

    Args:
        name: what messages call it.
        log: receives stdout and stderr.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                list(command),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def signal(self, number: int) -> None:
        if self.running:
            self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Exit status, or None if it still runs after ``timeout_s``."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = 5.0) -> int:
        """End it: SIGINT, then SIGTERM, then SIGKILL, each after ``grace_s``. Returns the exit status."""
        segments = shared_memory_of(self.pid) if self.running else set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            if self.wait(grace_s) is not None:
                break
        remove_abandoned(segments)
        return self.process.wait(grace_s)

    def tail(self, lines: int = 15) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Children:
    """Processes that end together, in reverse order, however the block is left.

    Args:
        domain_id: of a ROS domain that is theirs alone; its ports are given back as well.
    """

    def __init__(self, domain_id: int | None = None) -> None:
        self.all: list[Child] = []
        self._domain_id = domain_id

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> Child:
        child = Child(name, command, env, log)
        self.all.append(child)
        return child

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also what a child mapped of one that is gone already and left it behind.
        seen: set[str] = set().union(*(shared_memory_of(c.pid) for c in self.all if c.running))
        for child in reversed(self.all):
            child.stop()
        remove_abandoned(seen)
        if self._domain_id is not None:
            remove_ports(self._domain_id)


def shared_memory_of(pid: int) -> set[str]:
    """Names of the Fast DDS shared-memory files that a process has open or mapped."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        found.update(
            re.findall(r"/dev/shm/((?:sem\.)?fast(?:dds|rtps)_\S+)", Path(f"/proc/{pid}/maps").read_text())
        )
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("/dev/shm/fast"):
                    found.add(Path(target).name)
    return found


def is_abandoned(name: str) -> bool:
    """Whether a shared-memory file of Fast DDS lies there without a living owner."""
    return (_SHM / name).exists() and not any(_locked(_SHM / f"{name}{end}") for end in ("_el", "_sl"))


def remove_abandoned(names: set[str]) -> list[str]:
    """Remove those shared-memory files that no living process holds; returns what went.

    A killed process leaves tens of megabytes behind. Each segment has a lock file ``NAME_el`` that its owner (for a
    port: each of its users) keeps locked while it lives; a lock that can be had means that nobody is left.
    """
    removed = []
    for name in sorted(
        {n.removesuffix("_el").removesuffix("_sl") for n in names if not n.startswith("sem.")}
    ):
        if not is_abandoned(name):
            continue
        for file in (f"{name}", f"{name}_el", f"{name}_sl", f"sem.{name}_mutex"):
            with contextlib.suppress(OSError):
                (_SHM / file).unlink()
                removed.append(file)
    return removed


def remove_ports(domain_id: int) -> list[str]:
    """Remove the abandoned port files of a domain that nobody uses any more; returns what went.

    A process that still writes to one that was killed makes the port of the dead anew.
    """
    first = 7400 + 250 * domain_id
    return remove_abandoned({f"fast{kind}_port{first + i}" for kind in ("dds", "rtps") for i in range(250)})


def _locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_until(condition: Callable[[], object], timeout_s: float, step_s: float = 0.05) -> bool:
    """Whether ``condition()`` became true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step_s)
    return True
