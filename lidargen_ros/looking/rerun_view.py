# SPDX-License-Identifier: Apache-2.0
"""Bags in the Rerun viewer: clouds coloured by range, pictures, cameras at their place. Needs ``rerun-sdk``."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..bags.message_types import CLOUD, COMPRESSED
from ..bags.pointclouds import cloud_from_message
from ..bags.reader import BagMessage
from ..cameras import PinholeCamera
from ..pictures import range_colours
from ..ros.messages import picture_to_rgb, stamp_ns
from .moment import Bags, Moment

_QUALITY = 80  # of pictures that are not JPEG in the bag


def log_bags(bags: Bags, moment: Moment, save: Path | None) -> int:
    """Sends every picture and cloud to a viewer, or to a file; returns how many.

    Args:
        moment: whose rig tells where the cameras are.
        save: an .rrd file; None opens the viewer.
    """
    import rerun as rr

    rr.init("lidargen", spawn=save is None)
    if save is not None:
        rr.save(save)
    rr.log("lidar", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    cameras = {camera.topic: camera.name for _, camera in bags.cameras}
    for name, view in zip(bags.order, moment.rig or (), strict=False):
        pose = view.camera_to_lidar
        entity = f"lidar/{name}"
        rr.log(entity, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]), static=True)
        if isinstance(view.camera, PinholeCamera):  # other lenses have no place in a pinhole's frustum
            c = view.camera
            matrix = np.array([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]])
            rr.log(entity, rr.Pinhole(image_from_camera=matrix, width=c.width, height=c.height), static=True)
    clouds = {lidar.topic for contents in bags.contents for lidar in contents.lidars if not lidar.lacks}
    count = 0
    for message in bags.messages(clouds | cameras.keys()):
        decoded = message.decode()
        rr.set_time("stamp", timestamp=stamp_ns(decoded.header) / 1e9)
        if message.msgtype == CLOUD:
            points = cloud_from_message(decoded, message.topic).points
            colours = range_colours(np.linalg.norm(points, axis=1))
            rr.log(
                f"lidar{message.topic}", rr.Points3D(points, colors=colours, radii=rr.Radius.ui_points(1.5))
            )
        else:
            rr.log(f"lidar/{cameras[message.topic]}", _picture(rr, message, decoded))
        count += 1
    return count


def _picture(rr: Any, message: BagMessage, decoded: Any) -> Any:
    if message.msgtype == COMPRESSED and bytes(decoded.data[:2]) == b"\xff\xd8":
        return rr.EncodedImage(contents=bytes(decoded.data), media_type="image/jpeg")
    rgb = picture_to_rgb(decoded)
    jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return rr.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg")
