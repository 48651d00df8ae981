# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data.from_folder nuscenes PATH --out DATASET``: public data sets to clips."""

from pathlib import Path
from typing import Annotated

import typer


def main(
    source: Annotated[
        str, typer.Argument(help="kitti_raw, nuscenes or pandaset: a file in training/data/sources")
    ],
    path: Annotated[Path, typer.Argument(help="folder of the data set, as downloaded")],
    out: Annotated[Path, typer.Option(help="data set to write; added to if there")],
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="THEIRS or THEIRS=OURS, once per camera, the reference first; default: three of theirs"
        ),
    ] = None,
    sensor: Annotated[
        str, typer.Option(help="LiDAR, a name or a YAML file; empty: as the loader tells")
    ] = "",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the options of clips")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="share of drives that goes to val.lst", min=0, max=1)
    ] = 0.1,
    strict: Annotated[bool, typer.Option(help="stop at the first item that cannot be used")] = False,
) -> None:
    """Convert nuScenes, PandaSet or KITTI raw into the clip format. Run it again to go on after a stop."""
    from dataclasses import asdict

    from lidargen_ros.errors import LidargenError
    from training.config import build, merge, parse_overrides

    from .convert import ConvertOptions
    from .report import console, print_summary, run_drives
    from .sources import folder_drives
    from .summary import write_summary

    written = False
    try:
        drives, defaults = folder_drives(source, path, camera or (), sensor)
        values = merge({**asdict(ConvertOptions()), **defaults}, parse_overrides(override or []))
        options = build(ConvertOptions, {**values, "strict": strict})
        for summary in run_drives(drives, out, options):
            write_summary(out, summary, val_fraction)
            print_summary(summary)
            written |= bool(summary.clips or summary.clips_there)
    except LidargenError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if not written:
        console.print("[red]error:[/red] no clip was written; the summary says why")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
