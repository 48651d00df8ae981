# SPDX-License-Identifier: Apache-2.0
"""Reads bag files from the front without their index: everything up to where a file is cut off or damaged.

MCAP (mcap.dev/spec), SQLite (rosbag2) and ROS 1 (wiki.ros.org/Bags/Format/2.0). Intact bags are read with rosbags.
"""

import bz2
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import apsw
from lz4.frame import LZ4FrameDecompressor
from rosbags.typesys.msg import normalize_msgtype

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_RECORD = 1 << 30
"""Longer records are taken for damage, not for a reason to allocate memory."""


class Channel(NamedTuple):
    """A topic of one file."""

    topic: str
    msgtype: str
    definition: str
    encoding: str  # ros2msg, ros2idl, ros1msg; empty: no definition


class Cut(Exception):
    """The file cannot be read beyond byte ``offset``."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset, self.reason = offset, reason


Record = tuple[Channel, int, bytes]


def salvage(path: Path) -> Iterator[Record]:
    """(channel, time in ns, serialised message) in the order of the file.

    Raises:
        Cut: where the file ends early or is damaged; what came before has been delivered.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".mcap": _mcap,
        ".db3": _sqlite,
        ".bag": _ros1,
    }
    if path.suffix not in readers:
        raise Cut(0, f"{path.suffix or 'no'} suffix is not one of {', '.join(readers)}")
    yield from readers[path.suffix](path)


