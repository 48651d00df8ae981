# SPDX-License-Identifier: Apache-2.0
"""Opens any rosbag2 (MCAP, SQLite) or ROS 1 bag, thin over rosbags; a damaged one is read up to the damage."""

import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag1 import ReaderError as Ros1Error
from rosbags.rosbag2 import ReaderError as Ros2Error
from rosbags.serde import SerdeError
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)

from ..errors import DataError
from .salvage import Channel, Cut, salvage, zstd

STORE = Stores.ROS2_JAZZY
_SUFFIXES = (".mcap", ".db3", ".bag")
_ENCODINGS = {
    MessageDefinitionFormat.NONE: "",
    MessageDefinitionFormat.MSG: "ros2msg",
    MessageDefinitionFormat.IDL: "ros2idl",
}
# What a damaged file makes the libraries raise; rosbags checks much, but not everything.
_BROKEN = (
    AnyReaderError,
    Ros1Error,
    Ros2Error,
    TypesysError,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
    EOFError,
    RuntimeError,
    apsw.Error,
    zstd.ZstdError,
)


@dataclass(frozen=True)
class Topic:
    """A topic of a bag.

    Attributes:
        qos: offered profiles as recorded; a latched topic of ROS 1 has none but is ``latched``.
        definition: of the type, in ``encoding`` (ros2msg, ros2idl); empty where the bag holds none.
        digest: hash of the type (RIHS01); empty where it is not known.
    """

    name: str
    msgtype: str
    count: int
    qos: tuple[Any, ...] = ()
    definition: str = field(default="", repr=False)
    encoding: str = ""
    digest: str = ""
    latched: bool = False


@dataclass(frozen=True)
class BagMessage:
    """A message as recorded; ``time_ns``: when it was recorded."""

    topic: str
    msgtype: str
    time_ns: int
    raw: bytes = field(repr=False)
    ros1: bool = False
    store: Any = field(default=None, repr=False)

    def decode(self) -> Any:
        """The message as ROS 2 defines it, with numpy arrays. Raises DataError, naming the topic."""
        cdr = self.cdr()
        try:
            return self.store.deserialize_cdr(cdr, self.msgtype)
        except (SerdeError, *_BROKEN) as e:
            raise self._unreadable(e) from e

    def cdr(self) -> bytes:
        """Serialised as ROS 2 does. Raises DataError, naming the topic."""
        if not self.ros1:
            return self.raw
        try:
            return bytes(self.store.ros1_to_cdr(self.raw, self.msgtype))
        except (SerdeError, *_BROKEN) as e:
            raise self._unreadable(e) from e

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.topic} at {self.time_ns} ns: a {self.msgtype} cannot be read: {error}")


