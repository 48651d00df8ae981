# SPDX-License-Identifier: Apache-2.0
"""Bags as one MCAP file that Foxglove shows well: every topic it needs in one file, and a layout that names them."""

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rosbags.typesys import get_typestore
from scipy.spatial.transform import Rotation

from ..bags.message_types import CLOUD, COMPRESSED, INFO, ODOMETRY, RAW, STRING, TF
from ..bags.reader import STORE
from ..bags.writer import BagWriter
from ..errors import CalibrationError
from ..resources import config_path
from .moment import Bags, Moment

SHOWN = (RAW, COMPRESSED, INFO, CLOUD, ODOMETRY, *TF, "diagnostic_msgs/msg/DiagnosticArray", STRING)
STATIC = "/tf_static"
_IMAGE_PANELS = 4


def write_mcap(bags: Bags, out: Path, moment: Moment) -> tuple[Path, Path, list[str]]:
    """``OUT/NAME.mcap`` and ``OUT/layout.json``, and notes on what was added or is missing.

    The transforms of all bags go into one latched message at the start, with those of cameras that only a rig places.

    Args:
        moment: whose rig tells where cameras are.

    Raises:
        WriteError: the folder exists, or the disk is full.
    """
    notes = list(moment.notes)
    transforms = _static(bags, moment, notes)
    topics = {
        t.name: t
        for contents in reversed(bags.contents)
        for t in contents.topics.values()
        if t.msgtype in SHOWN and t.count
    }
    with BagWriter(out) as writer:
        writer.add_topic(STATIC, TF[0], latched=True)
        for topic in topics.values():
            if topic.name != STATIC and topic.encoding and topic.encoding != "ros1msg":
                writer.add_topic(topic)
        begun = False
        for message in bags.messages(topics.keys() - {STATIC}):
            if not begun and transforms:
                packed = _message("tf2_msgs/msg/TFMessage", transforms=transforms)
                writer.write(STATIC, TF[0], message.time_ns, writer.serialize(packed))
            begun = True
            writer.write(message.topic, message.msgtype, message.time_ns, message.cdr())
    layout = out / "layout.json"
    layout.write_text(json.dumps(make_layout(bags, topics), indent=1) + "\n")
    return out / f"{out.name}.mcap", layout, notes


def _static(bags: Bags, moment: Moment, notes: list[str]) -> list[Any]:
    """Fixed transforms of all bags, and those of cameras that have none."""
    edges: dict[str, tuple[str, NDArray]] = {}
    for contents in bags.contents:
        for (parent, child), pose in contents.tree.fixed_edges.items():
            edges.setdefault(child, (parent, pose))
    cameras = {camera.name: camera for _, camera in bags.cameras}
    views = dict(zip(bags.order, moment.rig, strict=True)) if moment.rig else {}
    for name, camera in cameras.items():
        view = views.get(name)
        if camera.camera_to_lidar is None and view is not None and camera.frame and camera.frame not in edges:
            edges[camera.frame] = (bags.frame, view.camera_to_lidar)
            notes.append(f"{STATIC} from {bags.frame} to {camera.frame} was added from the rig")
        if camera.camera is None:
            notes.append(f"{camera.topic} has no CameraInfo: Foxglove shows the picture without points in it")
    for pair in (bags.generated, bags.truth):
        if pair is not None and pair[1].frame != bags.frame:
            contents = next(c for c in bags.contents if c.path == pair[0])
            try:
                contents.tree.fixed(pair[1].frame, bags.frame)
            except CalibrationError as e:
                notes.append(f"{pair[1].topic}: {e}")
    return [_transform(parent, child, pose, moment.stamp_ns) for child, (parent, pose) in edges.items()]


def _message(kind: str, **values: Any) -> Any:
    return get_typestore(STORE).types[kind](**values)


def _transform(parent: str, child: str, pose: NDArray, stamp_ns: int) -> Any:
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = _message("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    x, y, z, w = map(float, Rotation.from_matrix(pose[:3, :3]).as_quat())
    return _message(
        "geometry_msgs/msg/TransformStamped",
        header=_message("std_msgs/msg/Header", stamp=stamp, frame_id=parent),
        child_frame_id=child,
        transform=_message(
            "geometry_msgs/msg/Transform",
            translation=_message(
                "geometry_msgs/msg/Vector3", **dict(zip("xyz", map(float, pose[:3, 3]), strict=True))
            ),
            rotation=_message("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )


def make_layout(bags: Bags, topics: Any) -> dict[str, Any]:
    """The project's layout (``config/foxglove_layout.json``) with the topics of these bags."""
    layout = json.loads(config_path("foxglove_layout.json").read_text())
    panels = layout["configById"]
    scene = panels["3D!clouds"]
    example = scene["topics"]["/points"]
    clouds = [lidar.topic for contents in bags.contents for lidar in contents.lidars if not lidar.lacks]
    scene["topics"] = {topic: {**example, "visible": True} for topic in clouds}
    if bags.generated and bags.truth:
        scene["topics"][bags.truth[1].topic] = {**example, "colorMode": "flat", "flatColor": "#9aa4b2ff"}
    scene["followTf"] = bags.frame
    for layer in scene["layers"].values():
        layer["frameId"] = bags.frame
    panels = {"3D!clouds": scene}
    for _, camera in bags.cameras[:_IMAGE_PANELS]:
        mode = {"imageTopic": camera.topic}
        if camera.info_topic:
            mode["calibrationTopic"] = camera.info_topic
        drawn = [pair[1].topic for pair in (bags.generated or bags.truth,) if pair]
        panels[f"Image!{camera.name}"] = {
            "title": camera.name,
            "imageMode": mode,
            "topics": {topic: {**example, "pointSize": 3} for topic in drawn},
        }
    maps = [name for name in topics if name.endswith("range_image")]
    if maps:
        panels["Image!range"] = layout["configById"]["Image!range"]
        panels["Image!range"]["imageMode"]["imageTopic"] = maps[0]
    images = [name for name in panels if name.startswith("Image!")]
    tree: Any = images[-1] if images else None
    for number, name in enumerate(reversed(images[:-1]), 2):
        tree = {"direction": "column", "splitPercentage": 100 / number, "first": name, "second": tree}
    layout["configById"] = panels
    layout["layout"] = (
        {"direction": "row", "splitPercentage": 65, "first": "3D!clouds", "second": tree}
        if tree
        else "3D!clouds"
    )
    return layout
