# SPDX-License-Identifier: Apache-2.0
"""What a conversion did: a table for people, JSON for programs, and the split lists."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lidargen_ros.errors import DataError
from lidargen_ros.files import replacing

from .convert import Summary

_DRIVES = "drives.json"


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


def as_dict(summary: Summary) -> dict[str, Any]:
    """Summary as plain JSON; the sync errors become their quantiles in milliseconds."""
    data: dict[str, Any] = {f.name: getattr(summary, f.name) for f in fields(summary)}
    errors = np.array(data.pop("sync_error_us"), np.float64) / 1000
    quantiles = (0, 5, 50, 95, 100)
    data["sync_error_ms"] = (
        {f"p{q}": round(float(np.percentile(errors, q)), 3) for q in quantiles} if len(errors) else {}
    )
    return {key: dict(value) if isinstance(value, Counter) else value for key, value in data.items()}


def describe(summary: Summary) -> list[tuple[str, str]]:
    """Lines of the summary: what, and how much. docs/data.md explains each."""
    s, data = summary, as_dict(summary)
    written = (
        f"{len(s.clips)} written, {len(s.clips_there)} were there, {sum(s.clips_dropped.values())} dropped"
    )
    lines = [("clips", written), *_reasons(s.clips_dropped)]
    lines.append(("spins", f"{s.spins_kept} of {s.spins_read} kept"))
    lines += _reasons(s.spins_dropped)
    if s.source_dropped:
        lines.append(("clouds", f"{sum(s.source_dropped.values())} not used"))
        lines += _reasons(s.source_dropped)
    lines.append(("frames", f"{s.frames} written"))
    lines += _reasons(s.frames_incomplete)
    if s.points_read:
        lines.append(("points", f"{s.points_kept} rays with a return from {s.points_read} points"))
    if data["sync_error_ms"]:
        e = data["sync_error_ms"]
        lines.append(
            ("picture after spin start", f"median {e['p50']} ms, 5 to 95 % {e['p5']} to {e['p95']} ms")
        )
    return lines + [("note", note) for note in s.notes]


def _reasons(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [
        ("", f"{count} x {reason}") for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def split_of(group: str, val_fraction: float) -> str:
    """``train`` or ``val``, from the group's name alone: the same whatever else is converted, in any order."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return "val" if share < val_fraction else "train"


def write_summary(root: Path, summary: Summary, val_fraction: float, split: str = "") -> None:
    """Write ``summaries/DRIVE.json``, enter the drive into ``drives.json``, and write the split lists anew.

    Args:
        split: ``train`` or ``val`` for this drive; empty decides by its name.

    Raises:
        DataError: ``drives.json`` is damaged.
    """
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in summary.drive)
    path = root / "summaries" / f"{stem}.json"
    _write(path, json.dumps(as_dict(summary), indent=1))
    drives = read_drives(root)
    clips = sorted({*summary.clips, *summary.clips_there})
    drives[summary.drive] = {
        "split": split or split_of(summary.group or summary.drive, val_fraction),
        "clips": clips,
    }
    _write(root / _DRIVES, json.dumps(drives, indent=1))
    write_splits(root, drives)


def read_drives(root: Path) -> dict[str, dict[str, Any]]:
    """``drives.json``: drive -> its split and clips. Empty if there is none."""
    path = root / _DRIVES
    if not path.exists():
        return {}
    try:
        drives = json.loads(path.read_text())
        for entry in drives.values():
            assert entry["split"] in ("train", "val") and isinstance(entry["clips"], list)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(f"{path} is damaged ({error!r}); remove it and convert again") from error
    return drives


def write_splits(root: Path, drives: Mapping[str, Mapping[str, Any]]) -> None:
    """``train.lst`` and ``val.lst``, one clip a line. A drive is in one of them as a whole."""
    for name in ("train", "val"):
        clips: Iterable[Sequence[str]] = (e["clips"] for e in drives.values() if e["split"] == name)
        _write(root / f"{name}.lst", "".join(f"{clip}\n" for c in clips for clip in c))
