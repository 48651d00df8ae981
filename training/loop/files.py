# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, also after a loss of power."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lidargen_ros.models.checkpoints import replacing


@contextlib.contextmanager
def durable(target: Path) -> Iterator[Path]:
    """``replacing``, and on the disk before it takes its name."""
    with replacing(target) as temporary:
        yield temporary
        sync(temporary)
    sync(target.parent)


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
