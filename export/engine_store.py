# SPDX-License-Identifier: Apache-2.0
"""Where engines are put: beside the bundle or in the cache, one builder at a time, complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lidargen_ros.bundle import Bundle
from lidargen_ros.engines.build_record import RECORD, cache_folder
from lidargen_ros.errors import EngineError

log = logging.getLogger(__name__)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def engines_root(bundle: Bundle) -> Path:
    """``BUNDLE/engines``, or the user's cache where that cannot be written (a bundle installed by the system)."""
    beside = bundle.path / "engines"
    try:
        beside.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=beside):
            return beside
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise EngineError(
                f"{beside} cannot be used: {error.strerror}; remove it or give --out"
            ) from error
    cache = cache_folder(bundle.name, bundle.digest)
    log.warning("%s cannot be written; engines go to %s", beside, cache)
    return cache


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Holds the lock of ``folder`` and gives an empty folder beside it to build into.

    ``publish`` makes it final. Whatever ends the build earlier leaves nothing behind that looks finished; a build that
    was killed is cleared away by the next one.

    Raises:
        EngineError: the place cannot be written, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process builds %s; waiting for it", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            temporary = folder.parent / f".{folder.name}.part"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        remedy = (
            "free space or give --out" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give --out DIR"
        )
        raise EngineError(f"{folder} cannot be written: {error.strerror}; {remedy}") from error


def publish(temporary: Path, folder: Path) -> None:
    """Replaces the contents of ``folder``; the record goes first and comes last, so that it never describes other files."""
    folder.mkdir(exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for new in sorted(temporary.iterdir(), key=lambda path: path.name == RECORD):
        new.replace(folder / new.name)
