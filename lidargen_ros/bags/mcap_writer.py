# SPDX-License-Identifier: Apache-2.0
"""Writes MCAP files (mcap.dev/spec, profile ros2) whose chunks may be packed elsewhere, or copied from another file.

What rosbags' writer does not offer is why this exists: chunks are compressed on other threads, and files with the
same channels are joined without unpacking anything.
"""

import struct
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
CHUNK_BYTES = 1 << 20
# Level 1 makes clouds as small as level 3 in half the time (3.7 MB: 2.0 MB, 13 against 24 ms on one core).
LEVEL = 1
_AHEAD = 8  # chunks that may be on their way through the executor

_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _CHUNK_INDEX = range(1, 9)
_STATISTICS, _METADATA, _METADATA_INDEX, _SUMMARY_OFFSET, _DATA_END = 0x0B, 0x0C, 0x0D, 0x0E, 0x0F


class WriteError(DataError):
    """Nothing more can be written: the disk is full, read-only or gone."""


class Message(NamedTuple):
    """A serialised message and the channel to which it belongs."""

    channel: int
    time_ns: int
    data: bytes


class Chunk(NamedTuple):
    """A chunk ready to be written; ``offsets``: by channel, (time, offset in the unpacked chunk) of each message."""

    body: bytes
    start_ns: int
    end_ns: int
    compression: str
    packed: int
    unpacked: int
    offsets: dict[int, list[tuple[int, int]]]


def pack_chunk(messages: Sequence[Message], compress: bool = True) -> Chunk:
    """Put messages (at least one) together and compress them; the same messages always give the same bytes."""
    parts: list[bytes] = []
    offsets: dict[int, list[tuple[int, int]]] = {}
    size = 0
    for channel, time_ns, data in messages:
        offsets.setdefault(channel, []).append((time_ns, size))
        head = struct.pack("<BQHIQQ", _MESSAGE, 22 + len(data), channel, 0, time_ns, time_ns)
        parts += (head, data)
        size += len(head) + len(data)
    raw = b"".join(parts)
    packed = zstd.compress(raw, LEVEL) if compress else raw
    compression = "zstd" if compress else ""
    times = [m.time_ns for m in messages]
    head = struct.pack("<QQQI", min(times), max(times), size, zlib.crc32(raw))
    body = b"".join((head, _text(compression), struct.pack("<Q", len(packed)), packed))
    return Chunk(body, min(times), max(times), compression, len(packed), size, offsets)


