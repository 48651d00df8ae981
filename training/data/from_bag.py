# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data.from_bag BAG... --config my.yaml --out DATASET``: rosbags to clips."""

import json
from pathlib import Path
from typing import Annotated

import typer


def main(
    bags: Annotated[
        list[Path], typer.Argument(help="rosbag2 folders or files, ROS 1 .bag files; each is a drive")
    ],
    config: Annotated[Path, typer.Option(help="YAML; start from config/from_bag.yaml")],
    out: Annotated[Path, typer.Option(help="data set; made if absent, added to if there")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the configuration, e.g. clips.max_width=640"),
    ] = None,
    split: Annotated[str, typer.Option(help="train or val for all these bags; empty: by their names")] = "",
    strict: Annotated[bool, typer.Option(help="stop at the first item that cannot be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Convert rosbags with a LiDAR, cameras and motion into the clip format. Run it again to go on after a stop."""
    from lidargen_ros.errors import ConfigError, LidargenError

    from .bag_config import load_bag_config
    from .convert import Summary
    from .report import console, print_summary, run_drives
    from .sources.bag import drives
    from .summary import as_dict, write_summary

    summaries: list[Summary] = []
    try:
        if split not in ("", "train", "val"):
            raise ConfigError(f"--split is {split!r}; use train or val")
        settings = load_bag_config(config, [*(override or []), *(["clips.strict=true"] if strict else [])])
        for bag in bags:
            for summary in run_drives(drives(bag, settings), out, settings.clips, quiet=as_json):
                write_summary(out, summary, settings.val_fraction, split)
                summaries.append(summary)
                if not as_json:
                    print_summary(summary)
    except LidargenError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps([as_dict(summary) for summary in summaries], indent=1))
    if not any(summary.clips or summary.clips_there for summary in summaries):
        console.print("[red]error:[/red] no clip was written; the summary says why")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
