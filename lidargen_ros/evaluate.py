# SPDX-License-Identifier: Apache-2.0
"""``lidargen evaluate``: how good are generated sweeps, beside what needs no model at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .evaluate_sources import SweepPairs

ROWS = {
    "frames": ("frames", "d"),
    "MAE m": ("mae_m", ".3f"),
    "AbsRel": ("abs_rel", ".4f"),
    "δ<1.25": ("errors.delta_1", ".3f"),
    "return acc.": ("return_accuracy", ".4f"),
    "drop F1": ("returns.drop.f1", ".3f"),
    "Chamfer m": ("chamfer_m.mean", ".3f"),
    "median": ("chamfer_m.median", ".3f"),
    "F 0.5 m": ("chamfer.fscore_0.5m.mean", ".3f"),
    "√JSD": ("birds_eye.jsd_square_root", ".4f"),
    "bleeding": ("edge_bleeding_rate.generated", ".4f"),
}
"""Rows of the printed table: title -> (place in the report, format)."""


def evaluate(
    found: "SweepPairs",
    training_maps: "Sequence[NDArray] | None" = None,
    *,
    chamfer_queries: int | None = 20_000,
) -> dict[str, Any]:
    """Report of the generated sweeps and of every rung of the ladder, ready for JSON.

    Returns:
        ``drive_report`` with ``ladder`` {rung: its report}, ``sources`` (what was found), and where the
        source has what they need: ``temporal_chamfer`` of generated and true sweeps, ``calibration``,
        ``intensity``.
    """
    from .metrics.ladder import constant_map
    from .metrics.report import drive_report, ladder_report

    constant = constant_map(training_maps if training_maps else found.true)
    options: dict[str, Any] = {"chamfer_queries": chamfer_queries, "birds_eye": True}
    report = drive_report(
        found.pairs(),
        found.sensor,
        found.truth_sensor,
        constant,
        seen=found.seen,
        outside_neighbours=True,
        **options,
    )
    report["ladder"] = ladder_report(
        found.true,
        found.truth_sensor,
        constant=constant,
        training_maps=training_maps,
        tokenizer_maps=found.tokenizer if len(found.tokenizer) == len(found.true) else None,
        previous_maps=found.previous,
        **options,
    )
    report["baseline"] = "best constant map of " + (
        "the training sweeps" if training_maps else "these true sweeps"
    )
    report["sources"] = dict(found.counts)
    report |= _of_sequences(found, chamfer_queries)
    return report


def _of_sequences(found: "SweepPairs", chamfer_queries: int | None) -> dict[str, Any]:
    """Metrics that need poses, several samples or intensities."""
    import numpy as np

    from .metrics.calibration import sample_calibration
    from .metrics.chamfer import summarise
    from .metrics.intensity import intensity_errors
    from .metrics.temporal import temporal_chamfer
    from .sweep import Sweep

    extra: dict[str, Any] = {}
    shown = [
        np.where(g > 0 if r is None else (r if r.dtype == bool else r >= 0.5), g, 0)
        for g, r in zip(found.generated, found.returns, strict=True)
    ]
    if len(found.poses) == len(found.true) > 1:
        extra["temporal_chamfer"] = {
            side: summarise(
                temporal_chamfer([Sweep(m, of).points() for m in maps], found.poses, queries=chamfer_queries)
            )
            for side, maps, of in (
                ("generated", shown, found.sensor),
                ("true", found.true, found.truth_sensor),
            )
        }
    index, true = found.sensor.nearest_rays(found.truth_sensor), np.concatenate(found.true)
    if found.samples and len(found.samples) == len(found.true):
        samples = np.concatenate([s[(slice(None), *index)] for s in found.samples], axis=1)
        extra["calibration"] = sample_calibration(samples, true)
    if found.intensities and len(found.intensities) == len(found.true):
        generated, measured = zip(*found.intensities, strict=True)
        extra["intensity"] = intensity_errors(
            np.concatenate([i[index] for i in generated]),
            np.concatenate(measured),
            np.concatenate([m[index] > 0 for m in shown]),
            true > 0,
        )
    return extra


def ladder_table(report: dict[str, Any], name: str = "generated") -> Any:
    """``rich`` table: one column per predictor, the model last."""
    from rich.table import Table

    table = Table(
        title=f"{report['frames']} sweeps, ranges in {report['window_m'][0]:g} to {report['window_m'][1]:g} m"
    )
    table.add_column("")
    predictors = {**report["ladder"], name: report}
    for title, entries in predictors.items():
        table.add_column(title, justify="right", style="bold" if entries is report else "", overflow="fold")
    for title, (place, form) in ROWS.items():
        table.add_row(title, *(_cell(entries, place, form) for entries in predictors.values()))
    return table


def _cell(entries: dict[str, Any], place: str, form: str) -> str:
    value: Any = entries
    # names such as "fscore_0.5m" hold a point themselves
    for key in place.replace("0.5m", "0,5m").split("."):
        value = value.get(key.replace(",", ".")) if isinstance(value, dict) else None
    return "-" if value is None else format(value, form)


def register(app: Any) -> None:
    """Add ``evaluate`` to a typer application."""
    import typer

    @app.command("evaluate")
    def command(
        source: Annotated[
            Path,
            typer.Argument(
                help="Bag with generated and true topics, folder of npz pairs, or folder of a training run."
            ),
        ],
        generated: Annotated[
            str, typer.Option(help="Generated PointCloud2 or 32FC1 range image.")
        ] = "/lidar/points",
        truth: Annotated[str, typer.Option(help="True PointCloud2.")] = "/lidar_top/points",
        sensor: Annotated[
            str, typer.Option(help="Sensor of the generator: a name or a YAML file.")
        ] = "pandar128",
        truth_sensor: Annotated[str, typer.Option(help="True sensor; by default the generator's.")] = "",
        training: Annotated[
            Path | None,
            typer.Option(
                help="Folder of npz files whose `true` maps are the training sweeps for the ladder; a run has its own."
            ),
        ] = None,
        out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("evaluation.json"),
        tolerance: Annotated[
            float, typer.Option(help="Largest difference of stamps in a pair, seconds.")
        ] = 0.055,
        limit: Annotated[
            int, typer.Option(help="Compare at most so many pairs, evenly spread.", min=1)
        ] = 300,
        exact: Annotated[
            bool, typer.Option("--exact", help="Chamfer over all points instead of 20,000.")
        ] = False,
        odometry: Annotated[
            bool, typer.Option("--odometry", help="Also the drift of KISS-ICP on both; needs a bag.")
        ] = False,
    ) -> None:
        """Compare generated with true sweeps: errors, Chamfer, returns, histograms, beside predictors without
        a model.
        """
        import json

        from rich.console import Console
        from rich.progress import Progress

        from .errors import LidargenError
        from .evaluate_sources import pairs_from_bag, pairs_from_folder, place_of_pairs, true_maps_from_folder
        from .sensors import load_sensor

        console = Console()
        try:
            ours = load_sensor(sensor)
            theirs = load_sensor(truth_sensor) if truth_sensor else ours
            folder = place_of_pairs(source)
            if training is None and (folder / "training").is_dir():
                training = folder / "training"
            if folder.is_dir() and any(folder.glob("*.npz")):
                found = pairs_from_folder(folder, ours, theirs, limit)
            else:
                with Progress(console=console, transient=True) as progress:
                    task = progress.add_task(f"reading {source.name}", total=1.0)
                    found = pairs_from_bag(
                        source,
                        generated,
                        truth,
                        ours,
                        theirs,
                        tolerance_s=tolerance,
                        limit=limit,
                        progress=lambda share: progress.update(task, completed=share),
                    )
            library = None if training is None else true_maps_from_folder(training, limit)
            with console.status("comparing"):
                report = evaluate(found, library, chamfer_queries=None if exact else 20_000)
            if odometry:
                from .looking.moment import Bags, Wanted
                from .looking.odometry import bag_odometry

                with console.status("odometry"):
                    topics = Wanted(generated=generated, truth=truth)
                    report["odometry"] = bag_odometry(Bags([source], topics))
        except LidargenError as e:
            console.print(f"[red]error:[/red] {e}", soft_wrap=True, highlight=False)
            raise typer.Exit(1) from e
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        console.print(ladder_table(report, source.name))
        console.print(f"{out}: every form of every number, by range, row and visibility; see docs/metrics.md")
