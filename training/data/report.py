# SPDX-License-Identifier: Apache-2.0
"""What people see while drives are converted or checked: a progress bar, then a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .convert import ConvertOptions, Summary, convert
from .drive import Drive
from .summary import describe

if TYPE_CHECKING:
    from .check import ClipReport

console = Console(stderr=True)


def run_drives(
    drives: Iterable[Drive], root: Path, options: ConvertOptions, quiet: bool = False
) -> Iterator[Summary]:
    """Convert drives one after the other, with a progress bar each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    for drive in drives:
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=quiet
        ) as bar:
            task = bar.add_task(drive.name, total=1.0)
            yield convert(drive, root, options, lambda share, t=task, b=bar: b.update(t, completed=share))


def print_summary(summary: Summary) -> None:
    """The summary as a table on standard output."""
    table = Table(title=f"drive {summary.drive}", show_header=False)
    for what, how_much in describe(summary):
        table.add_row(what, how_much)
    Console().print(table)


def print_check(reports: Sequence[ClipReport], clips: int) -> None:
    """Result of ``check`` as a table, then what is wrong, then totals."""
    from .check import histogram

    out = Console()
    table = Table("clip", "frames", "s", "m", "returns", "errors", "warnings")
    for r in reports:
        numbers = str(r.frames), f"{r.seconds:.1f}", f"{r.metres:.0f}", f"{r.returns:.0%}"
        table.add_row(r.clip, *numbers, str(len(r.errors)), str(len(r.warnings)))
    out.print(table)
    for r in reports:
        for words in r.errors:
            out.print(f"[red]error[/red] {r.clip}: {words}", highlight=False, soft_wrap=True)
        for words in r.warnings:
            out.print(f"[yellow]warning[/yellow] {r.clip}: {words}", highlight=False, soft_wrap=True)
        for camera, words in r.alignment.items():
            out.print(
                f"LiDAR on image edges, {r.clip[:8]} {camera}: {words}", highlight=False, soft_wrap=True
            )
    errors = [e for r in reports for e in r.sync_error_ms]
    if errors:
        out.print("picture after the start of its spin:")
        most = max(count for _, count in histogram(errors))
        for words, count in histogram(errors):
            out.print(f"  {words:>14} {count:7d} {'#' * round(40 * count / most)}", highlight=False)
    bad = [r for r in reports if r.errors]
    out.print(
        f"{len(reports)} of {clips} clips checked, {sum(r.frames for r in reports)} frames, {len(bad)} clips with "
        f"errors, {sum(bool(r.warnings) for r in reports)} with warnings"
    )
    if pictures := [r.picture for r in reports if r.picture]:
        out.print(f"pictures: {Path(pictures[0]).parent}", highlight=False, soft_wrap=True)
