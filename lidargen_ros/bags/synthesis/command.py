# SPDX-License-Identifier: Apache-2.0
"""``lidargen synthesize``: the options, the progress bars and the summary; see docs/synthesis.md."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .local import Crew
    from .options import Options

LOSSES, UNFINISHED, INTERRUPTED = 3, 4, 130
"""Exit codes beside 0 (all is well) and 1 (a bag failed, or nothing could be begun)."""
_LISTED = 5


class Engine(str, Enum):
    """Where slices are worked on."""

    local = "local"
    ray = "ray"


def synthesize(
    bags: Annotated[list[Path], typer.Argument(help="rosbag2 folders or files, ROS 1 .bag files.")],
    out: Annotated[
        Path, typer.Option(help="Folder that gets a bag for each; run again to go on after a stop.")
    ],
    bundle: Annotated[str, typer.Option(help="Model bundle: a shipped name or a folder.")] = "nano",
    checkpoint: Annotated[
        str, typer.Option(help="Weights of the published model, or their folder; in place of a bundle.")
    ] = "",
    mode: Annotated[str, typer.Option(help="Of the published model: corrected or reference.")] = "corrected",
    device: Annotated[str, typer.Option(help="Of the published model; default: the GPU.")] = "",
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="Topic or prefix of a camera, once for each in the order of the rig; the first leads."
        ),
    ] = None,
    rig: Annotated[str, typer.Option(help="Calibration: a name or a file; default: the model's own.")] = "",
    params: Annotated[Path | None, typer.Option(help="Parameter file of the node.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value of a parameter of the node, such as point_type=ouster."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; default: the model's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling noise.")] = None,
    outputs: Annotated[
        str, typer.Option(help="Topics to write, joined by commas.")
    ] = "points,range_image,intensity_image,metadata",
    namespace: Annotated[str, typer.Option(help="Before the names of the new topics.")] = "",
    merge: Annotated[bool, typer.Option("--merge", help="Write the messages of the bag as well.")] = False,
    slice_s: Annotated[
        float, typer.Option("--slice", help="Seconds of recording time per unit of work.")
    ] = 10.0,
    workers: Annotated[
        int, typer.Option(min=0, help="0 is up to four per GPU (published model: one), or one.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Per worker; 0 shares the cores among them.")] = 0,
    engine: Annotated[
        Engine, typer.Option(help="Workers on this machine, or on a Ray cluster.")
    ] = Engine.local,
    ray_address: Annotated[
        str, typer.Option(help="Of the cluster; default: RAY_ADDRESS, or this machine.")
    ] = "",
    inference_engine: Annotated[str, typer.Option(help="What runs the bundle's graphs.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Add LiDAR topics to recorded drives: bags with cameras in, bags with a LiDAR out."""
    from ...errors import LidargenError
    from ...ros.parameters import Settings
    from .options import Options, read_settings
    from .run import Run

    values = read_settings(params, assignments or [])
    values.update(
        (name, value)
        for name, value in {
            "bundle": _absolute(bundle),
            "engine": inference_engine,
            "threads": threads,
            **({"cameras": tuple(camera)} if camera else {}),
            **({"rig": rig} if rig else {}),
            **({"steps": steps} if steps is not None else {}),
            **({"seed": seed} if seed is not None else {}),
        }.items()
    )
    options = Options(
        settings=Settings().changed(values),
        checkpoint=_absolute(checkpoint),
        mode=mode,
        device=device,
        outputs=tuple(o.strip() for o in outputs.split(",") if o.strip()),
        namespace=namespace,
        merge=merge,
        slice_s=slice_s,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems stop a job with it
    # What libraries say while they work is no part of the summary: Ray tells of lost workers on stdout.
    with redirect_stdout(sys.stderr), _bars(not as_json) as (started, tell):
        crew = _crew(engine, options, workers, ray_address, tell)
        try:
            run = Run(bags, out, options, crew, started)
            run()
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            crew.close()
    content = {**run.total(), "bags_done": run.summaries}
    if run.stopped is None:
        try:
            (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
        except OSError as e:
            raise LidargenError(f"{out / 'summary.json'} cannot be written: {e.strerror or e}") from e
    print(json.dumps(content, indent=1) if as_json else "\n".join(_lines(content)))
    if run.stopped is not None:
        print(
            f"error: {run.stopped}; what is finished is kept, the same command goes on from here",
            file=sys.stderr,
        )
    if code := exit_code(content, run.stopped is not None):
        raise typer.Exit(code)


def exit_code(content: dict[str, Any], stopped: bool) -> int:
    """0 all is well; 1 a bag failed; 3 bags were made, with frames that failed or a damaged input; 4 not finished."""
    if stopped:
        return UNFINISHED
    if content["failed"]:
        return 1
    return LOSSES if content["failed_frames"] or content["damaged"] else 0


def _absolute(name: str) -> str:
    """A path as workers in other folders understand it; names of shipped things stay."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _crew(engine: Engine, options: "Options", workers: int, address: str, tell: Any) -> "Crew":
    if engine is Engine.ray:
        from .cluster import RayCrew

        return RayCrew(options, workers, tell, address)
    from .local import local_crew

    return local_crew(options, workers, tell)


@contextmanager
def _bars(shown: bool) -> Iterator[tuple[Any, Any]]:
    """A bar for each bag in progress and one for all of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        whole = bars.add_task("all bags", total=0)
        tasks: dict[str, Any] = {}

        def started(name: str, frames: int, done: int) -> None:
            tasks[name] = bars.add_task(name, total=frames, completed=done)
            total = (bars.tasks[0].total or 0) + frames
            bars.update(whole, total=total, completed=bars.tasks[0].completed + done)

        def tell(name: str) -> None:
            bars.advance(tasks[name])
            bars.advance(whole)
            if bars.tasks[tasks[name]].finished:
                bars.update(tasks[name], visible=False)

        yield started, tell


def _lines(content: dict[str, Any]) -> Iterator[str]:
    """The summary as text."""
    for bag in content["bags_done"]:
        if "frames_in" not in bag:
            yield f"{bag['bag']}: {bag['state']}: {bag['error']}"
            continue
        yield (
            f"{bag['out']}: {bag['state']}; {bag['sweeps_out']} sweeps of {bag['frames_in']} frames, "
            f"{bag['seconds']:.1f} s, {bag['frames_per_second']:.2f} frames/s"
        )
        for key in ("error", "damage"):
            if bag.get(key):
                yield f"  {key}: {bag[key]}"
        yield from (f"  unmatched: {count} {reason}" for reason, count in bag["unmatched"].items())
        for failure in bag["failed"][:_LISTED]:
            yield f"  failed: frame of {failure['stamp_ns'] / 1e9:.9f}: {failure['reason']}"
        if (more := len(bag["failed"]) - _LISTED) > 0:
            yield f"  failed: {more} more, in the bag's synthesis.json"
        yield from (f"  note: {note}" for note in bag["notes"])
    if content["bags"] > 1:
        yield (
            f"{content['bags']} bags: {content['made']} made, {content['there already']} there already, "
            f"{content['failed']} failed; {content['sweeps_out']} sweeps of {content['frames_in']} frames in "
            f"{content['seconds']:.1f} s"
        )


def register(app: typer.Typer) -> None:
    """Add ``synthesize`` to a command-line application."""
    app.command("synthesize")(synthesize)
