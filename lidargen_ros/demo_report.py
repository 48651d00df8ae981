# SPDX-License-Identifier: Apache-2.0
"""What the demo says about itself: frames and times from the processes' books, errors against the drive's LiDAR."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bags.pointclouds import cloud_from_message
from .bags.reader import BagReader
from .cameras import load_rig
from .errors import DataError
from .metrics.report import drive_report
from .projection import points_to_range_map
from .ros.messages import picture_to_rgb, stamp_ns
from .ros.parameters import Settings
from .sensors import Sensor, load_sensor
from .sweep import Sweep
from .viz import save_picture, three_row_picture

if TYPE_CHECKING:
    from .demo import Drive

TRUTH_TOPIC = "/lidar/points"
_SAME_MOMENT_NS = 55_000_000  # half the spacing at 10 Hz, and some


@dataclass(frozen=True)
class Pair:
    """A generated sweep and the true one of the same moment."""

    generated: Sweep
    true: Sweep


def make_report(
    drive: "Drive", recorded: Path, played: dict[str, Any], sweeps: list[tuple[int, int]]
) -> tuple[dict[str, Any], Pair]:
    """The report, and the pair in the middle of the drive for the picture.

    Args:
        recorded: rosbag2 folder of the recorder.
        played: report of the player, with the node's books.
        sweeps: (stamp, time of publication) of each recorded sweep, nanoseconds.

    Raises:
        DataError: nothing was recorded, or nothing of it fits the drive's LiDAR.
    """
    pairs, points = _pairs(recorded, drive)
    books, model = played["node"], played["node"]["model"]
    played_at = {int(k): v for k, v in played["played_at_ns"].items()}
    latency = [(published - played_at[stamp]) / 1e6 for stamp, published in sweeps if stamp in played_at]
    frames, out = played["frames"], len(points)
    elsewhere = {
        "lost_before_the_node": frames - books["frames_in"],
        # What was still in flight when the books were closed has been recorded since, or is lost as well.
        "lost_after_the_node": books["sweeps_out"] + books["in_flight"] - out,
    }
    reasons = {**books["dropped_by_reason"], **{k: v for k, v in elsewhere.items() if v}}
    truth_sensor = pairs[0].true.sensor
    errors = drive_report(_on_shared_rays(pairs), truth_sensor, truth_sensor)
    seconds = (sweeps[-1][1] - sweeps[0][1]) / 1e9 if len(sweeps) > 1 else 0.0
    report = {
        "frames_in": frames,
        "sweeps_out": out,
        "dropped": sum(reasons.values()),
        "dropped_by_reason": reasons,
        "frames_in_drive": played["in_bag"],
        "rate_hz": round((len(sweeps) - 1) / seconds, 3) if seconds else 0.0,
        "latency_ms": {f"p{p}": round(float(np.percentile(latency, p)), 1) for p in (50, 95, 99)},
        "points_mean": round(float(np.mean(points)), 1),
        **{k: errors[k] for k in ("mae_m", "abs_rel", "return_accuracy", "baseline_mae_m")},
        "chamfer_m": {k: errors["chamfer_m"][k] for k in ("mean", "median")},
        "sweeps_compared": len(pairs),
        "model": model["model"],
        "engine": model["engine"],
        "machine": model["machine"],
        "stages_ms": books["stages_ms"],
        "held_s": played["held_s"],
    }
    return report, pairs[len(pairs) // 2]


def _on_shared_rays(pairs: list[Pair]) -> list[tuple[NDArray, None, NDArray]]:
    """Generated and true maps on the true sensor's grid, rays outside the generator's view left out.

    The drive's LiDAR may be much thinner than the generated one: compared cloud by cloud, the Chamfer distance would
    measure that.
    """
    sensor, truth_sensor = pairs[0].generated.sensor, pairs[0].true.sensor
    rays, covered = sensor.nearest_rays(truth_sensor), sensor.covers(truth_sensor)
    return [(p.generated.range_map[rays] * covered, None, p.true.range_map * covered) for p in pairs]


def _pairs(recorded: Path, drive: "Drive") -> tuple[list[Pair], list[int]]:
    """Every recorded sweep beside the true one nearest in time; and the number of points of each recorded cloud."""
    truth_sensor = load_sensor(drive.lidar)
    truths = _truths(drive.bag, truth_sensor)
    pairs: list[Pair] = []
    points: list[int] = []
    stamps = np.array(sorted(truths))
    with BagReader(recorded) as bag:
        sensor = _sensor_of(bag)
        for message in bag.messages(["/points"]):
            cloud = cloud_from_message(message.decode(), "/points")
            points.append(len(cloud))
            range_map = np.zeros(sensor.shape, np.float32)
            assert cloud.cell is not None  # the node publishes organised clouds unless told otherwise
            range_map[tuple(cloud.cell.T)] = np.linalg.norm(cloud.points, axis=1)
            nearest = int(stamps[np.abs(stamps - cloud.stamp_ns).argmin()]) if len(stamps) else -(1 << 62)
            if abs(nearest - cloud.stamp_ns) <= _SAME_MOMENT_NS:
                truth = Sweep(truths[nearest], truth_sensor, nearest)
                pairs.append(Pair(Sweep(range_map, sensor, cloud.stamp_ns), truth))
    if not points:
        raise DataError(f"{recorded} holds no sweep; see the logs beside it")
    if not pairs:
        raise DataError(f"no sweep of {recorded} has a cloud of {TRUTH_TOPIC} within 55 ms in {drive.bag}")
    return pairs, points


def _sensor_of(bag: BagReader) -> Sensor:
    """The imitated sensor, from the latched metadata."""
    for message in bag.messages(["/metadata"]):
        return Sensor.from_dict(json.loads(message.decode().data)["sensor"])
    raise DataError(f"{bag.path} holds no /metadata; the node publishes it")


def _truths(path: Path, sensor: Sensor) -> dict[int, NDArray]:
    """Range maps of the drive's LiDAR by stamp."""
    found = {}
    with BagReader(path) as bag:
        for message in bag.messages([TRUTH_TOPIC]):
            cloud = cloud_from_message(message.decode(), TRUTH_TOPIC)
            if cloud.cell is not None and cloud.shape == sensor.shape:
                range_map = np.zeros(sensor.shape, np.float32)
                range_map[tuple(cloud.cell.T)] = np.linalg.norm(cloud.points, axis=1)
            else:
                range_map = points_to_range_map(cloud.points, sensor)[0]
            found[cloud.stamp_ns] = range_map
    return found


def write_preview(path: Path, drive: "Drive", pair: Pair) -> None:
    """Camera views with the generated points, true and generated range maps, both clouds."""
    rig = load_rig(drive.rig)
    images = _images_at(drive.bag, list(Settings().cameras), pair.generated.stamp_ns)
    save_picture(path, three_row_picture(images, rig, pair.generated, pair.true))


def _images_at(path: Path, names: list[str], at_ns: int) -> list[NDArray]:
    """RGB image of each camera nearest in time."""
    best: dict[str, tuple[int, Any]] = {}
    with BagReader(path) as bag:
        topics = {f"/{name}/image{end}": name for name in names for end in ("", "/compressed")}
        for message in bag.messages([t for t in topics if t in bag.topics]):
            decoded = message.decode()
            gap = abs(stamp_ns(decoded.header) - at_ns)
            name = topics[message.topic]
            if name not in best or gap < best[name][0]:
                best[name] = (gap, decoded)
    if missing := [n for n in names if n not in best]:
        raise DataError(f"{path} holds no images of {', '.join(missing)}")
    return [picture_to_rgb(best[name][1]) for name in names]
