# SPDX-License-Identifier: Apache-2.0
"""Publishers of the node. Nothing is built for a topic that nobody subscribes."""

import json
import time
import traceback
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import String

from ..cameras import Rig
from ..cameras.encodings import to_rgb
from ..sensors import Sensor
from ..sweep import Sweep
from . import qos
from .clouds import FULL_INTENSITY, CloudPacker, fill_cloud, point_fields
from .compat import data_assigner
from .messages import fill_image, range_image
from .metadata import metadata_content
from .parameters import Settings
from .pipeline import Job
from .preview import preview_jpeg
from .reporter import Reporter
from .statistics import Statistics
from .worker import Worker


class Outputs:
    """``points``, ``range_image``, ``intensity_image``, ``preview`` and the latched ``metadata``."""

    def __init__(self, node: Any, settings: Settings, statistics: Statistics, reporter: Reporter) -> None:
        self._node, self._statistics, self._reporter = node, statistics, reporter
        self._points = self._publisher(PointCloud2, "points", settings)
        self._range = self._publisher(Image, "range_image", settings)
        self._intensity = self._publisher(Image, "intensity_image", settings)
        self._preview = self._publisher(CompressedImage, "preview", settings)
        self._sweeps = (self._points, self._range, self._intensity, self._preview)
        self._metadata = node.create_publisher(String, "metadata", qos.latched())
        self._assign_cloud, self._assign_image = data_assigner(PointCloud2), data_assigner(Image)
        self._packer: CloudPacker | None = None
        self._packer_key: tuple[Any, ...] = ()
        self._fields: list[Any] = []
        self._last_preview = -1e9
        # Drawing takes longer than everything else here: no cloud waits for it.
        self._painter: Worker[Job] = Worker(
            "preview", self._paint, replaced=lambda _: None, failed=self._on_failure
        )

    def _publisher(self, kind: Any, topic: str, settings: Settings) -> Any:
        policy = qos.publication(settings.qos)  # one each: rclpy writes overrides into it
        return self._node.create_lifecycle_publisher(
            kind, topic, policy, qos_overriding_options=qos.overridable()
        )

    def wanted(self) -> bool:
        """Whether anybody subscribes to what is made of a sweep."""
        return any(publisher.get_subscription_count() for publisher in self._sweeps)

    def subscribers(self) -> dict[str, int]:
        """How many subscribers each topic has, by the name it has before remapping."""
        named = zip(("points", "range_image", "intensity_image", "preview"), self._sweeps, strict=True)
        return {name: p.get_subscription_count() for name, p in (*named, ("metadata", self._metadata))}

    def publish(self, job: Job) -> None:
        """Publish a sweep under the stamp of the first camera's image, in the layout of its settings."""
        sweep, settings = job.sweep, job.settings
        assert sweep is not None
        if self._points.get_subscription_count():
            cloud = self._pack(sweep, settings)
            message = fill_cloud(PointCloud2(), cloud, self._fields, self._assign_cloud)
            self._send(self._points, message, job)
        if self._range.get_subscription_count():
            encoding = settings.range_encoding
            image = range_image(sweep.range_map, encoding)
            self._send(self._range, fill_image(Image(), image, encoding, self._assign_image), job)
        if sweep.intensity is not None and self._intensity.get_subscription_count():
            level = np.rint(np.clip(sweep.intensity, 0, 1) * FULL_INTENSITY).astype(np.uint8)
            self._send(self._intensity, fill_image(Image(), level, "mono8", self._assign_image), job)
        now = time.monotonic()
        if self._preview.get_subscription_count() and now - self._last_preview >= 1 / settings.preview_rate:
            self._last_preview = now
            self._painter.submit(job)

    def publish_metadata(self, sensor: Sensor, rig: Rig, model: dict[str, Any], settings: Settings) -> None:
        """Latch what is constant: beam table, rig, model, and how to read the topics."""
        content = metadata_content(sensor, rig, model, settings)
        self._metadata.publish(String(data=json.dumps(content)))

    def close(self) -> None:
        """Destroy the publishers, once what was published reliably has arrived or a second has passed."""
        self._painter.stop()
        for publisher in (*self._sweeps, self._metadata):
            publisher.wait_for_all_acked(qos.LAST_WORDS)
        for publisher in self._sweeps:
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._metadata)

    def _send(self, publisher: Any, message: Any, job: Job) -> None:
        message.header.stamp = job.stamp
        message.header.frame_id = job.settings.frame_id
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

    def _paint(self, job: Job) -> None:
        assert job.sweep is not None and job.rig is not None
        images = [None if image is None else to_rgb(image) for image in job.images]
        data = preview_jpeg(images, job.rig, job.sweep, job.settings.preview_width)
        self._send(self._preview, CompressedImage(format="jpeg", data=data), job)

    def _on_failure(self, _: Job, error: Exception) -> None:
        text = "".join(traceback.format_exception(error)).rstrip()
        self._statistics.note("failed_previews")
        self._reporter.error("preview", f"{type(error).__name__}: {error}; no preview\n{text}")
