# SPDX-License-Identifier: Apache-2.0
"""Sweeps as serialised messages, packed into chunks; runs on any thread."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import get_typestore

from ...cameras.rig import Rig
from ...ros.clouds import FULL_INTENSITY, CloudPacker, fill_cloud, point_fields
from ...ros.messages import fill_image, range_image
from ...ros.metadata import metadata_content
from ...sweep import Sweep
from ..mcap_writer import Chunk, Message, pack_chunk
from ..message_types import CLOUD, RAW, STRING
from ..reader import STORE
from .models import ModelInfo
from .options import INTENSITY_IMAGE, METADATA, POINTS, RANGE_IMAGE, Options


def _assign(message: Any, data: NDArray) -> None:
    message.data = data


class Encoder:
    """Makes the chunks of a sweep, one per message, so that a reader unpacks only what it wants.

    Args:
        channels: by topic.
    """

    def __init__(self, info: ModelInfo, rig: Rig, options: Options, channels: Mapping[str, int]) -> None:
        self._info, self._rig, self._options, self._channels = info, rig, options, channels
        self._store = get_typestore(STORE)
        self._local = threading.local()  # a packer overwrites its points: one per thread

    def __call__(self, sweep: Sweep, time_ns: int) -> list[Chunk]:
        """Chunks of the messages of a sweep, recorded at ``time_ns``."""
        made = {POINTS: self._points, RANGE_IMAGE: self._range_image, INTENSITY_IMAGE: self._intensity_image}
        chunks = []
        for output in self._options.outputs:
            message = made[output](sweep) if output in made else None
            if message is not None:
                chunks.append(self._chunk(output, message, time_ns))
        return chunks

    def metadata(self, time_ns: int) -> list[Chunk]:
        """The latched message at the start of a bag, if it is wanted."""
        if METADATA not in self._options.outputs:
            return []
        content = metadata_content(self._info.sensor, self._rig, self._info.about, self._options.settings)
        return [self._chunk(METADATA, self._make(STRING, data=json.dumps(content)), time_ns)]

    def _chunk(self, output: str, message: Any, time_ns: int) -> Chunk:
        data = bytes(self._store.serialize_cdr(message, message.__msgtype__))
        return pack_chunk([Message(self._channels[self._options.topic(output)], time_ns, data)])

    def _make(self, kind: str, /, **values: Any) -> Any:
        return self._store.types[kind](**values)

    def _header(self, sweep: Sweep) -> Any:
        seconds, nanoseconds = divmod(sweep.stamp_ns, 1_000_000_000)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=self._options.settings.frame_id)

    def _points(self, sweep: Sweep) -> Any:
        packer = getattr(self._local, "packer", None)
        if packer is None or packer.sensor is not sweep.sensor:
            s = self._options.settings
            packer = self._local.packer = CloudPacker(
                sweep.sensor,
                s.point_type,
                organised=s.organised,
                probability=s.return_probability,
                spin=s.point_time == "spin",
            )
        fields = point_fields(packer.dtype, self._store.types["sensor_msgs/msg/PointField"])
        message = self._make(
            CLOUD,
            header=self._header(sweep),
            **dict.fromkeys(("height", "width", "point_step", "row_step"), 0),
            fields=fields,
            is_bigendian=False,
            data=None,
            is_dense=False,
        )
        return fill_cloud(message, packer.pack(sweep), fields, _assign)

    def _range_image(self, sweep: Sweep) -> Any:
        encoding = self._options.settings.range_encoding
        return self._image(range_image(sweep.range_map, encoding), encoding, sweep)

    def _intensity_image(self, sweep: Sweep) -> Any | None:
        if sweep.intensity is None:
            return None
        level = np.rint(np.clip(sweep.intensity, 0, 1) * FULL_INTENSITY).astype(np.uint8)
        return self._image(level, "mono8", sweep)

    def _image(self, array: NDArray, encoding: str, sweep: Sweep) -> Any:
        message = self._make(
            RAW,
            header=self._header(sweep),
            **dict.fromkeys(("height", "width", "step", "is_bigendian"), 0),
            encoding=encoding,
            data=None,
        )
        return fill_image(message, array, encoding, _assign)
