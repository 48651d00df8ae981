# SPDX-License-Identifier: Apache-2.0
"""``lidargen odometry``: drift of KISS-ICP on the generated and on the true clouds of a drive."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..bags.pointclouds import cloud_from_message
from ..bags.transforms import FrameTree, add_tf, pose_matrix
from ..errors import DataError
from ..motion import interpolate_poses
from ..ros.messages import stamp_ns
from .contents import ODOMETRY, TF

if TYPE_CHECKING:
    from .contents import LidarTopic
    from .moment import Bags

_WORLD = ("odom", "map")
_ABOVE_GROUND_M = 0.5  # what is lower than this is left out as ground
_INSTANT_S = 1e-3  # clouds whose points lie closer in time need no compensation
COLUMNS = {
    "frames": ("frames", "d"),
    "path m": ("length_m", ".1f"),
    "end error m": ("end_m", ".2f"),
    "drift %": ("drift_percent", ".2f"),
    "end error °": ("end_deg", ".2f"),
    "ATE m": ("ate_rmse_m", ".3f"),
    "step m": ("step_rmse_m", ".3f"),
    "step °": ("step_rmse_deg", ".3f"),
}


def odometry(
    bags: Annotated[list[Path], typer.Argument(help="A bag, or several that belong together.")],
    generated: Annotated[str, typer.Option(help="Topic of generated clouds.")] = "",
    truth: Annotated[str, typer.Option(help="Topic of true clouds.")] = "",
    lidar_height: Annotated[float, typer.Option(help="Of the LiDAR above the ground, metres.")] = 1.9,
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("odometry.json"),
) -> None:
    """Run LiDAR odometry (KISS-ICP) over generated and true clouds and compare both with the recorded motion."""
    from rich.console import Console
    from rich.table import Table

    from .moment import Bags, Wanted

    report = bag_odometry(Bags(bags, Wanted(generated=generated, truth=truth)), lidar_height)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    table = Table(title=f"KISS-ICP over {report['seconds']:.1f} s of driving")
    for title in ("", *COLUMNS):
        table.add_column(title, justify="right" if title else "left")
    for name, figures in report["drift"].items():
        cells = ("-" if figures[k] is None else format(figures[k], f) for k, f in COLUMNS.values())
        table.add_row(name, *cells)
    Console().print(table)
    typer.echo(f"{out}: the report; see docs/metrics.md")


def bag_odometry(bags: "Bags", lidar_height: float = 1.9) -> dict[str, Any]:
    """``seconds`` of the drive, ``ground_m`` and ``drift``: ``odometry_report`` of the true and the generated clouds.

    Raises:
        DataError: no clouds, or the bags do not say how the vehicle moved. ConfigError: kiss-icp is not installed.
    """
    from ..metrics.odometry import SweepSequence, odometry_report

    sequences, seconds = {}, 0.0
    for name, pair in (("true", bags.truth), ("generated", bags.generated)):
        if pair is not None:
            stamps, clouds, times = _clouds(bags, pair[1])
            sequences[name] = SweepSequence(clouds, times, _poses(bags, pair[1].frame, stamps))
            seconds = max(seconds, float(np.ptp(stamps)) / 1e9)
    if not sequences:
        paths = ", ".join(str(c.path) for c in bags.contents)
        raise DataError(f"{paths}: no clouds that can be read; see lidargen info")
    ground_m = _ABOVE_GROUND_M - lidar_height
    return {"seconds": seconds, "ground_m": ground_m, "drift": odometry_report(sequences, ground_m)}


def _clouds(bags: "Bags", lidar: "LidarTopic") -> tuple[NDArray, list[NDArray], list[NDArray | None]]:
    """Stamps [K] ns, points and their times within the spin, by stamp."""
    found = []
    for message in bags.messages([lidar.topic]):
        cloud = cloud_from_message(message.decode(), lidar.topic)
        spun = cloud.time_s is not None and len(cloud) > 0 and float(np.ptp(cloud.time_s)) > _INSTANT_S
        found.append((cloud.stamp_ns, cloud.points, cloud.time_s if spun else None))
    if len(found) < 2:
        raise DataError(f"{lidar.topic} has {len(found)} clouds; odometry needs two or more")
    found.sort(key=lambda item: item[0])
    stamps, clouds, times = zip(*found, strict=True)
    return np.array(stamps, np.int64), list(clouds), list(times)


def _poses(bags: "Bags", frame: str, stamps: NDArray) -> NDArray:
    """True poses [K, 4, 4] of a frame at the stamps; the ends are held where the track is a little short."""
    tree, world = FrameTree(), ""
    moving = {t.name for c in bags.contents for t in c.topics.values() if t.msgtype in (*TF, ODOMETRY)}
    for message in bags.messages(moving):
        decoded = message.decode()
        if message.msgtype in TF:
            add_tf(tree, decoded.transforms, fixed=message.topic.endswith("tf_static"))
        else:
            world = world or decoded.header.frame_id.lstrip("/")
            pose = decoded.pose.pose
            matrix = pose_matrix(pose.position, pose.orientation, message.topic)
            tree.add_moving(decoded.header.frame_id, decoded.child_frame_id, stamp_ns(decoded.header), matrix)
    world = world or next((name for name in _WORLD if name in tree.frames), "")
    if not world:
        raise DataError(
            "the bags do not say how the vehicle moved: no Odometry, and no odom or map in /tf; give the bag of the "
            "drive as well"
        )
    times, poses = tree.track(frame, world)
    late = max(int(times[0] - stamps[0]), int(stamps[-1] - times[-1]), 0) / 1e9
    if late > 0.2:
        raise DataError(
            f"the recorded motion misses {late:.1f} s of the clouds; record /tf for all of the drive"
        )
    return interpolate_poses(np.clip(stamps, times[0], times[-1]), times, poses)


def register(app: typer.Typer) -> None:
    """Add ``odometry`` to a command-line application."""
    app.command("odometry")(odometry)
