# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile clips: a clear error that names clip and member, bounded memory, no file outside."""

import io
import random
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from toy_clip import CLIP, npy, npz, rewrite, write_clip

from lidargen_ros.bags.archives import MIB, TarMembers, parse_npy, parse_npz
from lidargen_ros.bags.clips import ClipReader, list_clips
from lidargen_ros.errors import DataError, LidargenError

pytest.importorskip("av")
CAMERA = "camera_front_wide_120fov"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_clip(root, cameras=(CAMERA,))
    return root


@pytest.fixture
def root(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def read_all(root):
    with ClipReader(root, CLIP, (CAMERA,)) as clip:
        for frame in clip.frames:
            clip.range_map(frame)
            clip.intensity(frame)
            clip.image(frame, CAMERA)
            clip.rig(frame)
        return clip


def tar_of(root, folder="lidar"):
    return root / folder / f"{CLIP}.tar"


def key(frame, field):
    return f"{CLIP}.{frame:06d}.{field}"


def put(name, data):
    return lambda content: content.update({name: data})


def test_whole_clip_reads(root):
    assert read_all(root).frames == ("000000", "000002", "000004")


# --- spins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "data", "words"),
    [
        ("lidar_range.npz", b"not a zip", "not a readable npz"),
        ("lidar_range.npz", b"", "not a readable npz"),
        ("lidar_range.npz", npz(other=np.zeros(3, np.float16)), "no arr_0"),
        ("lidar_range.npz", npz(arr_0=np.zeros((3, 3), np.float16)), "expected at most"),
        ("lidar_range.npz", npz(arr_0=np.zeros(3, np.complex64)), "expected at most"),
        ("lidar_range.npz", npz(arr_0=np.array(["a"])), "expected at most"),
        ("lidar_row.npz", npz(arr_0=np.zeros(3, np.float32)), "kind iu"),
        ("lidar_col.npz", npz(arr_0=np.zeros(3, np.uint16)), "lengths differ"),
    ],
)
def test_damaged_spin_members(root, field, data, words):
    rewrite(tar_of(root), put(key(2, field), data))
    with pytest.raises(DataError, match=words) as error:
        read_all(root)
    assert CLIP in str(error.value)
    assert "000002" in str(error.value)


def spin(row, column, ranges):
    def change(content):
        content[key(2, "lidar_row.npz")] = npz(arr_0=np.array(row, np.int64))
        content[key(2, "lidar_col.npz")] = npz(arr_0=np.array(column, np.int64))
        content[key(2, "lidar_range.npz")] = npz(arr_0=np.array(ranges, np.float32))
        content.pop(key(2, "lidar_intensity.npz"))

    return change


@pytest.mark.parametrize(
    ("row", "column", "ranges", "words"),
    [
        ([], [], [], "empty spin"),
        ([0, 99], [0, 0], [1, 1], "outside the 15 x 360"),
        ([0, 0], [0, 360], [1, 1], "outside"),
        ([0, -1], [0, 0], [1, 1], "outside"),
        ([0], [0], [np.nan], "NaN, infinite or negative"),
        ([0], [0], [np.inf], "NaN, infinite or negative"),
        ([0], [0], [-2.0], "NaN, infinite or negative"),
        ([2**62], [0], [1.0], "outside"),
    ],
)
def test_impossible_spins(root, row, column, ranges, words):
    rewrite(tar_of(root), spin(row, column, ranges))
    with pytest.raises(DataError, match=words) as error:
        read_all(root)
    assert "000002" in str(error.value)


def test_doubled_pixels_keep_the_last_and_any_order_is_read(root):
    rewrite(tar_of(root), spin([7, 3, 3], [0, 5, 5], [9, 1, 2]))
    with ClipReader(root, CLIP, ()) as clip:
        ranges = clip.range_map("000002")
    assert ranges[3, 5] == 2
    assert ranges[7, 0] == 9
    assert (ranges > 0).sum() == 2


# --- memory --------------------------------------------------------------------------------------------------


