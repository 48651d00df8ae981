# SPDX-License-Identifier: Apache-2.0
"""``lidargen info``: what is in a bag or a bundle, and whether it can be used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .contents import Contents


def info(
    path: Annotated[str, typer.Argument(help="A bag, or a model bundle (a folder, or a shipped name).")],
    frame: Annotated[str, typer.Option(help="Frame of the LiDAR, to which cameras need a transform.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say what is in a bag or a bundle, and whether it can be used."""
    import json

    from rich.console import Console

    from ..bundle import MANIFEST, SHIPPED
    from ..errors import DataError
    from .contents import look_into

    console = Console(soft_wrap=True, highlight=False)
    if any((folder / MANIFEST).is_file() for folder in (Path(path), SHIPPED / path)):
        about = about_bundle(path)
        if as_json:
            console.print_json(json.dumps(about))
            return
        for key, value in about.items():
            lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [value]
            for title, line in zip([key, *[""] * len(lines)], lines, strict=False):
                console.print(f"{title:12s} {line}", markup=False)
        return
    if not Path(path).exists():
        raise DataError(f"{path} is no bag and no bundle: there is nothing of that name; check the path")
    contents = look_into(path, frame)
    if as_json:
        console.print_json(json.dumps(about_bag(contents)))
    else:
        show_bag(console, contents)


def about_bundle(name: str) -> dict[str, Any]:
    """What a bundle is, after every file has been compared with its hash.

    Raises:
        BundleError: it is missing, incomplete or altered.
    """
    from ..bundle import load_bundle
    from ..engines.build_record import build_folders
    from ..engines.select import available_engines

    bundle = load_bundle(name)
    manifest = bundle.manifest
    built = [folder.name for folder in build_folders(bundle.path, bundle.name, bundle.digest)]
    size = sum((bundle.path / file).stat().st_size for file in manifest["files"])
    return {
        **{key: manifest.get(key, "") for key in ("name", "family", "version", "description", "licence")},
        "precision": manifest.get("precision", ""),
        "sensor": f"{bundle.sensor.name}, {bundle.sensor.rows} x {bundle.sensor.columns}, "
        f"{bundle.sensor.min_range_m:g} to {bundle.sensor.max_range_m:g} m",
        "rig": ", ".join(view.name for view in bundle.rig),
        "sampler": manifest.get("sampler", {}),
        "engines": ", ".join(built) or "none built for this bundle",
        "runs here": {name: why or "yes" for name, why in available_engines(bundle).items()},
        "files": f"{', '.join(manifest['files'])}: {size / 1e6:.1f} MB, every sha256 is right",
        "sha256": bundle.digest,
    }


def about_bag(contents: "Contents") -> dict[str, Any]:
    """Plain values: every topic with what it is, and what the bag can be used for."""
    return {
        "bag": str(contents.path),
        "seconds": round(contents.seconds, 3),
        "damage": contents.damage,
        "topics": {
            t.name: {
                "type": t.msgtype,
                "count": t.count,
                "what": contents.describe(t.name),
                "lacks": contents.lacks(t.name),
            }
            for t in contents.topics.values()
        },
        "uses": contents.uses(),
    }


def show_bag(console: "Console", contents: "Contents") -> None:
    """A table of the topics and the verdicts."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"{escape(str(contents.path))}: {contents.seconds:.1f} s, {len(contents.topics)} topics")
    if contents.damage:
        console.print(f"[red]damaged:[/red] {escape(contents.damage)}")
    table = Table()
    for title in ("topic", "type", "messages", "what it is"):
        table.add_column(title, justify="right" if title == "messages" else "left", overflow="fold")
    for topic in sorted(contents.topics.values(), key=lambda t: t.name):
        text = escape(contents.describe(topic.name))
        text += "".join(f"\n[yellow]lacks:[/yellow] {escape(line)}" for line in contents.lacks(topic.name))
        table.add_row(escape(topic.name), topic.msgtype.rpartition("/")[2], str(topic.count), text)
    console.print(table, soft_wrap=False)
    for use, reason in contents.uses().items():
        mark = "[red]no[/red] " if reason else "[green]yes[/green]"
        console.print(f"{mark} {use}{': ' + escape(reason) if reason else ''}")


def register(app: typer.Typer) -> None:
    """Add ``info`` to a command-line application."""
    app.command("info")(info)
