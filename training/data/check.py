# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data.check DATASET``: what is wrong with a data set, clip by clip, and a picture of each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from lidargen_ros.bags.archives import MIB, parse_npz
from lidargen_ros.bags.clips import PUBLISHED_VIEWS, ClipReader, list_clips
from lidargen_ros.cameras.rig import Rig
from lidargen_ros.errors import LidargenError
from lidargen_ros.pictures import draw_points, range_picture, save_picture

from .alignment import Alignment, edge_points, spin_points

_FASTEST_MPS = 70.0
_STEP_M = 0.2  # between the end pose of a spin and the start pose of the next
_LEAST_RETURNS = 0.05
_BINS_MS = np.array([-np.inf, -50, -20, -10, -5, -2, 2, 5, 10, 20, 50, np.inf])


@dataclass
class ClipReport:
    """What was found. ``errors`` make a clip or a part of it unusable, ``warnings`` are worth a look."""

    clip: str
    frames: int = 0
    seconds: float = 0.0
    returns: float = 0.0  # share of rays with a return
    metres: float = 0.0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    alignment: dict[str, str] = field(default_factory=dict)
    sync_error_ms: list[float] = field(default_factory=list)
    picture: str = ""


def check_clip(
    root: Path, clip: str, cameras: Sequence[str], frames: int, pictures: Path | None = None
) -> ClipReport:
    """Check one clip, reading ``frames`` of its frames (0: all) in full."""
    report = ClipReport(clip)
    try:
        with ClipReader(root, clip, cameras) as reader:
            _check_metadata(reader, report)
            _check_sync(root, reader, report)
            _check_frames(reader, report, frames, pictures)
    except LidargenError as error:
        report.errors.append(str(error))
    return report


def _check_metadata(reader: ClipReader, report: ClipReport) -> None:
    report.frames = len(reader.frames)
    for place, names in reader.missing.items():
        report.warnings.append(
            f"{len(names)} frames absent from {place}: {', '.join(names[:5])}"
            f"{' ...' if len(names) > 5 else ''}"
        )
    times, poses = reader.metadata.times_us, reader.metadata.poses.astype(np.float64)
    report.seconds = float(times[-1, 1] - times[0, 0]) / 1e6
    travel = np.linalg.norm(poses[:, 1, :3, 3] - poses[:, 0, :3, 3], axis=1)
    report.metres = float(travel.sum())
    speed = travel / ((times[:, 1] - times[:, 0]) / 1e6)
    if (speed > _FASTEST_MPS).any():
        report.errors.append(f"{(speed > _FASTEST_MPS).sum()} spins move at up to {speed.max():.0f} m/s")
    if len(times) < 2:
        return
    period = float(np.median(times[:, 1] - times[:, 0]))
    pauses = times[1:, 0] - times[:-1, 1]
    if (gaps := np.flatnonzero(pauses > 0.5 * period)).size:
        missing = int(np.rint(pauses[gaps] / period).sum())
        report.warnings.append(
            f"{gaps.size} gaps, about {missing} spins missing; the first after frame "
            f"{reader.metadata.frames[gaps[0]]}"
        )
    if (pauses < -0.5 * period).any():
        report.errors.append(
            f"{(pauses < -0.5 * period).sum()} spins begin before the one ahead of them ends"
        )
    joined = np.abs(pauses) < 0.1 * period
    steps = np.linalg.norm(poses[1:, 0, :3, 3] - poses[:-1, 1, :3, 3], axis=1)[joined]
    if (steps > _STEP_M).any():
        report.warnings.append(f"the pose jumps by up to {steps.max():.2f} m from one spin to the next")


def _check_sync(root: Path, reader: ClipReader, report: ClipReport) -> None:
    """Picture time minus start of the spin; where pictures have no times, their number over the frame rate."""
    path = root / "image_times" / f"{reader.clip}.npz"
    starts = np.array([reader.times_us(name)[0] for name in reader.frames])
    numbers = np.array([int(name) for name in reader.frames])
    if path.is_file():
        for camera, stamps in parse_npz(path, str(path), 16 * MIB).items():
            if camera in reader.cameras and stamps.dtype.kind in "iu" and numbers.max() < len(stamps):
                known = stamps[numbers] >= 0
                report.sync_error_ms += ((stamps[numbers] - starts)[known] / 1000).tolist()
    elif reader.cameras:
        fps = reader.fps or 30.0
        nominal = (numbers - numbers[0]) / fps * 1e6
        report.sync_error_ms = ((nominal - (starts - starts[0])) / 1000).tolist()
    worst = max((abs(e) for e in report.sync_error_ms), default=0.0)
    if worst > 60:
        report.warnings.append(f"a picture and its spin are {worst:.0f} ms apart")


