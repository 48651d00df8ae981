# SPDX-License-Identifier: Apache-2.0
"""Finds the cameras in a bag: which topic belongs to which, and with which calibration."""

import re
from collections.abc import Mapping

from ...cameras import Rig, View, camera_from_info
from ...errors import CalibrationError, ConfigError, DataError, listed
from ...ros.calibration import chosen_rig
from ...ros.parameters import Settings
from ..message_types import COMPRESSED, INFO, RAW
from ..reader import BagReader, Topic

_TYPES = {"auto": (RAW, COMPRESSED), "raw": (RAW,), "compressed": (COMPRESSED,)}


def camera_topics(bag: BagReader, settings: Settings) -> dict[str, str]:
    """Topic -> camera, in the order of ``settings.cameras``.

    A camera is a topic, or the prefix of ``image`` or ``image/compressed`` as for the node; raw images come first.

    Raises:
        DataError: a camera has no images; says which topics look like cameras.
    """
    found: dict[str, str] = {}
    missing = []
    for camera in settings.cameras:
        base = "/" + camera.strip("/")
        places = (base, f"{base}/image", f"{base}/image/compressed", f"{base}/compressed")
        topics = [bag.topics[p] for p in places if p in bag.topics]
        wanted = [
            t.name
            for kind in _TYPES[settings.image_transport]
            for t in topics
            if t.msgtype == kind and t.count and t.name not in found
        ]
        if wanted:
            found[wanted[0]] = camera
        else:
            missing.append(camera)
    if missing:
        raise DataError(
            f"bag {bag.path}: no images of {', '.join(missing)}; {_candidates(bag.topics)}; name the cameras with "
            f"--camera, once for each of {', '.join(settings.cameras)}, in that order"
        )
    return found


def _candidates(topics: Mapping[str, Topic]) -> str:
    """What looks like a camera, and whether it can be read."""
    usable = [
        f"{t.name} ({t.msgtype.rpartition('/')[2]}, {t.count} messages)"
        for t in topics.values()
        if t.msgtype in (RAW, COMPRESSED)
    ]
    foreign = [
        f"{t.name} ({t.msgtype})"
        for t in topics.values()
        if re.search("image|video|camera|ffmpeg", t.name + t.msgtype, re.IGNORECASE)
        and t.msgtype not in (RAW, COMPRESSED, INFO)
    ]
    text = f"topics that look like cameras: {listed(usable)}" if usable else "no topic holds images"
    return text + (f"; of a type that is not read: {listed(foreign)}" if foreign else "")


def bag_rig(bag: BagReader, own: Rig, cameras: Mapping[str, str], settings: Settings) -> Rig:
    """The calibration for a whole bag: the rig of the settings, with intrinsics from the bag where they say so.

    Args:
        own: the model's rig.

    Raises:
        CalibrationError: no CameraInfo, or implausible values. ConfigError: no such rig, or calibration from TF.
    """
    rig = chosen_rig(own, settings)
    if settings.calibration == "rig":
        return rig
    if settings.calibration != "camera_info":
        raise ConfigError(
            f"calibration {settings.calibration!r} is not read from bags; write the poses into a rig file (--rig)"
        )
    views = []
    for topic, view in zip(cameras, rig.views, strict=True):
        name = f"{topic.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
        info = next(bag.messages([name]), None) if name in bag.topics else None
        if info is None:
            raise CalibrationError(
                f"bag {bag.path}: no CameraInfo on {name} for {topic}; use a rig file (--rig) instead"
            )
        camera = camera_from_info(info.decode(), name, rectified=settings.rectified)
        views.append(View(view.name, camera, view.camera_to_lidar))
    return Rig(tuple(views), rig.name, "CameraInfo")
