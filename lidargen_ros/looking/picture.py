# SPDX-License-Identifier: Apache-2.0
"""``lidargen picture``: one moment of a bag as a picture of three rows."""

from pathlib import Path
from typing import Annotated, Any

import typer


def picture(
    bags: Annotated[list[Path], typer.Argument(help="A bag, or several that belong together.")],
    at: Annotated[
        float | None,
        typer.Option(help="Seconds after the start, or since 1970; default: the middle."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture to write, .jpg or .png.")] = Path("picture.jpg"),
    bundle: Annotated[str, typer.Option(help="Generate the sweep with this bundle, now.")] = "",
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Topic or prefix of a camera, once for each, in the order of the rig."),
    ] = None,
    rig: Annotated[str, typer.Option(help="Calibration: a name or a file; default: the bag's own.")] = "",
    frame: Annotated[str, typer.Option(help="Frame of the LiDAR; default: that of the cloud.")] = "",
    yaw: Annotated[
        float, typer.Option(help="Direction of travel in that frame, degrees from its x axis; nuScenes: 90.")
    ] = 0.0,
    generated: Annotated[str, typer.Option(help="Topic of generated clouds.")] = "",
    truth: Annotated[str, typer.Option(help="Topic of true clouds.")] = "",
    truth_sensor: Annotated[
        str,
        typer.Option(help="True sensor: a name or a file; default: lidar.yaml beside the bag, or fitted."),
    ] = "",
    width: Annotated[int, typer.Option(help="Of the picture, pixels.", min=320, max=8192)] = 1920,
) -> None:
    """Draw one moment: cameras with points, range maps, clouds from outside."""
    from ..viz import save_picture, three_row_picture
    from .moment import Bags, Wanted

    wanted = Wanted(tuple(camera or ()), rig, frame, generated, truth, truth_sensor, yaw)
    found = Bags(bags, wanted)
    generator: Any = None
    if bundle:
        from ..generator import LidarGenerator

        generator = LidarGenerator.from_bundle(bundle)
    moment = found.moment(at, own_rig=generator.rig if generator else None)
    for note in moment.notes:
        typer.echo(f"note: {note}", err=True)
    if generator is not None:
        if moment.rig is None:
            from ..errors import DataError

            raise DataError(f"{bags[0]} has no camera with a known place; give its calibration with --rig")
        moment.generated = generator(moment.images, moment.rig, stamp_ns=moment.stamp_ns)
    rgb = three_row_picture(moment.images, moment.rig, moment.generated, moment.truth, width)
    save_picture(out, rgb)
    typer.echo(f"{out}: {rgb.shape[1]} x {rgb.shape[0]}, at {moment.stamp_ns / 1e9:.3f} s")


def register(app: typer.Typer) -> None:
    """Add ``picture`` to a command-line application."""
    app.command("picture")(picture)
