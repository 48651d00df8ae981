# SPDX-License-Identifier: Apache-2.0
"""Bags of every kind read alike; cut-off and damaged ones deliver what lies before and name file and place."""

from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lidargen_ros.bags.reader import BagReader, header_stamp_ns
from lidargen_ros.bags.writer import BagWriter
from lidargen_ros.errors import DataError

KINDS = ["mcap", "mcap-zstd", "sqlite", "ros1", "ros1-lz4"]
FRAMES = 60
STEP = 100_000_000
START = 1_700_000_000_000_000_000
NODE_TYPE = "lidargen_test/msg/Own"


def images(store) -> list:
    """JPEG-like messages of 4 to 60 kB."""
    image, header, time = (
        store.types[f"{t}"]
        for t in ("sensor_msgs/msg/CompressedImage", "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )
    rng = np.random.default_rng(7)
    out = []
    for i in range(FRAMES):
        stamp = time(sec=1_700_000_000 + i // 10, nanosec=i % 10 * STEP)
        about = (
            header(seq=i, stamp=stamp, frame_id="cam")
            if "seq" in header.__annotations__
            else header(stamp=stamp, frame_id="cam")
        )
        out.append(
            image(header=about, format="jpeg", data=rng.integers(0, 256, rng.integers(4000, 60000), np.uint8))
        )
    return out


def write(folder: Path, kind: str) -> Path:
    """A bag with /a/image, every frame, and /info, every tenth; returns the path of its data file."""
    ros1 = kind.startswith("ros1")
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("uint32 number\nstring text", NODE_TYPE))
    own = store.types[NODE_TYPE]
    if ros1:
        writer = Ros1Writer(folder.with_suffix(".bag"))
        if kind.endswith("lz4"):
            writer.set_compression(Ros1Writer.CompressionFormat.LZ4)
    else:
        plugin = StoragePlugin.SQLITE3 if kind == "sqlite" else StoragePlugin.MCAP
        writer = Ros2Writer(folder, version=8, storage_plugin=plugin)
        if kind.endswith("zstd"):
            writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    serialize = store.serialize_ros1 if ros1 else store.serialize_cdr
    with writer:
        camera = writer.add_connection("/a/image", "sensor_msgs/msg/CompressedImage", typestore=store)
        info = writer.add_connection("/info", NODE_TYPE, typestore=store)
        for i, message in enumerate(images(store)):
            writer.write(camera, START + i * STEP, serialize(message, message.__msgtype__))
            if i % 10 == 0:
                writer.write(info, START + i * STEP + 1, serialize(own(number=i, text="ä"), NODE_TYPE))
    if ros1:
        return folder.with_suffix(".bag")
    return folder / f"{folder.name}.{'db3' if kind == 'sqlite' else 'mcap'}"


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> dict[str, Path]:
    """One intact bag per kind, made once."""
    root = tmp_path_factory.mktemp("bags")
    return {kind: write(root / kind, kind) for kind in KINDS}


def numbers(reader: BagReader) -> list[int]:
    """Frame numbers of the images that the reader delivers; checks that each is whole."""
    want = images(get_typestore(Stores.ROS2_HUMBLE))
    found = []
    for m in reader.messages(["/a/image"]):
        i = (m.time_ns - START) // STEP
        np.testing.assert_array_equal(m.decode().data, want[i].data)
        assert header_stamp_ns(m.cdr()) == START + i * STEP
        found.append(i)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_intact_bags(bags, kind) -> None:
    with BagReader(bags[kind]) as reader:
        assert {t.name: (t.msgtype, t.count) for t in reader.topics.values()} == {
            "/a/image": ("sensor_msgs/msg/CompressedImage", FRAMES),
            "/info": (NODE_TYPE, 6),
        }
        assert numbers(reader) == list(range(FRAMES))
        assert [(m.decode().number, m.decode().text) for m in reader.messages(["/info"])] == [
            (i, "ä") for i in range(0, FRAMES, 10)
        ]
        some = reader.messages(["/a/image"], START + 5 * STEP, START + 8 * STEP)
        assert [(m.time_ns - START) // STEP for m in some] == [5, 6, 7]
        assert len(list(reader.messages())) == FRAMES + 6
        assert list(reader.messages(["/nothing"])) == []
        assert reader.damage is None


def test_a_folder_and_its_file_read_alike(bags) -> None:
    for path in (bags["mcap"], bags["mcap"].parent, bags["sqlite"].parent):
        with BagReader(path) as reader:
            assert numbers(reader) == list(range(FRAMES))


def cut(bag: Path, into: Path, size: int) -> Path:
    """A copy whose data file ends after ``size`` bytes; rosbag2 bags keep their folder and metadata."""
    folder = into
    if bag.suffix != ".bag":
        folder = into / "bag"
        folder.mkdir()
        (folder / "metadata.yaml").write_bytes((bag.parent / "metadata.yaml").read_bytes())
    (folder / bag.name).write_bytes(bag.read_bytes()[:size])
    return folder / bag.name if bag.suffix == ".bag" else folder


def whole_before(bag: Path, size: int, kind: str) -> int:
    """How many images lie completely before the cut, found by their bytes (uncompressed kinds only)."""
    data = bag.read_bytes()
    want = images(get_typestore(Stores.ROS2_HUMBLE))
    return sum(0 <= data.find(m.data.tobytes()) <= size - m.data.size for m in want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_bags_deliver_what_lies_before(bags, kind, share, tmp_path) -> None:
    size = int(bags[kind].stat().st_size * share)
    path = cut(bags[kind], tmp_path, size)
    with BagReader(path) as reader:
        found = numbers(reader)
        assert found == list(range(len(found)))
        assert reader.topics["/a/image"].count == len(found)
        if kind in ("mcap", "ros1"):
            assert len(found) == whole_before(bags[kind], size, kind)
        else:
            assert len(found) >= int(FRAMES * share) - 6
        assert reader.damage is not None
        assert str(bags[kind].name) in reader.damage
        assert "cut off or damaged at byte" in reader.damage


@pytest.mark.parametrize("kind", ["mcap", "ros1"])
def test_any_cut_raises_nothing_else(bags, kind, tmp_path) -> None:
    whole = bags[kind].stat().st_size
    rng = np.random.default_rng(1)
    for n, size in enumerate([0, 1, 7, 8, 9, 17, 40, 100, *rng.integers(0, whole, 12), whole - 1]):
        folder = tmp_path / str(n)
        folder.mkdir()
        try:
            with BagReader(cut(bags[kind], folder, int(size))) as reader:
                found = numbers(reader)
                assert found == list(range(len(found)))
                assert reader.damage
        except DataError as e:
            assert bags[kind].name in str(e)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_raises_nothing_else(bags, kind, tmp_path) -> None:
    data = bytearray(bags[kind].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(np.random.default_rng(2).integers(0, 256, 4096, np.uint8))
    path = tmp_path / bags[kind].name
    path.write_bytes(data)
    try:
        with BagReader(path) as reader:
            count = sum(1 for _ in reader.messages(["/a/image"]))
            assert count > 10
            assert reader.damage is None or path.name in reader.damage
    except DataError as e:
        assert path.name in str(e)


def test_a_bag_without_metadata_is_read(bags, tmp_path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "x.mcap").write_bytes(bags["mcap"].read_bytes())
    with BagReader(folder) as reader:
        assert numbers(reader) == list(range(FRAMES))
        assert reader.damage
        assert "without their metadata" in reader.damage


def test_what_is_no_bag_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        BagReader(tmp_path / "none")
    with pytest.raises(DataError, match="is no bag"):
        BagReader(tmp_path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=r"x\.txt.* suffix"):
        BagReader(tmp_path / "x.txt")
    (tmp_path / "x.mcap").write_text("hello, this is not an MCAP file at all")
    with pytest.raises(DataError, match=r"x\.mcap.*not an MCAP file"):
        BagReader(tmp_path / "x.mcap")


def test_a_message_that_does_not_fit_its_type_names_the_topic(bags, tmp_path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write("/points", "sensor_msgs/msg/PointCloud2", START, b"\0\1\0\0\1\2\3")
    with BagReader(tmp_path / "bag") as reader, pytest.raises(DataError, match="/points at 17"):
        next(reader.messages()).decode()


def test_written_bags_read_back_and_close_when_the_block_raises(tmp_path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    text = store.types["std_msgs/msg/String"](data="table")
    with pytest.raises(RuntimeError, match="stop"), BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/metadata", "std_msgs/msg/String", latched=True)
        for i in range(5):
            writer.write("/metadata", "std_msgs/msg/String", START + i, writer.serialize(text))
        raise RuntimeError("stop")
    assert writer.counts["/metadata"] == 5
    with BagReader(tmp_path / "bag") as reader:
        assert [m.decode().data for m in reader.messages()] == ["table"] * 5
        assert reader.topics["/metadata"].qos[0].durability.name == "TRANSIENT_LOCAL"
        assert reader.damage is None
    assert (tmp_path / "bag" / "metadata.yaml").is_file()
    with pytest.raises(DataError, match="exists already"):
        BagWriter(tmp_path / "bag")


def test_a_recording_that_was_killed_is_readable(tmp_path) -> None:
    writer = BagWriter(tmp_path / "bag", compress=True)
    store = get_typestore(Stores.ROS2_JAZZY)
    for i, message in enumerate(images(store)):
        writer.write("/a/image", message.__msgtype__, START + i * STEP, writer.serialize(message))
    writer.flush()  # as the kernel keeps what was written before SIGKILL
    with BagReader(tmp_path / "bag") as reader:
        found = numbers(reader)
        assert found == list(range(len(found)))
        assert len(found) > FRAMES - 40
        assert reader.damage


def test_headers() -> None:
    assert (
        header_stamp_ns(b"\0\1\0\0" + (5).to_bytes(4, "little") + (7).to_bytes(4, "little")) == 5_000_000_007
    )
    assert header_stamp_ns(b"\0\0\0\0" + (5).to_bytes(4, "big") + (7).to_bytes(4, "big")) == 5_000_000_007
    with pytest.raises(DataError, match="holds no header"):
        header_stamp_ns(b"\0\1")
