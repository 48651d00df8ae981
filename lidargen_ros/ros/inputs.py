# SPDX-License-Identifier: Apache-2.0
"""Subscriptions to the cameras: raw or compressed images, whichever is published, and CameraInfo where asked for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from . import qos
from .matcher import Frame
from .messages import stamp_ns
from .parameters import Settings

RAW, COMPRESSED = "raw", "compressed"
_TYPES = {RAW: Image, COMPRESSED: CompressedImage}


@dataclass(frozen=True)
class Picture:
    """An image message as it came, to be decoded later in the worker."""

    message: Any
    transport: str
    topic: str
    received: float  # time.monotonic()


class CameraInputs:
    """Subscribes to PREFIX/image and PREFIX/image/compressed of each camera.

    With ``image_transport: auto`` both are subscribed until it is known what is published; then raw images are
    preferred, because a driver compresses only for those who ask for it.

    Args:
        on_frame: called with the camera's name and a :class:`.matcher.Frame` whose payload is a :class:`Picture`.
        on_info: called with the camera's name, the topic and the CameraInfo; None: not subscribed.
    """

    def __init__(
        self,
        node: Any,
        settings: Settings,
        on_frame: Callable[[str, Frame], None],
        on_info: Callable[[str, str, Any], None] | None = None,
    ) -> None:
        self._node, self._mode, self._on_frame = node, settings.image_transport, on_frame
        self.topics: dict[str, dict[str, str]] = {}
        self._subscriptions: dict[tuple[str, str], Any] = {}
        self._infos: list[Any] = []
        for camera in settings.cameras:
            image = node.resolve_topic_name(f"{camera}/image")
            self.topics[camera] = {RAW: image, COMPRESSED: f"{image}/compressed"}
            for transport in (RAW, COMPRESSED):
                if self._mode in ("auto", transport):
                    self._subscribe(camera, transport)
            if on_info is not None:
                self._subscribe_info(camera, on_info)

    def choose_transports(self) -> None:
        """Keep only the raw subscription of a camera that publishes both; call it now and then."""
        if self._mode != "auto":
            return
        for camera, topics in self.topics.items():
            published = {t: self._node.count_publishers(topic) > 0 for t, topic in topics.items()}
            if published[RAW] and published[COMPRESSED]:
                self._unsubscribe(camera, COMPRESSED)
            elif not published[RAW] and (camera, COMPRESSED) not in self._subscriptions:
                self._subscribe(camera, COMPRESSED)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in [*self._subscriptions.values(), *self._infos]:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._infos.clear()

    def _subscribe(self, camera: str, transport: str) -> None:
        topic = self.topics[camera][transport]

        def received(message: Any) -> None:
            picture = Picture(message, transport, topic, time.monotonic())
            self._on_frame(camera, Frame(stamp_ns(message.header), picture))

        self._subscriptions[camera, transport] = self._node.create_subscription(
            _TYPES[transport], topic, received, qos.subscription(), qos_overriding_options=qos.overridable()
        )

    def _unsubscribe(self, camera: str, transport: str) -> None:
        if subscription := self._subscriptions.pop((camera, transport), None):
            self._node.destroy_subscription(subscription)

    def _subscribe_info(self, camera: str, on_info: Callable[[str, str, Any], None]) -> None:
        topic = self._node.resolve_topic_name(f"{camera}/camera_info")
        self._infos.append(
            self._node.create_subscription(
                CameraInfo, topic, lambda message: on_info(camera, topic, message), qos.subscription(1)
            )
        )