def bomb(size):
    """An npz whose only array is ``size`` zero bytes: a thousandth of that on disk."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(size // MIB):
            member.write(bytes(MIB))
    return buffer.getvalue()


def test_zip_bomb_takes_no_memory(root):
    data = bomb(200 * MIB)
    assert len(data) < MIB
    rewrite(tar_of(root), put(key(0, "lidar_range.npz"), data))
    with ClipReader(root, CLIP, (CAMERA,)) as clip:
        tracemalloc.start()
        with pytest.raises(DataError, match="once decompressed"):
            clip.range_map("000000")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * MIB


def test_zip_bomb_that_lies_about_its_size():
    data = bytearray(bomb(64 * MIB))
    real = struct.pack("<I", zipfile.ZipFile(io.BytesIO(data)).infolist()[0].file_size)
    at = data.rfind(real)
    data[at : at + 4] = struct.pack("<I", 1000)  # in the central directory
    tracemalloc.start()
    with pytest.raises(DataError):
        parse_npz(bytes(data), "bomb", MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MIB


def test_array_that_claims_more_than_it_holds():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(DataError, match="allowed"):
        parse_npy(header.getvalue(), "x")
    with pytest.raises(DataError, match="damaged"):
        parse_npy(npy(np.zeros(100))[:-8], "x")
    with pytest.raises(DataError, match="damaged"):
        parse_npy(npy(np.zeros(100)) + b"more", "x")


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (0,)])
def test_array_shapes(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    if shape == (0,):
        assert parse_npy(header.getvalue(), "x").size == 0
    else:
        with pytest.raises(DataError):
            parse_npy(header.getvalue(), "x")


def test_python_objects_are_never_loaded(root):
    array = np.empty(1, object)
    array[0] = {"a": 1}
    with pytest.raises(DataError, match="objects"):
        parse_npy(npy(array, pickle=True), "x")
    rewrite(tar_of(root, "pose"), put(key(0, f"pose.{CAMERA}.npy"), npy(array, pickle=True)))
    with pytest.raises(DataError, match="objects"):
        read_all(root)


def test_sensor_configuration_of_absurd_size(root):
    path = root / "lidar_sensor_config" / f"{CLIP}.json"
    path.write_text(path.read_text().replace('"columns": 360', '"columns": 1000000000000'))
    with pytest.raises(DataError, match="not believable"):
        read_all(root)
    path.write_text('{"row_elevations_rad": [[[[')
    with pytest.raises(DataError, match="sensor configuration"):
        read_all(root)


# --- tars ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../evil.npz", f"../{CLIP}.000000.lidar_row.npz", "a\\..\\b"]
)
def test_member_names_that_point_elsewhere(root, name):
    before = sorted(p for p in root.parent.rglob("*"))
    rewrite(tar_of(root), put(name, b"x"))
    with pytest.raises(DataError, match="points elsewhere"):
        read_all(root)
    assert sorted(p for p in root.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(root, kind):
    info = tarfile.TarInfo(f"{CLIP}.000009.lidar_row.npz")
    info.type, info.linkname = kind, "/etc/passwd"
    rewrite(tar_of(root), put(info.name, info))
    with pytest.raises(DataError, match="not a plain file"):
        read_all(root)


def test_members_of_another_clip(root):
    rewrite(tar_of(root), put("other.000000.lidar_row.npz", b"x"))
    with pytest.raises(DataError, match="two clips"):
        read_all(root)


def test_tar_of_another_clip(root):
    rewrite(tar_of(root), lambda content: {k.replace(CLIP, "other"): v for k, v in content.items()})
    with pytest.raises(DataError, match="must agree"):
        read_all(root)


def test_too_many_members(root):
    with pytest.raises(DataError, match="more than 5 members"):
        TarMembers(tar_of(root), max_members=5)


def test_every_truncation_is_found(root):
    """Wherever a tar is cut, it is an error, never a shorter clip; tarfile alone would accept many of these."""
    path = tar_of(root)
    data = path.read_bytes()
    cuts = {0, 1, 100, 511, 512, 513, 1024, *range(0, len(data) - 10240, 4096 + 512), len(data) - 10240}
    end = max(i for i in range(0, len(data), 512) if data[i : i + 512] != bytes(512)) + 512
    for cut in sorted(c for c in cuts if c < end):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=str(path)):
            read_all(root)


def test_flipped_bytes_give_the_same_clip_or_a_known_error(root):
    rng = random.Random(0)
    for folder, suffix in (
        ("lidar", "tar"),
        ("pose", "tar"),
        ("ftheta_intrinsic", "tar"),
        ("metadata", "npz"),
    ):
        path = root / folder / f"{CLIP}.{suffix}"
        data = path.read_bytes()
        for _ in range(25):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 8))):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(changed)
            try:
                read_all(root)
            except LidargenError as error:
                assert CLIP in str(error)
        path.write_bytes(data)


def test_random_zip_content():
    rng = random.Random(1)
    good = npz(arr_0=np.arange(50, dtype=np.uint16))
    for _ in range(300):
        changed = bytearray(good)
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(len(good))] = rng.randrange(256)
        try:
            parse_npz(bytes(changed[: rng.randrange(1, len(good) + 1)]), "x", MIB)
        except DataError as error:
            assert str(error).startswith("x")


# --- metadata, poses, intrinsics, video ------------------------------------------------------------------------


def good_metadata(root):
    path = root / "metadata" / f"{CLIP}.npz"
    return path, dict(np.load(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("pose_list"), "lacks pose_list"),
        (lambda m: m.update(pose_list=m["pose_list"][:1]), "do not fit together"),
        (lambda m: m.update(pose_list=m["pose_list"].astype(np.int32)), "floats"),
        (lambda m: m["pose_list"].__setitem__((1, 0, 0, 3), np.nan), "NaN"),
        (lambda m: m["pose_list"].__setitem__((1, 0, 0, 0), 2.0), "not a rotation"),
        (
            lambda m: m["pose_list"].__setitem__((slice(None), 0, slice(3), 2), -m["pose_list"][:, 0, :3, 2]),
            "not a rot",
        ),
        (lambda m: m["pose_list"].__setitem__((0, 1, 3), (1, 0, 0, 1)), "not a rotation"),
        (lambda m: m.update(timestamps_list=m["timestamps_list"].astype(float)), "integer"),
        (lambda m: m.update(timestamps_list=m["timestamps_list"][:, ::-1]), "end after start"),
        (lambda m: m.update(frame_indices=np.array([0, 2, 4])), "expected text"),
        (lambda m: m.update(frame_indices=np.array(["000000", "x", "000004"])), "decimal"),
        (lambda m: m.update(frame_indices=np.array(["0", "000000", "000004"])), "occurs twice"),
        (lambda m: m.update(frame_indices=np.array([], "U6")), "do not fit together"),
    ],
)
def test_damaged_metadata(root, change, words):
    path, metadata = good_metadata(root)
    change(metadata)
    np.savez(path, **metadata)
    with pytest.raises(DataError, match=words) as error:
        read_all(root)
    assert CLIP in str(error.value)


def test_metadata_in_another_order_is_put_in_order(root):
    path, metadata = good_metadata(root)
    np.savez(path, **{name: array[::-1] for name, array in metadata.items()})
    with ClipReader(root, CLIP, (CAMERA,)) as clip:
        assert clip.frames == ("000000", "000002", "000004")
        times = [clip.times_us(frame)[0] for frame in clip.frames]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.eye(4) * 2, "not a rotation"),
        (np.diag([1.0, 1, -1, 1]), "not a rotation"),
        (np.eye(3), "expected one 4 x 4"),
        (np.eye(4, dtype=int), "floats"),
        (np.eye(4)[None].repeat(50, 0), "expected one 4 x 4|allowed"),
    ],
)
def test_damaged_camera_poses(root, pose, words):
    rewrite(tar_of(root, "pose"), put(key(4, f"pose.{CAMERA}.npy"), npy(pose)))
    with pytest.raises(DataError, match=words) as error:
        read_all(root)
    assert f"{CLIP}.000004.pose.{CAMERA}.npy" in str(error.value)


@pytest.mark.parametrize(
    "vector", [np.zeros(11), np.ones(12), np.full(11, np.nan), np.array(["a"]), np.ones((2, 2))]
)
def test_damaged_intrinsics(root, vector):
    rewrite(tar_of(root, "ftheta_intrinsic"), put(f"{CLIP}.ftheta_intrinsic.{CAMERA}.npy", npy(vector)))
    with pytest.raises(LidargenError, match=CLIP):
        read_all(root)


def video_of(root):
    return root / f"ftheta_{CAMERA}" / f"{CLIP}.mp4"


def test_video_shorter_than_the_metadata(root, tmp_path):
    """Frames beyond the video are left out and named, the others are read."""
    write_clip(tmp_path / "short", spins=2, cameras=(CAMERA,))
    shutil.copy(video_of(tmp_path / "short"), video_of(root))
    clip = read_all(root)
    assert clip.frames == ("000000", "000002")
    assert clip.missing == {f"video {CAMERA}": ["000004"]}
    with pytest.raises(DataError, match=r"frame 4 asked for, the video has 3"):
        clip.image("000004", CAMERA)


def test_damaged_videos(root):
    path = video_of(root)
    data = path.read_bytes()
    for broken in (b"", b"not a video", data[: len(data) // 2], data[:100]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=str(path)):
            read_all(root)
    rng = random.Random(2)
    for _ in range(40):
        changed = bytearray(data)
        for _ in range(30):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_all(root)
        except LidargenError as error:
            assert CLIP in str(error)


def test_frames_are_those_that_all_parts_have(root):
    rewrite(tar_of(root), lambda c: {k: v for k, v in c.items() if key(2, "") not in k})
    rewrite(tar_of(root, "pose"), lambda c: {k: v for k, v in c.items() if key(0, "") not in k})
    with ClipReader(root, CLIP, (CAMERA,)) as clip:
        assert clip.frames == ("000004",)
        assert clip.missing == {"lidar": ["000002"], f"pose {CAMERA}": ["000000"]}
    rewrite(tar_of(root, "pose"), lambda c: {k: v for k, v in c.items() if key(4, "") not in k})
    with pytest.raises(DataError, match="no frame is complete"):
        read_all(root)


@pytest.mark.parametrize("folder", ["metadata", "lidar", "pose", "ftheta_intrinsic", f"ftheta_{CAMERA}"])
def test_missing_files(root, folder):
    shutil.rmtree(root / folder)
    with pytest.raises(DataError, match=folder):
        read_all(root)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", "a b", "x.y"])
def test_clip_names_that_are_paths(tmp_path, name):
    with pytest.raises(DataError, match="letters, digits"):
        ClipReader(tmp_path, name)


def test_split_files(root, tmp_path):
    split = tmp_path / "split.lst"
    split.write_text(f"\n {CLIP}.tar \n\n{CLIP}\nother.tar.gz\n")
    assert list_clips(root, split) == [CLIP, "other"]
    split.write_text("../../etc/passwd\n")  # cut at the first dot: nothing is left
    with pytest.raises(DataError, match="no clips"):
        list_clips(root, split)
    split.write_text("/etc/passwd\n")
    with pytest.raises(DataError, match="letters, digits"):
        list_clips(root, split)
    split.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        list_clips(root, split)
    with pytest.raises(DataError, match="no clips"):
        list_clips(tmp_path)


def test_deflate_stream_that_ends_early():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", npy(np.arange(1000)))
    data = buffer.getvalue()
    compressed = zlib.compress(npy(np.arange(1000)))
    assert len(data) > len(compressed) // 2
    cut = data.find(b"arr_0.npy") + 200
    with pytest.raises(DataError):
        parse_npz(data[:cut] + bytes(50) + data[cut + 50 :], "x")
