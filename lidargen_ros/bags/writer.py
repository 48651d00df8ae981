# SPDX-License-Identifier: Apache-2.0
"""Writes rosbag2 folders (MCAP and ``metadata.yaml``) from serialised messages."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2.metadata import dump_qos_v8
from rosbags.typesys import get_typestore

from .mcap_writer import Chunk, McapWriter, Message, WriteError
from .reader import STORE, Topic


def _offered(depth: int, durability: QosDurability) -> Qos:
    never = QosTime(0, 0)
    history, reliability = QosHistory.KEEP_LAST, QosReliability.RELIABLE
    automatic = QosLiveliness.AUTOMATIC
    return Qos(history, depth, reliability, durability, never, never, automatic, never, False)


LATCHED = _offered(1, QosDurability.TRANSIENT_LOCAL)
"""Offered QoS of a latched topic, so that a player latches it again."""
RELIABLE = _offered(5, QosDurability.VOLATILE)
"""Offered QoS of the node's clouds and images."""


def add_topic(file: McapWriter, topic: Topic) -> int:
    """Announce a topic in a file, with its definition and QoS as rosbag2 records them; returns its channel."""
    return file.add_channel(
        topic.name, topic.msgtype, topic.definition, topic.encoding, dump_qos_v8(list(topic.qos))
    )


def known_topic(name: str, msgtype: str, qos: Sequence[Qos] = ()) -> Topic:
    """A topic of one of ROS 2's own message types."""
    store = get_typestore(STORE)
    definition, _ = store.generate_msgdef(msgtype, ros_version=2)
    return Topic(name, msgtype, 0, tuple(qos), definition, "ros2msg", store.hash_rihs01(msgtype))


class BagWriter:
    """A new rosbag2 folder. As a context manager it is closed, index and all, however the block is left.

    Args:
        compress: zstd per chunk; ``ros2 bag`` and Foxglove read it.
        name: of the MCAP file, without suffix; default is the folder's.
        executor: see :class:`.mcap_writer.McapWriter`.

    Raises:
        WriteError: the folder exists, or the disk is full.
    """

    def __init__(
        self, path: str | Path, *, compress: bool = True, name: str = "", executor: Executor | None = None
    ) -> None:
        self.path = Path(path)
        self.counts: Counter[str] = Counter()
        self._store = get_typestore(STORE)
        self._topics: dict[str, Topic] = {}
        self._channels: dict[str, int] = {}
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise WriteError(f"bag {self.path} exists already; delete it or choose another name") from None
        except OSError as e:
            raise WriteError(f"bag {self.path} cannot be made: {e.strerror or e}") from e
        file = self.path / f"{name or self.path.name}.mcap"
        self._file = McapWriter(file, compress=compress, executor=executor)
        self._open = True

    def add_topic(self, topic: str | Topic, msgtype: str = "", *, latched: bool = False) -> None:
        """Announce a topic; ``write`` does it by itself for plain ones of known types."""
        if isinstance(topic, str):
            topic = known_topic(topic, msgtype, [LATCHED] if latched else [])
        self._channels[topic.name] = add_topic(self._file, topic)
        self._topics[topic.name] = topic

    def write(self, topic: str, msgtype: str, time_ns: int, cdr: bytes | memoryview) -> None:
        """One serialised message. Raises WriteError when the disk is full; the bag is then closed as it is."""
        if topic not in self._channels:
            self.add_topic(topic, msgtype)
        self._file.write(Message(self._channels[topic], time_ns, bytes(cdr)))
        self.counts[topic] += 1

    def append(self, chunk: Chunk | Future[Chunk]) -> None:
        """A chunk whose channels are those of the topics in the order in which they were announced."""
        self._file.append(chunk)

    def flush(self) -> None:
        """Hand complete chunks over to the system."""
        self._file.flush()

    def serialize(self, message: Any) -> bytes:
        """CDR of a rosbags message."""
        return bytes(self._store.serialize_cdr(message, message.__msgtype__))

    def close(self) -> None:
        """Write the index and ``metadata.yaml``. Raises WriteError; what was written can still be read."""
        if not self._open:
            return
        self._open = False
        try:
            self._file.flush()
            about = self._metadata()
            self._file.finish(yaml.safe_dump(about).strip())
            text = yaml.safe_dump({"rosbag2_bagfile_information": about})
            try:
                (self.path / "metadata.yaml").write_text(text)
            except OSError as e:
                raise WriteError(f"{self.path / 'metadata.yaml'} cannot be written: {e.strerror or e}") from e
        except WriteError as e:
            self._file.abort()
            raise WriteError(f"{e}; the bag has no index") from e

    def __enter__(self) -> "BagWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _metadata(self) -> dict[str, Any]:
        """``metadata.yaml`` of version 8 (Iron and later; Humble reads it as well)."""
        file = self._file
        total = file.counts.total()
        start = {"nanoseconds_since_epoch": file.start_ns if total else 0}
        duration = {"nanoseconds": file.end_ns - file.start_ns if total else 0}
        return {
            "version": 8,
            "storage_identifier": "mcap",
            "relative_file_paths": [file.path.name],
            "files": [
                {"path": file.path.name, "starting_time": start, "duration": duration, "message_count": total}
            ],
            "duration": dict(duration),
            "starting_time": dict(start),
            "message_count": total,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": name,
                        "type": topic.msgtype,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": dump_qos_v8(list(topic.qos)),
                        "type_description_hash": topic.digest,
                    },
                    "message_count": file.counts[self._channels[name]],
                }
                for name, topic in self._topics.items()
            ],
            "compression_format": "",
            "compression_mode": "",
            "custom_data": None,
            "ros_distro": "lidargen_ros",
        }
