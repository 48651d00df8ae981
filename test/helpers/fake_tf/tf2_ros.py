# SPDX-License-Identifier: Apache-2.0
"""A double of the few names of tf2_ros that the node uses; its transforms stand in the JSON file FAKE_TF.

``{"camera frame": [x, y, z, qx, qy, qz, qw]}``, each to the frame ``lidar``. It opens the names that the real one opens,
with other types: tf2_msgs is not among the PyPI wheels.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from std_msgs.msg import Empty
from std_srvs.srv import Trigger

SUBSCRIBED = ("/tf", "/tf_static")
SERVED = "tf2_frames"


class TransformException(Exception):
    """As of tf2."""


class Buffer:
    def __init__(self, cache_time=None, node=None) -> None:
        assert node is not None, "without the node a buffer does not notice that a bag loops"
        node.create_service(Trigger, SERVED, lambda _, response: response)

    def lookup_transform(self, target_frame: str, source_frame: str, time: object):
        known = json.loads(Path(os.environ["FAKE_TF"]).read_text())
        if target_frame != "lidar" or source_frame not in known:
            raise TransformException(f'"{source_frame}" does not exist')
        x, y, z, *q = known[source_frame]
        rotation = SimpleNamespace(**dict(zip("xyzw", q, strict=True)))
        return SimpleNamespace(
            transform=SimpleNamespace(translation=SimpleNamespace(x=x, y=y, z=z), rotation=rotation)
        )


class TransformListener:
    def __init__(self, buffer: Buffer, node) -> None:
        for topic in SUBSCRIBED:
            node.create_subscription(Empty, topic, lambda _: None, 1)
