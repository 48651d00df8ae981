# SPDX-License-Identifier: Apache-2.0
"""``lidargen``: the command line. Each command lives beside what it runs and imports it only when called."""

from __future__ import annotations

import sys

import typer

from . import bench, demo, evaluate, generate, sensor_fit
from .bags.synthesis import command as synthesize
from .errors import LidargenError
from .looking import info, odometry, picture, view
from .models import download

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A LiDAR for vehicles that only have cameras.",
)
for module in (
    bench,
    demo,
    generate,
    synthesize,
    download,
    evaluate,
    sensor_fit,
    info,
    picture,
    view,
    odometry,
):
    module.register(app)


def main() -> None:
    try:
        app()
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