def _take(file: BinaryIO, size: int) -> bytes:
    start = file.tell()
    if size > MAX_RECORD:
        raise Cut(start, f"a record claims {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise Cut(start + len(data), "the file ends within a record")
    return data


# --- MCAP ------------------------------------------------------------------------------------------------------------

_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END, _FOOTER = 0x03, 0x04, 0x05, 0x06, 0x0F, 0x02


def _mcap(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        if _take(file, 8) != b"\x89MCAP0\r\n":
            raise Cut(0, "not an MCAP file")
        reader = _McapRecords()
        while head := file.read(9):
            at = file.tell() - len(head)
            if len(head) < 9:
                raise Cut(at, "the file ends within a record")
            kind, size = struct.unpack("<BQ", head)
            if kind in (_DATA_END, _FOOTER):
                return
            if size > MAX_RECORD:
                raise Cut(at, f"a record claims {size} bytes")
            body = file.read(size)
            whole = len(body) == size
            try:
                if kind == _CHUNK:
                    yield from reader.chunk(body, whole)
                elif whole:
                    yield from reader.record(kind, body)
            except (struct.error, IndexError, KeyError, ValueError, RuntimeError, zstd.ZstdError) as e:
                raise Cut(at, f"a record is damaged ({e})") from e
            if not whole:
                raise Cut(at + 9 + len(body), "the file ends within a record")
        raise Cut(file.tell(), "the file ends without a footer")


class _McapRecords:
    """Schemas and channels seen so far."""

    def __init__(self) -> None:
        self._schemas: dict[int, tuple[str, str, str]] = {0: ("", "", "")}
        self._channels: dict[int, Channel] = {}

    def record(self, kind: int, body: bytes) -> Iterator[Record]:
        if kind == _SCHEMA:
            name, encoding, definition = _strings(body, 2, 3)
            self._schemas[struct.unpack_from("<H", body)[0]] = (name, encoding, definition)
        elif kind == _CHANNEL:
            number, schema = struct.unpack_from("<HH", body)
            name, encoding, definition = self._schemas[schema]
            self._channels[number] = Channel(_strings(body, 4, 1)[0], name, definition, encoding)
        elif kind == _MESSAGE:
            number, _, time = struct.unpack_from("<HIQ", body)
            yield self._channels[number], time, body[22:]

    def chunk(self, body: bytes, whole: bool) -> Iterator[Record]:
        """Messages of a chunk, of a cut one as far as it goes."""
        (checksum,) = struct.unpack_from("<I", body, 24)
        (compression,) = _strings(body, 28, 1)
        data = _unpacked(compression, body[28 + 4 + len(compression) + 8 :])
        if whole and checksum and zlib.crc32(data) != checksum:
            raise ValueError("checksum of a chunk")
        at = 0
        while at + 9 <= len(data):
            kind, size = struct.unpack_from("<BQ", data, at)
            if at + 9 + size > len(data):
                break
            yield from self.record(kind, data[at + 9 : at + 9 + size])
            at += 9 + size


def _strings(body: bytes, at: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", body, at)
        if at + 4 + length > len(body):
            raise ValueError("a text is longer than its record")
        found.append(body[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def _unpacked(compression: str, data: bytes) -> bytes:
    """Decompressed bytes, of a stream that ends early as far as it goes."""
    if compression == "zstd":
        return zstd.ZstdDecompressor().decompress(data)
    if compression == "lz4":
        return LZ4FrameDecompressor().decompress(data)
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(data)
    return data


# --- SQLite ----------------------------------------------------------------------------------------------------------


class _Padded(apsw.VFS):
    """Shows SQLite a cut-off file in its full length, zeros at its end; otherwise it refuses to open it at all."""

    NAME = "lidargen_salvage"

    def __init__(self) -> None:
        super().__init__(self.NAME, "")
        self.beyond = False  # something behind the end was asked for

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        return _PaddedFile(self, name, flags)


class _PaddedFile(apsw.VFSFile):
    def __init__(self, vfs: _Padded, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._vfs = vfs

    def xFileSize(self) -> int:
        head = super().xRead(100, 0) if super().xFileSize() >= 100 else bytes(100)
        page = int.from_bytes(head[16:18], "big")
        full = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
        return max(full, super().xFileSize())

    def xRead(self, amount: int, offset: int) -> bytes:
        there = max(min(amount, super().xFileSize() - offset), 0)
        self._vfs.beyond |= there < amount
        return (super().xRead(there, offset) if there else b"").ljust(amount, b"\0")


def _sqlite(path: Path) -> Iterator[Record]:
    vfs = _Padded()
    done = 0
    try:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(f"file:{path.resolve()}?immutable=1", flags=flags, vfs=vfs.NAME)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        definitions: dict[str, tuple[str, str]] = {}
        if "message_definitions" in tables:
            definitions = {
                name: (text, encoding)
                for name, encoding, text in connection.execute(
                    "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                )
            }
        channels = {
            number: Channel(topic, kind, *definitions.get(kind, ("", "")))
            for number, topic, kind in connection.execute("SELECT id, name, type FROM topics")
        }
        # In the order of the rows, which needs no index that may lie behind the cut.
        for number, time, data in connection.execute("SELECT topic_id, timestamp, data FROM messages"):
            if vfs.beyond:
                raise Cut(path.stat().st_size, "the file ends within a message")
            yield channels[number], time, bytes(data)
            done += len(data)
    except (apsw.Error, KeyError, TypeError) as e:
        raise Cut(min(done, path.stat().st_size), f"the database is damaged ({e})") from e


# --- ROS 1 -----------------------------------------------------------------------------------------------------------

_ROS1_MESSAGE, _ROS1_CHUNK, _ROS1_CONNECTION = 2, 5, 7


def _ros1(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        if _take(file, 13) != b"#ROSBAG V2.0\n":
            raise Cut(0, "not a ROS 1 bag of version 2.0")
        channels: dict[int, Channel] = {}
        while start := file.read(4):
            at = file.tell() - len(start)
            if len(start) < 4:
                raise Cut(at, "the file ends within a record")
            header = _fields(_take(file, struct.unpack("<I", start)[0]))
            (size,) = struct.unpack("<I", _take(file, 4))
            if size > MAX_RECORD:
                raise Cut(at, f"a record claims {size} bytes")
            body = file.read(size)
            try:
                if header.get("op") == bytes([_ROS1_CHUNK]):
                    yield from _ros1_chunk(_unpacked(header["compression"].decode(), body), channels)
                elif len(body) == size:
                    yield from _ros1_record(header, body, channels)
            except (struct.error, KeyError, ValueError, OSError, RuntimeError) as e:
                raise Cut(at, f"a record is damaged ({e})") from e
            if len(body) < size:
                raise Cut(file.tell(), "the file ends within a record")


def _ros1_chunk(data: bytes, channels: dict[int, Channel]) -> Iterator[Record]:
    at = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        body = at + 4 + length + 4
        if body > len(data):
            return
        (size,) = struct.unpack_from("<I", data, body - 4)
        if body + size > len(data):
            return
        yield from _ros1_record(_fields(data[at + 4 : at + 4 + length]), data[body : body + size], channels)
        at = body + size


def _ros1_record(header: dict[str, bytes], body: bytes, channels: dict[int, Channel]) -> Iterator[Record]:
    op = header["op"][0]
    if op == _ROS1_CONNECTION:
        about = _fields(body)
        msgtype = normalize_msgtype(about["type"].decode())
        (number,) = struct.unpack("<I", header["conn"])
        channels[number] = Channel(
            header["topic"].decode(), msgtype, about["message_definition"].decode(), "ros1msg"
        )
    elif op == _ROS1_MESSAGE:
        (number,) = struct.unpack("<I", header["conn"])
        seconds, nanoseconds = struct.unpack("<II", header["time"])
        yield channels[number], seconds * 1_000_000_000 + nanoseconds, body


def _fields(data: bytes) -> dict[str, bytes]:
    """``name=value`` fields of a ROS 1 record header."""
    found, at = {}, 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        name, _, value = data[at + 4 : at + 4 + length].partition(b"=")
        found[name.decode()] = value
        at += 4 + length
    return found