class McapWriter:
    """One MCAP file: channels first, then chunks in the order in which they were given.

    Args:
        path: file to make; it must not exist.
        executor: packs chunks beside the caller; None packs them at once. The bytes do not depend on it.

    Raises:
        WriteError: the file cannot be made.
    """

    def __init__(self, path: Path, *, compress: bool = True, executor: Executor | None = None) -> None:
        self.path, self._compress, self._executor = path, compress, executor
        self.counts: Counter[int] = Counter()
        self.start_ns, self.end_ns = (1 << 63) - 1, 0
        self._schemas: dict[str, int] = {}
        self._summary: list[tuple[int, bytes]] = []  # schemas and channels, as they go into the summary
        self._chunk_index: list[bytes] = []
        self._open: list[Message] = []
        self._open_bytes = 0
        self._pending: deque[Chunk | Future[Chunk]] = deque()
        try:
            self._file: BinaryIO = path.open("xb")
        except OSError as e:
            raise WriteError(f"{path} cannot be made: {e.strerror or e}") from e
        self._put(MAGIC)
        self._record(_HEADER, _text("ros2") + _text("lidargen_ros"))

    def add_channel(self, topic: str, msgtype: str, definition: str, encoding: str, qos: str) -> int:
        """Announce a topic; returns its number, counted from 1. ``qos``: offered profiles as YAML."""
        if msgtype not in self._schemas:
            number = self._schemas[msgtype] = len(self._schemas) + 1
            body = struct.pack("<H", number) + _text(msgtype) + _text(encoding) + _text(definition)
            self._announce(_SCHEMA, body)
        channel = sum(kind == _CHANNEL for kind, _ in self._summary) + 1
        about = _text("offered_qos_profiles") + _text(qos)
        body = struct.pack("<HH", channel, self._schemas[msgtype]) + _text(topic) + _text("cdr")
        self._announce(_CHANNEL, body + struct.pack("<I", len(about)) + about)
        return channel

    def write(self, message: Message) -> None:
        """One message; it reaches the file with its chunk. Raises WriteError."""
        self._open.append(message)
        self._open_bytes += len(message.data)
        if self._open_bytes > CHUNK_BYTES:
            self._close_chunk()

    def append(self, chunk: Chunk | Future[Chunk]) -> None:
        """A chunk made by :func:`pack_chunk` or read by :func:`read_chunks`, or one in the making. Raises WriteError."""
        self._close_chunk()
        self._pending.append(chunk)
        self._drain(_AHEAD)

    def flush(self) -> None:
        """Hand over to the system all that was given so far. Raises WriteError."""
        self._close_chunk()
        self._drain(0)
        self._guarded(self._file.flush)

    def finish(self, metadata: str = "") -> None:
        """Write what is open, then index and footer, and close. ``metadata``: rosbag2's, repeated in the file."""
        self.flush()
        offsets: list[bytes] = []
        about = struct.pack("<QQ", self._file.tell(), 0)
        if metadata:
            pair = _text("serialized_metadata") + _text(metadata)
            start = self._file.tell()
            self._record(_METADATA, _text("rosbag2") + struct.pack("<I", len(pair)) + pair)
            about = struct.pack("<QQ", start, self._file.tell() - start) + _text("rosbag2")
        self._record(_DATA_END, struct.pack("<I", 0))
        groups = [(kind, [b for k, b in self._summary if k == kind]) for kind in (_SCHEMA, _CHANNEL)]
        groups += [(_STATISTICS, [self._statistics(bool(metadata))]), (_CHUNK_INDEX, self._chunk_index)]
        groups += [(_METADATA_INDEX, [about] if metadata else [])]
        begin = self._file.tell()
        for kind, bodies in groups:
            start = self._file.tell()
            for body in bodies:
                self._record(kind, body)
            if bodies:
                offsets.append(struct.pack("<BQQ", kind, start, self._file.tell() - start))
        summary_offsets = self._file.tell()
        for body in offsets:
            self._record(_SUMMARY_OFFSET, body)
        self._record(_FOOTER, struct.pack("<QQI", begin, summary_offsets, 0))
        self._put(MAGIC)
        self._guarded(self._file.close)

    def abort(self) -> None:
        """Close without an index; what was written can still be read from the front."""
        self._open, self._open_bytes = [], 0
        self._pending.clear()
        with suppress(OSError):  # closing flushes once more, which fails again on a full disk
            self._file.close()

    def _announce(self, kind: int, body: bytes) -> None:
        self._summary.append((kind, body))
        self._record(kind, body)

    def _close_chunk(self) -> None:
        if not self._open:
            return
        messages, self._open, self._open_bytes = self._open, [], 0
        if self._executor is None:
            self._pending.append(pack_chunk(messages, self._compress))
        else:
            self._pending.append(self._executor.submit(pack_chunk, messages, self._compress))
        self._drain(_AHEAD if self._executor else 0)

    def _drain(self, keep: int) -> None:
        while len(self._pending) > keep:
            chunk = self._pending.popleft()
            self._write_chunk(chunk.result() if isinstance(chunk, Future) else chunk)

    def _write_chunk(self, chunk: Chunk) -> None:
        start = self._file.tell()
        self._record(_CHUNK, chunk.body)
        end = self._file.tell()
        offsets = b""
        for channel, entries in chunk.offsets.items():
            offsets += struct.pack("<HQ", channel, self._file.tell())
            table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            self._record(_MESSAGE_INDEX, struct.pack("<HI", channel, len(table)) + table)
            self.counts[channel] += len(entries)
        self._chunk_index.append(
            struct.pack("<QQQQI", chunk.start_ns, chunk.end_ns, start, end - start, len(offsets))
            + offsets
            + struct.pack("<Q", self._file.tell() - end)
            + _text(chunk.compression)
            + struct.pack("<QQ", chunk.packed, chunk.unpacked)
        )
        self.start_ns, self.end_ns = min(self.start_ns, chunk.start_ns), max(self.end_ns, chunk.end_ns)

    def _statistics(self, with_metadata: bool) -> bytes:
        channels = sum(kind == _CHANNEL for kind, _ in self._summary)
        counts = b"".join(struct.pack("<HQ", c, self.counts[c]) for c in range(1, channels + 1))
        total = self.counts.total()
        head = struct.pack(
            "<QHIIII", total, len(self._schemas), channels, 0, with_metadata, len(self._chunk_index)
        )
        return head + struct.pack("<QQI", self.start_ns if total else 0, self.end_ns, len(counts)) + counts

    def _record(self, kind: int, body: bytes) -> None:
        self._put(struct.pack("<BQ", kind, len(body)))
        self._put(body)

    def _put(self, data: bytes) -> None:
        self._guarded(self._file.write, data)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as e:
            raise WriteError(f"{self.path} cannot be written: {e.strerror or e}") from e


def read_chunks(path: Path) -> Iterator[Chunk]:
    """The chunks of a file that :class:`McapWriter` finished, as they are.

    Raises:
        DataError: the file ends early or is not one of ours.
    """
    with path.open("rb") as file:
        held: Chunk | None = None
        for kind, body in _records(file, path):
            if kind == _MESSAGE_INDEX and held is not None:
                channel, size = struct.unpack_from("<HI", body)
                entries = struct.iter_unpack("<QQ", body[6 : 6 + size])
                held.offsets[channel] = [(time, offset) for time, offset in entries]
                continue
            if held is not None:
                yield held
                held = None
            if kind == _CHUNK:
                start, end, unpacked, _, length = struct.unpack_from("<QQQII", body)
                compression = body[32 : 32 + length].decode()
                (packed,) = struct.unpack_from("<Q", body, 32 + length)
                held = Chunk(body, start, end, compression, packed, unpacked, {})
            elif kind == _DATA_END:
                return
    raise DataError(f"{path} ends early; delete it, and it will be made again")


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    if file.read(8) != MAGIC:
        raise DataError(f"{path} is no MCAP file; delete it, and it will be made again")
    while len(head := file.read(9)) == 9:
        kind, size = struct.unpack("<BQ", head)
        body = file.read(size)
        if len(body) < size:
            return
        yield kind, body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
