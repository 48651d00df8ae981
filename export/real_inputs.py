# SPDX-License-Identifier: Apache-2.0
"""Inputs as they come from cameras: the first pictures of the sample drive."""

from __future__ import annotations

from numpy.typing import NDArray

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.cameras.align import align, atlas
from lidargen_ros.cameras.rig import Rig, load_rig
from lidargen_ros.demo import find_drive
from lidargen_ros.errors import DataError
from lidargen_ros.ros.messages import picture_to_rgb
from lidargen_ros.sensors import Sensor


def drive_pictures() -> tuple[Rig, list[NDArray]]:
    """Rig and one RGB picture ``[height, width, 3]`` uint8 of each of its views.

    Raises:
        DataError: no sample drive is installed.
    """
    drive = find_drive()
    rig = load_rig(drive.rig)
    pictures: dict[str, NDArray] = {}
    with BagReader(drive.bag) as bag:
        for message in bag.messages([t for t in bag.topics if t.endswith("/image/compressed")]):
            if message.topic not in pictures:
                pictures[message.topic] = picture_to_rgb(message.decode())
            if len(pictures) == len(rig):
                return rig, [pictures[topic] for topic in bag.topics if topic in pictures]
    raise DataError(
        f"{drive.bag}: {len(pictures)} of {len(rig)} cameras have pictures; get the sample drive again"
    )


def student_inputs(
    sensor: Sensor, tile: tuple[int, int], hypotheses: tuple[float | str, ...], lidar_height_m: float
) -> dict[str, NDArray]:
    """What the encoder of a student gets of the sample drive."""
    rig, pictures = drive_pictures()
    maps = align(rig, sensor, tile=tile, hypotheses=hypotheses, lidar_height=lidar_height_m)
    return {"atlas": atlas(pictures, tile), "grid": maps.grid, "mask": maps.mask, "rays": maps.rays}
