# SPDX-License-Identifier: Apache-2.0
"""The parts of a bag put together, chunk by chunk, without unpacking anything."""

import shutil
from pathlib import Path
from typing import Any

from ...files import sync
from ..mcap_writer import WriteError, read_chunks
from ..writer import BagWriter
from .parts import Workplace, write_json
from .plan import Plan

SUMMARY = "synthesis.json"


def assemble(plan: Plan, place: Workplace, summary: dict[str, Any]) -> Path:
    """``OUT/NAME``: the bag, and beside its files what became of every picture. It appears complete or not at all.

    Needs as much room as the parts, which are removed afterwards.

    Raises:
        WriteError: disk full.
    """
    new, bag = place.out / f".{place.name}.new", place.out / place.name
    shutil.rmtree(new, ignore_errors=True)
    try:
        with BagWriter(new, name=place.name) as writer:
            for topic in plan.topics:
                writer.add_topic(topic)
            for index in range(plan.slices):
                for chunk in read_chunks(place.part(index)):
                    writer.append(chunk)
        for path in new.iterdir():
            sync(path)
        write_json(new / SUMMARY, summary)
        new.rename(bag)
        sync(place.out)
    except OSError as e:
        raise WriteError(f"{new} cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(new, ignore_errors=True)
    place.remove()
    return bag