def _check_frames(reader: ClipReader, report: ClipReport, frames: int, pictures: Path | None) -> None:
    count = len(reader.frames)
    chosen = range(count) if frames <= 0 else sorted({round(i) for i in np.linspace(0, count - 1, frames)})
    scores = {camera: Alignment.empty() for camera in reader.cameras}
    shares, shown = [], False
    for index in chosen:
        name = reader.frames[index]
        try:
            range_map = reader.range_map(name)
            reader.intensity(name)
            images = [reader.image(name, camera) for camera in reader.cameras]
            rig = reader.rig(name) if reader.cameras else None
        except LidargenError as error:
            report.errors.append(str(error))
            continue
        shares.append(float((range_map > 0).mean()))
        points = spin_points(range_map, reader.sensor, reader.motion(name))
        outlines = edge_points(range_map, reader.sensor, reader.motion(name))
        for image, view in zip(images, rig or (), strict=True):
            scores[view.name].add(image, view, outlines)
        if pictures is not None and not shown and index >= chosen[len(chosen) // 2]:
            shown = True
            report.picture = str(
                save_picture(pictures / f"{reader.clip}.jpg", _picture(images, rig, range_map, points))
            )
    if shares:
        report.returns = float(np.mean(shares))
        if min(shares) < _LEAST_RETURNS:
            report.warnings.append(f"a spin has returns on {min(shares):.1%} of its rays only")
    for camera, score in scores.items():
        verdict, words = score.verdict()
        report.alignment[camera] = f"{verdict}: {words}"
        if verdict == "doubtful":
            report.warnings.append(f"{camera}: {words}; check its extrinsics and its stamps")


def _picture(images: Sequence[NDArray], rig: Rig | None, range_map: NDArray, points: NDArray) -> NDArray:
    """Cameras from left to right with the points drawn in, above the range map."""
    width, rows = 1920, []
    if rig is not None:
        # Columns of the range map begin straight back and go clockwise: sort the cameras likewise.
        ahead = [np.arctan2(*view.camera_to_lidar[[1, 0], 2]) for view in rig]
        drawn = [draw_points(images[i], rig.views[i], points) for i in np.argsort(ahead)[::-1]]
        height = round(width / sum(image.shape[1] / image.shape[0] for image in drawn))
        strips = [cv2.resize(i, (round(i.shape[1] * height / i.shape[0]), height)) for i in drawn]
        rows.append(cv2.resize(np.concatenate(strips, axis=1), (width, height)))
    rows.append(range_picture(range_map, width, max(128, range_map.shape[0] * 2)))
    return np.concatenate(rows)


def histogram(errors_ms: Sequence[float]) -> list[tuple[str, int]]:
    """Sync errors in bins, as (words, count)."""
    counts = np.histogram(errors_ms, _BINS_MS)[0]
    words = [
        "below -50 ms",
        *(f"{a:.0f} to {b:.0f} ms" for a, b in pairwise(_BINS_MS[1:-1])),
        "above 50 ms",
    ]
    return [(w, int(c)) for w, c in zip(words, counts, strict=True)]


def main(
    dataset: Annotated[Path, typer.Argument(help="root folder of the data set")],
    split: Annotated[Path | None, typer.Option(help="check these clips only: a list, one a line")] = None,
    cameras: Annotated[str, typer.Option(help="comma-separated; 'none' checks LiDAR alone")] = ",".join(
        PUBLISHED_VIEWS
    ),
    frames: Annotated[int, typer.Option(help="frames read in full per clip; 0 reads all")] = 8,
    pictures: Annotated[
        Path | None, typer.Option(help="folder for a picture per clip; default DATASET/check")
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures")] = False,
    strict: Annotated[
        bool, typer.Option(help="stop at the first clip with an error; warnings fail as well")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Check a data set. Exit code 1 if anything is wrong with it."""
    from rich.progress import track

    from .report import console, print_check

    names = () if cameras == "none" else tuple(name.strip() for name in cameras.split(","))
    folder = None if no_pictures else (pictures or dataset / "check")
    reports: list[ClipReport] = []
    try:
        clips = list_clips(dataset, split)
    except LidargenError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    for clip in track(clips, "checking", console=console, disable=as_json):
        reports.append(check_clip(dataset, clip, names, frames, folder))
        if strict and reports[-1].errors:
            break
    if as_json:
        print(json.dumps([_plain(report) for report in reports], indent=1))
    else:
        print_check(reports, len(clips))
    if any(report.errors or (strict and report.warnings) for report in reports):
        raise typer.Exit(1)


def _plain(report: ClipReport) -> dict[str, Any]:
    return {**asdict(report), "sync_error_ms": [round(e, 3) for e in report.sync_error_ms]}


if __name__ == "__main__":
    typer.run(main)
