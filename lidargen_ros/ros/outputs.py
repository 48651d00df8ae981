# SPDX-License-Identifier: Apache-2.0
"""Publishers of the node. Nothing is built for a topic that nobody subscribes."""

import json
from typing import Any

import numpy as np
from rclpy.duration import Duration
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import String

from ..cameras import Rig
from ..sensors import Sensor
from ..sweep import Sweep
from . import qos
from .clouds import FULL_INTENSITY, CloudPacker, fill_cloud, point_fields
from .compat import data_assigner
from .messages import fill_image, range_image
from .parameters import Settings

_LAST_WORDS_S = 1
RANGE_IMAGE_RULE = (
    "range_image[row, column] is the distance in metres along the ray; its point is that distance times "
    "(cos e cos a, cos e sin a, sin e) with e = elevations_deg[row] and a = azimuths_rad[column], in frame_id"
)


class Outputs:
    """``points``, ``range_image``, ``intensity_image`` and the latched ``metadata``."""

    def __init__(self, node: Any, settings: Settings) -> None:
        self._node = node
        policy = qos.publication(settings.qos)
        self._points = self._publisher(PointCloud2, "points", policy)
        self._range = self._publisher(Image, "range_image", policy)
        self._intensity = self._publisher(Image, "intensity_image", policy)
        self._metadata = node.create_publisher(String, "metadata", qos.latched())
        self._all = (self._points, self._range, self._intensity, self._metadata)
        self._assign_cloud, self._assign_image = data_assigner(PointCloud2), data_assigner(Image)
        self._packer: CloudPacker | None = None
        self._packer_key: tuple[Any, ...] = ()
        self._fields: list[Any] = []

    def _publisher(self, kind: Any, topic: str, policy: Any) -> Any:
        return self._node.create_lifecycle_publisher(
            kind, topic, policy, qos_overriding_options=qos.overridable()
        )

    def subscribers(self) -> dict[str, int]:
        """How many subscribers each topic has."""
        return {p.topic_name.rsplit("/", 1)[-1]: p.get_subscription_count() for p in self._all}

    def publish(self, sweep: Sweep, stamp: Any, settings: Settings) -> None:
        """Publish a sweep under a header stamp, in the layout of ``settings``."""
        if self._points.get_subscription_count():
            cloud = self._pack(sweep, settings)
            message = fill_cloud(PointCloud2(), cloud, self._fields, self._assign_cloud)
            self._send(self._points, message, stamp, settings)
        if self._range.get_subscription_count():
            encoding = settings.range_encoding
            image = range_image(sweep.range_map, encoding)
            self._send(self._range, fill_image(Image(), image, encoding, self._assign_image), stamp, settings)
        if sweep.intensity is not None and self._intensity.get_subscription_count():
            level = np.rint(np.clip(sweep.intensity, 0, 1) * FULL_INTENSITY).astype(np.uint8)
            self._send(
                self._intensity, fill_image(Image(), level, "mono8", self._assign_image), stamp, settings
            )

    def publish_metadata(self, sensor: Sensor, rig: Rig, model: dict[str, Any], settings: Settings) -> None:
        """Latch what is constant: beam table, rig, model, and how to read the topics."""
        content = {
            "frame_id": settings.frame_id,
            "sensor": sensor.to_dict(),
            "azimuths_rad": [round(float(a), 7) for a in sensor.azimuths()],
            "rig": rig.to_dict(),
            "cameras": list(settings.cameras),
            "model": model,
            "point_type": settings.point_type,
            "organised": settings.organised,
            "intensity_scale": FULL_INTENSITY,
            "range_image": {"encoding": settings.range_encoding, "rule": RANGE_IMAGE_RULE},
        }
        self._metadata.publish(String(data=json.dumps(content)))

    def close(self) -> None:
        """Destroy the publishers, once what was published reliably has arrived or a second has passed."""
        for publisher in self._all:
            publisher.wait_for_all_acked(Duration(seconds=_LAST_WORDS_S))
        for publisher in (self._points, self._range, self._intensity):
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._metadata)

    def _send(self, publisher: Any, message: Any, stamp: Any, settings: Settings) -> None:
        message.header.stamp = stamp
        message.header.frame_id = settings.frame_id
        publisher.publish(message)

    def _pack(self, sweep: Sweep, s: Settings) -> Any:
        key = (sweep.sensor, s.point_type, s.organised, s.return_probability, s.point_time)
        if self._packer is None or key != self._packer_key:
            self._packer = CloudPacker(
                sweep.sensor,
                s.point_type,
                organised=s.organised,
                probability=s.return_probability,
                spin=s.point_time == "spin",
            )
            self._packer_key, self._fields = key, point_fields(self._packer.dtype, PointField)
        return self._packer.pack(sweep)
