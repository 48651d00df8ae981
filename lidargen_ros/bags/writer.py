# SPDX-License-Identifier: Apache-2.0
"""Writes rosbag2 folders (MCAP and ``metadata.yaml``) from serialised messages, thin over rosbags."""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError
from rosbags.typesys import get_typestore

from ..errors import DataError
from .reader import STORE

LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)
"""Offered QoS of a latched topic, so that a player latches it again."""


class BagWriter:
    """A new rosbag2 folder. As a context manager it is closed, index and all, however the block is left.

    Args:
        compress: zstd per chunk; ``ros2 bag`` and Foxglove read it.

    Raises:
        DataError: the folder exists, or the disk is full.
    """

    def __init__(self, path: str | Path, *, compress: bool = True) -> None:
        self.path = Path(path)
        self.counts: Counter[str] = Counter()
        self._store = get_typestore(STORE)
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(self.path, version=8, storage_plugin=StoragePlugin.MCAP)
            if compress:
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except (WriterError, OSError) as e:
            raise DataError(f"bag {self.path} cannot be written: {e}") from e

    def add_topic(self, topic: str, msgtype: str, *, latched: bool = False) -> None:
        """Announce a topic; ``write`` does it by itself for plain ones."""
        self._connections[topic] = self._writer.add_connection(
            topic, msgtype, typestore=self._store, offered_qos_profiles=[LATCHED] if latched else []
        )

    def write(self, topic: str, msgtype: str, time_ns: int, cdr: bytes | memoryview) -> None:
        """One serialised message. Raises DataError when the disk is full; the bag is then closed as it is."""
        if topic not in self._connections:
            self.add_topic(topic, msgtype)
        try:
            self._writer.write(self._connections[topic], time_ns, cdr)
        except OSError as e:
            raise DataError(f"bag {self.path} cannot be written: {e.strerror or e}") from e
        self.counts[topic] += 1

    def serialize(self, message: Any) -> bytes:
        """CDR of a rosbags message."""
        return bytes(self._store.serialize_cdr(message, message.__msgtype__))

    def close(self) -> None:
        """Write the index. Raises DataError if that fails; what was written can still be read."""
        if self._writer.storage is None:
            return
        try:
            self._writer.close()
        except OSError as e:
            self._writer.abort()
            raise DataError(f"bag {self.path} could not be closed: {e.strerror or e}; it has no index") from e

    def __enter__(self) -> "BagWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
