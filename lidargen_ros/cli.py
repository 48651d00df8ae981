# SPDX-License-Identifier: Apache-2.0
"""``lidargen``: the command line. Each command lives beside what it runs and imports it only when called."""

from __future__ import annotations

import sys

import typer

from . import bench, demo, evaluate, generate, sensor_fit
from .errors import LidargenError
from .models import download

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A LiDAR for vehicles that only have cameras.",
)
for module in (bench, demo, generate, download, evaluate, sensor_fit):
    module.register(app)


@app.command("info")
def info(bundle: str) -> None:
    """Say what a model bundle is, after comparing every file with its hash."""
    from .bundle import load_bundle

    loaded = load_bundle(bundle)
    for key in ("name", "family", "version", "description", "precision", "licence"):
        typer.echo(f"{key:12s} {loaded.manifest.get(key, '')}")
    typer.echo(f"{'sensor':12s} {loaded.sensor.name}, {loaded.sensor.rows} x {loaded.sensor.columns}")
    typer.echo(f"{'rig':12s} {', '.join(view.name for view in loaded.rig)}")
    typer.echo(f"{'files':12s} {', '.join(loaded.manifest['files'])}; every hash is right")


def main() -> None:
    try:
        app()
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
