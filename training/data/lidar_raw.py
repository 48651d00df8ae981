# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data.lidar_raw DATASET --out CLIPS``: raw spins of RDS-HQ (``lidar_raw/CLIP.tar``) to range maps.

RDS-HQ is the layout of the Cosmos-Drive-Dreams data: points of each spin compensated to its start, with firing
row and column. Pictures, poses and intrinsics are in the clip format already and are linked or copied.
"""

import os
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from lidargen_ros.bags.archives import MIB, parse_npz
from lidargen_ros.bags.clip_metadata import check_clip_name, check_poses
from lidargen_ros.bags.clip_tars import ClipTar
from lidargen_ros.bags.clips import read_sensor
from lidargen_ros.errors import DataError, LidargenError
from lidargen_ros.motion import column_fractions, spin_motion, uncompensate
from lidargen_ros.projection import points_to_range_map
from lidargen_ros.sensors import Sensor

from .clips_writer import ClipWriter
from .drive import Track

_FIELD = "lidar_raw.npz"
_MAX_SPIN_BYTES = 128 * MIB


@dataclass(frozen=True)
class RawSpin:
    """One member of ``lidar_raw``: points [N, 3] float32 at the start of the spin, firing row and column [N]."""

    frame: int
    start_us: int
    pose: NDArray  # [4, 4] float32 LiDAR-to-world at the start
    points: NDArray
    intensity: NDArray
    row: NDArray
    column: NDArray


def read_raw_spin(tar: ClipTar, frame: int, sensor: Sensor) -> RawSpin:
    """One raw spin; points fired outside the sensor's rows and columns are left out.

    Raises:
        DataError: missing keys (a spin with xyz and a pose alone serves rendering only), wrong shapes, NaN.
    """
    key = f"{frame:06d}.{_FIELD}"
    where = tar.where(key)
    arrays = parse_npz(tar.read(key, _MAX_SPIN_BYTES), where, _MAX_SPIN_BYTES)
    if (
        missing := {"xyz", "intensity", "row", "column", "lidar_to_world", "starting_timestamp"}
        - arrays.keys()
    ):
        raise DataError(f"{where}: lacks {', '.join(sorted(missing))}; this converter needs them")
    count = len(arrays["xyz"]) if arrays["xyz"].ndim == 2 else -1
    if arrays["xyz"].shape != (count, 3) or any(
        arrays[k].shape != (count,) for k in ("intensity", "row", "column")
    ):
        raise DataError(f"{where}: xyz {arrays['xyz'].shape} and the lists beside it do not fit together")
    if arrays["starting_timestamp"].size != 1 or any(a.dtype.kind not in "fiu" for a in arrays.values()):
        raise DataError(f"{where}: expected numbers, and one starting_timestamp")
    inside = (arrays["row"] >= 0) & (arrays["row"] < sensor.rows)
    inside &= (arrays["column"] >= 0) & (arrays["column"] < sensor.columns)
    points = arrays["xyz"][inside].astype(np.float32)
    if not np.isfinite(points).all():
        raise DataError(f"{where}: NaN or infinite points")
    return RawSpin(
        frame,
        int(arrays["starting_timestamp"].item()),
        check_poses(arrays["lidar_to_world"].astype(np.float32), where),
        points,
        arrays["intensity"][inside].astype(np.float32),
        arrays["row"][inside].astype(np.int64),
        arrays["column"][inside].astype(np.int64),
    )


def to_range_map(
    spin: RawSpin, end: NDArray, sensor: Sensor, reference: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """Range map and intensity [rows, columns], and the points [N, 3] each at its own time.

    Args:
        end: [4, 4] LiDAR-to-world at the end of the spin.
        reference: as the published converter: rows by elevation, its time ramp and its order of motions.
    """
    fractions = column_fractions(spin.column, sensor.columns, reference=reference)
    points = uncompensate(spin.points, fractions, spin_motion(spin.pose, end), reference=reference)
    rows = None if reference else spin.row
    return *points_to_range_map(points, sensor, spin.intensity, rows, reference=reference), points


def convert_clip(root: Path, out: Path, clip: str, reference: bool = False) -> tuple[int, list[str]]:
    """Write ``lidar``, ``metadata`` and the calibration of one clip; link or copy its other files.

    The last spin is kept: it ends after the usual time, where the motion so far leads (``reference`` drops it).

    Returns:
        number of spins written, and what was left out and why.

    Raises:
        DataError: nothing usable in the clip, or a damaged member; names both.
    """
    path = root / "lidar_raw" / f"{check_clip_name(clip)}.tar"
    tar = ClipTar(path)
    try:
        if tar.clip != clip:
            raise DataError(
                f"{path}: holds clip {tar.clip or 'nothing'}; its name and its content must agree"
            )
        sensor = read_sensor(root, clip)
        starts = [
            (s.frame, s.start_us, s.pose)
            for s in (read_raw_spin(tar, f, sensor) for f in tar.frames([_FIELD]))
        ]
        if len(starts) < 2:
            raise DataError(f"{path}: {len(starts)} spins; at least two are needed")
        ends, left_out = _ends(starts, reference)
        with ClipWriter(out, clip, sensor, {}) as writer:
            for (frame, start, pose), after in zip(starts, ends, strict=True):
                if after is not None:
                    end_us, end = after
                    spin = read_raw_spin(tar, frame, sensor)
                    ranges, intensity, _ = to_range_map(spin, end, sensor, reference)
                    writer.add_spin(frame, ranges, np.stack([pose, end]), (start, end_us), intensity)
            _link_others(root, out, clip)
            writer.finish()
            return writer.spins, left_out
    finally:
        tar.close()


def _ends(
    starts: list[tuple[int, int, NDArray]], reference: bool
) -> tuple[list[tuple[int, NDArray] | None], list[str]]:
    """End time and pose of each spin: the start of the next; None for a spin that cannot have one."""
    ends: list[tuple[int, NDArray] | None] = []
    left_out = []
    for (frame, start, _), (_, next_start, next_pose) in pairwise(starts):
        if next_start > start:
            ends.append((next_start, next_pose))
        else:
            ends.append(None)
            left_out.append(f"frame {frame:06d}: the next spin does not start later")
    rising = [starts[0]]
    for entry in starts[1:]:
        if entry[1] > rising[-1][1]:
            rising.append(entry)
    if reference or len(rising) < 2 or rising[-1] is not starts[-1]:
        ends.append(None)
        left_out.append(f"frame {starts[-1][0]:06d}: last spin, its end is not known")
    else:
        times = np.array([start for _, start, _ in rising])
        period = round(float(np.median(np.diff(times))))
        track = Track(times, np.stack([pose for *_, pose in rising]), extend_us=period)
        ends.append((int(times[-1]) + period, track.at([times[-1] + period])[0].astype(np.float32)))
    return ends, left_out


def _link_others(root: Path, out: Path, clip: str) -> None:
    """Pictures, poses and intrinsics are what they must be already."""
    if root.resolve() == out.resolve():
        return
    folders = [p for p in root.iterdir() if p.name in ("pose", "hdmap") or p.name.startswith("ftheta_")]
    for folder in folders:
        for file in (folder / f"{clip}.{suffix}" for suffix in ("tar", "mp4")):
            if file.is_file():
                target = out / folder.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                try:
                    os.link(file, target)
                except OSError:  # another file system
                    shutil.copyfile(file, target)


def main(
    dataset: Annotated[Path, typer.Argument(help="folder with lidar_raw/")],
    out: Annotated[Path, typer.Option(help="data set to write; may be the same folder")],
    reference: Annotated[
        bool, typer.Option(help="exactly as the published converter, last spin lost")
    ] = False,
    strict: Annotated[bool, typer.Option(help="stop at the first clip that fails")] = False,
) -> None:
    """Make range maps of the raw spins of RDS-HQ. Clips that are there already are left alone."""
    from rich.progress import track

    from .report import console

    clips = sorted(path.stem for path in (dataset / "lidar_raw").glob("*.tar"))
    failed = 0
    for clip in track(clips, "converting", console=console):
        if (out / "metadata" / f"{clip}.npz").exists():
            continue
        try:
            spins, left_out = convert_clip(dataset, out, clip, reference)
            console.print(f"{clip}: {spins} spins", *left_out, sep="; ", highlight=False, soft_wrap=True)
        except LidargenError as error:
            failed += 1
            console.print(f"[red]failed:[/red] {error}", highlight=False, soft_wrap=True)
            if strict:
                break
    console.print(f"{len(clips)} clips, {failed} failed")
    if failed or not clips:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