class BagReader:
    """Reads a bag: a rosbag2 folder, one of its files, or a ROS 1 ``.bag``. Use as a context manager.

    Attributes:
        topics: by name.
        damage: one line naming the file and the place where it is cut off or damaged; None while nothing was
            found. What lies before is delivered by :meth:`messages`. A damaged index is found when opening,
            damage in the middle when reading.

    Raises:
        DataError: no such bag, or nothing in it can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise DataError(f"bag {self.path} does not exist")
        self.topics: dict[str, Topic] = {}
        self.damage: str | None = None
        self._reader: AnyReader | None = None
        self._salvaged_span = (0, 0)
        self._store = get_typestore(STORE)
        try:
            self._reader = self._open()
        except (*_BROKEN, FileNotFoundError) as e:
            self._salvage_topics(e)

    def __enter__(self) -> "BagReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def indexed(self) -> bool:
        """Whether a span of time is found at once; a damaged bag is read from its front each time."""
        return self._reader is not None

    @property
    def start_ns(self) -> int:
        """Recording time of the first message."""
        return self._span()[0]

    @property
    def end_ns(self) -> int:
        """Recording time just after the last message."""
        return self._span()[1]

    def _span(self) -> tuple[int, int]:
        if self._reader is not None:
            return int(self._reader.start_time), int(self._reader.end_time)
        return self._salvaged_span

    def messages(
        self,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[BagMessage]:
        """Messages of ``topics`` (None: all) in order of time, or of the file where the bag is damaged."""
        if self._reader is None:
            yield from self._salvaged(topics, start_ns, stop_ns)
            return
        wanted = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not wanted:
            return
        ros1, last = not self._reader.is2, 0
        # A ROS 1 message is converted by layout, for which the types must be those of ROS 2 (no Header.seq).
        store = self._store if ros1 else self._reader.typestore
        try:
            for connection, time, raw in self._reader.messages(wanted, start_ns, stop_ns):
                last = time
                yield BagMessage(connection.topic, connection.msgtype, time, bytes(raw), ros1, store)
        except _BROKEN as e:
            self.damage = f"bag {self.path} is damaged after {last} ns: {e}; what lies before was read"

    def for_ros2(self, topic: Topic) -> Topic | None:
        """The topic as a rosbag2 holds it: with the definition and hash of its type as far as they are known.

        None for a type of ROS 1 whose definition cannot be used: its messages cannot be converted.
        """
        store = self._reader.typestore if self._reader is not None and self._reader.is2 else self._store
        known = topic.msgtype in store.fielddefs
        if topic.encoding == "ros1msg" and not known:
            return None
        if known and topic.encoding not in ("ros2msg", "ros2idl"):
            definition, _ = store.generate_msgdef(topic.msgtype, ros_version=2)
            topic = replace(topic, definition=definition, encoding="ros2msg")
        if known and not topic.digest:
            topic = replace(topic, digest=store.hash_rihs01(topic.msgtype))
        return topic

    def _open(self) -> AnyReader:
        reader = AnyReader([self.path], default_typestore=self._store)
        reader.open()
        for name, info in reader.topics.items():
            qos = tuple(q for c in info.connections for q in getattr(c.ext, "offered_qos_profiles", ()))
            first = info.connections[0]
            msgtype = info.msgtype or first.msgtype
            encoding = _ENCODINGS[first.msgdef.format] if reader.is2 else "ros1msg"
            latched = any(getattr(c.ext, "latching", 0) for c in info.connections)
            about = (first.msgdef.data, encoding, first.digest if reader.is2 else "", latched)
            self.topics[name] = Topic(name, msgtype, info.msgcount, qos, *about)
            if not reader.is2:
                self._register(Channel(name, msgtype, first.msgdef.data, encoding))
        return reader

    # --- damaged bags ------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        return sorted((p for p in self.path.iterdir() if p.suffix in _SUFFIXES), key=_by_number)

    def _salvage_topics(self, why: Exception) -> None:
        files = self._files()
        if not files:
            raise DataError(f"{self.path} is no bag: no {', '.join(_SUFFIXES)} file in it") from why
        found: dict[str, Topic] = {}
        known: set[Channel] = set()
        start, end = 1 << 63, 0
        for channel, time, _ in self._scan(files):
            start, end = min(start, time), max(end, time + 1)
            before = found.get(channel.topic)
            latched = channel.topic.endswith("tf_static")  # the QoS is not read from damaged bags
            found[channel.topic] = Topic(
                channel.topic,
                channel.msgtype,
                before.count + 1 if before else 1,
                definition=channel.definition,
                encoding=channel.encoding,
                latched=latched,
            )
            if channel not in known:
                known.add(channel)
                self._register(channel)
        self.topics, self._salvaged_span = found, (start, end)
        if self.damage is None:  # every file reads to its end, so it is the metadata that failed
            self.damage = f"bag {self.path}: {why}; its files were read without their metadata"
        if not found:
            raise DataError(f"{self.damage}; nothing of it can be read") from why

    def _scan(self, files: list[Path]) -> Iterator[tuple[Channel, int, bytes]]:
        for path in files:
            try:
                yield from salvage(path)
            except Cut as cut:
                size = path.stat().st_size
                self.damage = (
                    f"bag file {path} is cut off or damaged at byte {cut.offset} of {size}: {cut.reason}; "
                    "what lies before was read"
                )

    def _salvaged(
        self, topics: Collection[str] | None, start_ns: int | None, stop_ns: int | None
    ) -> Iterator[BagMessage]:
        for channel, time, raw in self._scan(self._files()):
            if topics is not None and channel.topic not in topics:
                continue
            if (start_ns is None or time >= start_ns) and (stop_ns is None or time < stop_ns):
                ros1 = channel.encoding == "ros1msg"
                yield BagMessage(channel.topic, channel.msgtype, time, raw, ros1, self._store)

    def _register(self, channel: Channel) -> None:
        """Types that the bag defines and the store does not know."""
        if channel.msgtype in self._store.fielddefs or not channel.definition:
            return
        idl = channel.encoding == "ros2idl"
        with suppress(*_BROKEN):  # a type that cannot be registered is reported when it is decoded
            types = (
                get_types_from_idl(channel.definition)
                if idl
                else get_types_from_msg(channel.definition, channel.msgtype)
            )
            self._store.register({k: v for k, v in types.items() if k not in self._store.fielddefs})


def _by_number(path: Path) -> tuple[str, int]:
    """Files of a split bag in their order: ``bag_2`` before ``bag_10``."""
    name, _, number = path.stem.rpartition("_")
    return (name, int(number)) if number.isdigit() else (path.stem, -1)


def header_stamp_ns(cdr: bytes | memoryview) -> int:
    """Stamp of a serialised ROS 2 message that begins with a ``std_msgs/Header``, nanoseconds.

    Raises:
        DataError: too short to hold one.
    """
    if len(cdr) < 12:
        raise DataError(f"a serialised message of {len(cdr)} bytes holds no header")
    seconds, nanoseconds = struct.unpack_from("<iI" if cdr[1] & 1 else ">iI", cdr, 4)
    return int(seconds * 1_000_000_000 + nanoseconds)
