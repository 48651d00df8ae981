# SPDX-License-Identifier: Apache-2.0
"""MCAP files: read by rosbags, the same whoever packs the chunks, joined without unpacking."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lidargen_ros.bags.mcap_writer import McapWriter, Message, WriteError, pack_chunk, read_chunks
from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.writer import LATCHED, RELIABLE, BagWriter, add_topic, known_topic
from lidargen_ros.errors import DataError

START = 1_700_000_000_000_000_000
TOPICS = [
    known_topic("/a", "std_msgs/msg/String", [RELIABLE]),
    known_topic("/b", "std_msgs/msg/String", [LATCHED]),
]


def text(number: int) -> bytes:
    """A String in CDR of some 100 kB, which compresses."""
    data = bytes(np.random.default_rng(number).integers(65, 91, 100_000, np.uint8)) + b"\0"
    return b"\0\1\0\0" + len(data).to_bytes(4, "little") + data


def write(path, numbers, executor=None):
    file = McapWriter(path, executor=executor)
    for topic in TOPICS:
        add_topic(file, topic)
    for i in numbers:
        if i % 7 == 3:
            file.append(pack_chunk([Message(2, START + i, text(i))]))
        else:
            file.write(Message(1, START + i, text(i)))
    file.finish()
    return path


def read(path):
    with BagReader(path) as bag:
        found = [(m.topic, m.time_ns, m.raw) for m in bag.messages()]
        assert bag.damage is None
        assert sum(t.count for t in bag.topics.values()) == len(found)
        return found


def test_chunks_packed_on_threads_give_the_same_file(tmp_path) -> None:
    alone = write(tmp_path / "a.mcap", range(40))
    with ThreadPoolExecutor(4) as pool:
        together = write(tmp_path / "b.mcap", range(40), pool)
    assert alone.read_bytes() == together.read_bytes()
    assert read(alone) == [("/b" if i % 7 == 3 else "/a", START + i, text(i)) for i in range(40)]


def test_files_of_the_same_topics_are_joined_chunk_by_chunk(tmp_path) -> None:
    parts = [write(tmp_path / f"{i}.mcap", range(10 * i, 10 * i + 10)) for i in range(3)]
    parts.insert(1, write(tmp_path / "empty.mcap", []))
    with BagWriter(tmp_path / "bag", name="whole") as bag:
        for topic in TOPICS:
            bag.add_topic(topic)
        for part in parts:
            for chunk in read_chunks(part):
                bag.append(chunk)
    assert read(tmp_path / "bag") == read(tmp_path / "bag" / "whole.mcap")
    assert read(tmp_path / "bag") == [m for part in parts for m in read(part)]
    with BagReader(tmp_path / "bag") as reader:
        for topic in TOPICS:
            back = reader.topics[topic.name]
            assert (back.qos, back.definition, back.digest) == (topic.qos, topic.definition, topic.digest)


def test_a_part_that_ends_early_is_named(tmp_path) -> None:
    path = write(tmp_path / "a.mcap", range(20))
    data = path.read_bytes()
    for size in (3, 200, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"a\.mcap (ends early|is no MCAP file)"):
            list(read_chunks(path))


def test_a_file_that_cannot_be_made_is_named(tmp_path) -> None:
    with pytest.raises(WriteError, match=r"none/x\.mcap cannot be made: No such file"):
        McapWriter(tmp_path / "none" / "x.mcap")
