# SPDX-License-Identifier: Apache-2.0
"""``lidargen view``: bags in Rerun where it is installed, else as a file for Foxglove."""

from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


class Viewer(str, Enum):
    """What shows the bag."""

    auto = "auto"
    rerun = "rerun"
    foxglove = "foxglove"


def view(
    bags: Annotated[list[Path], typer.Argument(help="A bag, or several that belong together.")],
    viewer: Annotated[
        Viewer, typer.Option("--with", help="auto: Rerun where it is installed.")
    ] = Viewer.auto,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the MCAP, or .rrd file instead of a window.")
    ] = None,
    rig: Annotated[str, typer.Option(help="Calibration: a name or a file; default: the bag's own.")] = "",
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Topic or prefix of a camera, once for each, in the order of the rig."),
    ] = None,
    frame: Annotated[str, typer.Option(help="Frame of the LiDAR; default: that of the cloud.")] = "",
) -> None:
    """Show clouds and pictures: opens Rerun, or writes an MCAP for Foxglove and says how to open it."""
    from ..errors import ConfigError
    from .moment import Bags, Wanted

    if viewer is Viewer.auto:
        viewer = Viewer.rerun if find_spec("rerun") else Viewer.foxglove
    if viewer is Viewer.rerun and not find_spec("rerun"):
        raise ConfigError("Rerun is not installed; pip install 'lidargen_ros[view]', or use --with foxglove")
    found = Bags(bags, Wanted(tuple(camera or ()), rig, frame))
    moment = found.moment()
    if viewer is Viewer.rerun:
        from .rerun_view import log_bags

        count = log_bags(found, moment, out)
        for note in moment.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(
            f"{count} messages in {f'{out}; open it with: rerun {out}' if out else 'the Rerun window'}"
        )
        return
    from .foxglove import write_mcap

    mcap, layout, notes = write_mcap(found, out or Path(f"{bags[0].resolve().stem}_view"), moment)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(
        f"{mcap}: {mcap.stat().st_size / 1e6:.1f} MB\n"
        f"Open Foxglove (https://foxglove.dev), choose 'Open local file' and {mcap.name}; then import\n"
        f"{layout} in the menu of layouts ('Import from file')."
    )


def register(app: typer.Typer) -> None:
    """Add ``view`` to a command-line application."""
    app.command("view")(view)
