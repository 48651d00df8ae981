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
_RAW_CEASED_S = 2.0


@dataclass(frozen=True)
class Picture:
    """An image message as it came, to be decoded later in the worker."""

    message: Any
    transport: str
    topic: str
    received: float  # time.monotonic()


class CameraInputs:
    """Subscribes to PREFIX/image and PREFIX/image/compressed of each camera.

    With ``image_transport: auto`` both are subscribed until images come on both; then the raw ones are kept, because
    a driver compresses only for those who ask for it. Should they cease, both are subscribed again.

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
        self._last_raw: dict[str, float] = {}
        for camera in settings.cameras:
            image = node.resolve_topic_name(f"{camera}/image")
            self.topics[camera] = {RAW: image, COMPRESSED: f"{image}/compressed"}
            for transport in (RAW, COMPRESSED):
                if self._mode in ("auto", transport):
                    self._subscribe(camera, transport)
            if on_info is not None:
                self._subscribe_info(camera, on_info)

    def choose_transports(self) -> None:
        """Drop the compressed subscription of a camera that sends raw images, and take it up again; call it often."""
        if self._mode != "auto":
            return
        for camera, topics in self.topics.items():
            subscribed = (camera, COMPRESSED) in self._subscriptions
            if self._sends_raw(camera) and subscribed and self._node.count_publishers(topics[COMPRESSED]):
                self._unsubscribe(camera, COMPRESSED)
            elif not self._sends_raw(camera) and not subscribed:
                self._subscribe(camera, COMPRESSED)

    def _sends_raw(self, camera: str) -> bool:
        return time.monotonic() - self._last_raw.get(camera, -1e9) < _RAW_CEASED_S

    def publishers(self) -> dict[str, dict[str, int]]:
        """By camera and topic: how many publish there, seen from here."""
        return {
            camera: {topic: self._node.count_publishers(topic) for topic in topics.values()}
            for camera, topics in self.topics.items()
        }

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in [*self._subscriptions.values(), *self._infos]:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._infos.clear()

    def _subscribe(self, camera: str, transport: str) -> None:
        topic = self.topics[camera][transport]

        def received(message: Any) -> None:
            if transport == RAW:
                self._last_raw[camera] = time.monotonic()
            elif self._sends_raw(camera):
                return  # the same picture once more
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
                CameraInfo,
                topic,
                lambda message: on_info(camera, topic, message),
                qos.subscription(1),
                qos_overriding_options=qos.overridable(),
            )
        )
