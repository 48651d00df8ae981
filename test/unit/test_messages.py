# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and sweeps to point clouds, without ROS: encodings, layouts, sizes that lie."""

from array import array
from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest

from lidargen_ros.bags.pointclouds import cloud_from_message
from lidargen_ros.cameras.encodings import RawPicture, to_rgb
from lidargen_ros.errors import ConfigError, InputError
from lidargen_ros.ros import clouds, messages
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep

H, W = 24, 32


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth colours, so that chroma subsampling and demosaicing reproduce them closely."""
    v, u = np.mgrid[0:H, 0:W]
    return np.stack([60 + 4 * u, 80 + 3 * v, 200 - 3 * u], axis=-1).astype(np.uint8)


def image(encoding: str, pixels: np.ndarray, padding: int = 0, big: bool = False, rows: int = H) -> Message:
    """An image message whose rows carry ``padding`` bytes at their end."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big else "<u2")
    flat = np.ascontiguousarray(pixels).view(np.uint8).reshape(rows, -1)
    data = np.pad(flat, ((0, 0), (0, padding)), constant_values=255)
    step = data.shape[1]
    return Message(
        encoding=encoding,
        width=W,
        height=H,
        step=step,
        is_bigendian=int(big),
        data=array("B", data.tobytes()),
    )


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    out = np.empty(rgb.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        dy, dx = divmod(i, 2)
        out[dy::2, dx::2] = rgb[dy::2, dx::2, "rgb".index(colour)]
    return out


def packed_422(rgb: np.ndarray, order: str) -> np.ndarray:
    """Y'CbCr 4:2:2 by the BT.601 studio-swing equations."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    parts = {"0": y[:, 0::2], "1": y[:, 1::2], "u": u[:, 0::2], "v": v[:, 0::2]}
    return np.rint(np.stack([parts[c] for c in order], axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 12])
@pytest.mark.parametrize(
    ("encoding", "make"),
    [
        ("rgb8", lambda p: p),
        ("bgr8", lambda p: p[..., ::-1]),
        ("RGB8", lambda p: p),
        ("8UC3", lambda p: p[..., ::-1]),
        ("rgba8", lambda p: np.dstack([p, p[..., :1]])),
        ("bgra8", lambda p: np.dstack([p[..., ::-1], p[..., :1]])),
        ("rgb16", lambda p: p.astype(np.uint16) * 256 + 77),
        ("bgr16", lambda p: p[..., ::-1].astype(np.uint16) * 256 + 77),
    ],
)
def test_colour_encodings_are_exact(picture, encoding, make, padding) -> None:
    np.testing.assert_array_equal(messages.picture_to_rgb(image(encoding, make(picture), padding)), picture)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["mono8", "8UC1", "mono16"])
def test_grey_is_repeated(picture, encoding, padding) -> None:
    grey = picture[..., 0]
    pixels = grey.astype(np.uint16) * 256 if encoding == "mono16" else grey
    out = messages.picture_to_rgb(image(encoding, pixels, padding))
    np.testing.assert_array_equal(out, np.repeat(grey[..., None], 3, axis=-1))


def test_byte_order_is_honoured(picture) -> None:
    pixels = picture.astype(np.uint16) * 256 + 1
    np.testing.assert_array_equal(messages.picture_to_rgb(image("rgb16", pixels, big=True)), picture)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_puts_each_colour_in_its_channel(picture, pattern, bits) -> None:
    raw = mosaic(picture, pattern)
    out = messages.picture_to_rgb(
        image(f"bayer_{pattern}{bits}", raw.astype(np.uint16) * 256 if bits == 16 else raw, padding=4)
    )
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(out[inner].astype(int), picture[inner].astype(int), atol=6)


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "u0v1"), ("uyvy", "u0v1"), ("yuv422_yuy2", "0u1v"), ("yuyv", "0u1v")]
)
def test_packed_yuv(picture, encoding, order) -> None:
    out = messages.picture_to_rgb(image(encoding, packed_422(picture, order), padding=8))
    np.testing.assert_allclose(out.astype(int), picture.astype(int), atol=8)


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_planar_yuv(picture, encoding) -> None:
    full = packed_422(picture, "0u1v")
    luma = full[..., [0, 2]].reshape(H, W)
    chroma = full[::2][..., [1, 3] if encoding == "nv12" else [3, 1]].reshape(H // 2, W)
    out = messages.picture_to_rgb(image(encoding, np.vstack([luma, chroma]), padding=4, rows=H * 3 // 2))
    np.testing.assert_allclose(out.astype(int), picture.astype(int), atol=8)


def test_rgb8_is_a_view_of_the_message(picture) -> None:
    message = image("rgb8", picture, padding=5)
    out = messages.picture_to_rgb(message)
    assert np.shares_memory(out, np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)])
def test_any_buffer_will_do(picture, kind) -> None:
    message = image("bgr8", picture[..., ::-1])
    message.data = kind(bytes(message.data))
    np.testing.assert_array_equal(messages.picture_to_rgb(message), picture)


@pytest.mark.parametrize("padding", [0, 4])
def test_what_an_engine_converts_is_left_as_it_was_sent(picture, padding) -> None:
    message = image("bgr8", picture[..., ::-1], padding)
    left = messages.picture_of(message, raw={"bgr8", "uyvy"})
    assert isinstance(left, RawPicture)
    assert left.encoding == "bgr8"
    assert np.shares_memory(left.pixels, np.frombuffer(message.data, np.uint8))
    np.testing.assert_array_equal(to_rgb(left), picture)
    assert isinstance(messages.picture_of(message, raw={"uyvy"}), np.ndarray)
    assert isinstance(messages.picture_of(image("rgb8", picture), raw={"rgb8"}), np.ndarray)
    assert isinstance(messages.picture_of(compressed(picture, ".png"), raw={"rgb8"}), np.ndarray)


def test_unknown_encodings_go_to_the_other_converter_or_are_named(picture) -> None:
    message = image("rgb8", picture)
    message.encoding = "32FC3"
    with pytest.raises(InputError, match="'32FC3' is not supported; publish one of rgb8"):
        messages.picture_to_rgb(message)
    assert messages.picture_of(message, otherwise=lambda m: picture) is picture


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": b"\0" * 100}, "needs rows of 96 and 2304 bytes in all; the message holds 100"),
        ({"step": 10}, "step 10 needs rows of 96"),
        ({"width": 0}, "image of 0 x 24 pixels"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, "expected between 1 and"),
        ({"height": 100_000}, "the message holds"),
        ({"encoding": "yuyv", "width": 31}, "its sides must be even"),
    ],
)
def test_sizes_that_lie_are_refused(picture, change, said) -> None:
    message = image("rgb8", picture)
    vars(message).update(change)
    with pytest.raises(InputError, match=said):
        messages.picture_to_rgb(message)


def compressed(picture: np.ndarray, suffix: str, *parameters: int) -> Message:
    ok, data = cv2.imencode(suffix, picture[..., ::-1], parameters)
    assert ok
    return Message(format=f"rgb8; {suffix[1:]} compressed bgr8", data=array("B", data.tobytes()))


def test_png_is_exact_and_jpeg_close(picture) -> None:
    np.testing.assert_array_equal(messages.picture_to_rgb(compressed(picture, ".png")), picture)
    out = messages.picture_to_rgb(compressed(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98))
    np.testing.assert_allclose(out.astype(int), picture.astype(int), atol=12)


def test_progressive_jpeg_and_bytes_after_the_end(picture) -> None:
    message = compressed(picture, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    message.data = bytes(message.data) + b"\0" * 5000
    assert messages.picture_to_rgb(message).shape == picture.shape


def test_exif_rotation_is_not_applied(picture) -> None:
    message = compressed(picture, ".jpg")
    data = bytes(message.data)
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turned by 90 degrees
    body = b"Exif\0\0" + tiff
    message.data = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    assert messages.picture_to_rgb(message).shape == picture.shape


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.97])
def test_truncated_files_are_refused(picture, suffix, kept) -> None:
    big = cv2.resize(picture, (640, 352))
    message = compressed(big, suffix)
    message.data = bytes(message.data)[: int(len(message.data) * kept)]
    with pytest.raises(InputError, match="truncated"):
        messages.picture_to_rgb(message)


def test_a_file_that_claims_to_be_huge_is_refused_before_decoding(picture) -> None:
    data = bytearray(compressed(picture, ".jpg").data)
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(InputError, match="image of 65535 x 65535 pixels"):
        messages.picture_to_rgb(Message(format="jpeg", data=bytes(data)))


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\0" * 1000, b"\xff\xd8\xff\xe0\0\0" * 20])
def test_rubbish_is_refused(data) -> None:
    with pytest.raises(InputError):
        messages.picture_to_rgb(Message(format="h264", data=data))


def test_damage_that_the_header_cannot_show_raises_nothing_else(picture) -> None:
    rng = np.random.default_rng(0)
    good = np.frombuffer(bytes(compressed(cv2.resize(picture, (320, 176)), ".jpg").data), np.uint8)
    for _ in range(60):
        data = good.copy()
        at = rng.integers(0, data.size, 8)
        data[at] = rng.integers(0, 256, 8)
        try:
            out = messages.picture_to_rgb(Message(format="jpeg", data=data.tobytes()))
        except InputError:
            continue
        assert out.dtype == np.uint8


# --- sweeps -----------------------------------------------------------------------------------------------------

SENSOR = Sensor("test", np.linspace(10, -20, 6), columns=16)


def sweep(intensity: bool = True) -> Sweep:
    rng = np.random.default_rng(3)
    ranges = rng.uniform(2, 60, SENSOR.shape).astype(np.float32)
    ranges[rng.random(SENSOR.shape) < 0.3] = 0
    level = rng.random(SENSOR.shape).astype(np.float32)
    return Sweep(ranges, SENSOR, 5, return_probability=level, intensity=level if intensity else None)


# (name, PointField datatype, offset) as the drivers publish them; FLOAT32 = 7, UINT8 = 2, UINT16 = 4, UINT32 = 6.
XYZ = [("x", 7, 0), ("y", 7, 4), ("z", 7, 8)]
IRC = [*XYZ, ("intensity", 2, 12), ("return_type", 2, 13), ("channel", 4, 14)]
EXPECTED = {
    "xyzi": (16, [*XYZ, ("intensity", 7, 12)]),
    "xyzirc": (16, IRC),
    "xyzircaedt": (
        32,
        [*IRC, ("azimuth", 7, 16), ("elevation", 7, 20), ("distance", 7, 24), ("time_stamp", 6, 28)],
    ),
    "velodyne": (22, [*XYZ, ("intensity", 7, 12), ("ring", 4, 16), ("time", 7, 18)]),
    "ouster": (
        48,
        [
            *XYZ,
            ("intensity", 7, 16),
            ("t", 6, 20),
            ("reflectivity", 4, 24),
            ("ring", 4, 26),
            ("ambient", 4, 28),
            ("range", 6, 32),
        ],
    ),
}


def as_message(cloud: clouds.Cloud) -> Message:
    fields = clouds.point_fields(cloud.points.dtype, Message)

    def assign(message: Message, data: np.ndarray) -> None:
        message.data = data.tobytes()

    return clouds.fill_cloud(Message(), cloud, fields, assign)


def read_points(message: Message) -> np.ndarray:
    """Structured [height, width] view by the message's own fields."""
    kinds = {2: "u1", 4: "<u2", 6: "<u4", 7: "<f4"}
    dtype = np.dtype(
        {
            "names": [f.name for f in message.fields],
            "formats": [kinds[f.datatype] for f in message.fields],
            "offsets": [f.offset for f in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


@pytest.mark.parametrize("point_type", EXPECTED)
def test_the_project_reads_its_own_clouds(point_type) -> None:
    s = sweep()
    message = as_message(clouds.CloudPacker(SENSOR, point_type, spin=True).pack(s))
    message.header = Message(stamp=Message(sec=0, nanosec=5), frame_id="lidar")
    cloud = cloud_from_message(message)
    want = s.organised_points()
    if point_type == "velodyne":
        want = want.swapaxes(0, 1)
    np.testing.assert_array_equal(cloud.points, want[np.isfinite(want[..., 0])])


@pytest.mark.parametrize("point_type", EXPECTED)
def test_layouts_are_those_of_the_drivers(point_type) -> None:
    dtype = clouds.point_dtype(point_type)
    step, fields = EXPECTED[point_type]
    made = clouds.point_fields(dtype, Message)
    assert dtype.itemsize == step
    assert [(f.name, f.datatype, f.offset) for f in made] == fields
    assert all(f.count == 1 for f in made)


@pytest.mark.parametrize("organised", [True, False])
@pytest.mark.parametrize("point_type", EXPECTED)
def test_clouds_read_back(point_type, organised) -> None:
    s = sweep()
    message = as_message(clouds.CloudPacker(SENSOR, point_type, organised=organised).pack(s))
    out = read_points(message)
    assert len(message.data) == message.height * message.row_step
    xyz = np.stack([out["x"], out["y"], out["z"]], axis=-1)
    if organised:
        shape = SENSOR.shape[::-1] if point_type == "velodyne" else SENSOR.shape
        assert (message.height, message.width) == shape
        assert message.is_dense is False
        want = s.organised_points()
        want = want.swapaxes(0, 1) if point_type == "velodyne" else want
        np.testing.assert_array_equal(xyz, want)
    else:
        assert (message.height, message.width) == (1, int(s.returns.sum()))
        assert message.is_dense is True
        np.testing.assert_array_equal(xyz[0], s.points())


def test_field_values() -> None:
    s = sweep()
    seen = s.returns
    full = read_points(as_message(clouds.CloudPacker(SENSOR, "xyzircaedt", spin=True).pack(s)))
    np.testing.assert_array_equal(full["channel"], np.broadcast_to(np.arange(6)[:, None], SENSOR.shape))
    np.testing.assert_array_equal(full["return_type"], seen)
    np.testing.assert_array_equal(full["intensity"], np.rint(np.where(seen, s.intensity, 0) * 255))
    np.testing.assert_allclose(full["distance"][seen], s.range_map[seen])
    np.testing.assert_allclose(full["azimuth"][seen], np.arctan2(full["y"], full["x"])[seen], atol=1e-5)
    np.testing.assert_allclose(
        full["elevation"][seen], np.arcsin(full["z"] / full["distance"])[seen], atol=1e-5
    )
    np.testing.assert_allclose(full["time_stamp"][0] * 1e-9, s.column_times, atol=1e-9)
    ouster = read_points(as_message(clouds.CloudPacker(SENSOR, "ouster").pack(s)))
    np.testing.assert_array_equal(ouster["range"], np.rint(s.range_map * 1000))
    assert not ouster["t"].any()  # a snapshot unless asked for the spin
    velodyne = read_points(as_message(clouds.CloudPacker(SENSOR, "velodyne").pack(s)))
    np.testing.assert_array_equal(velodyne["ring"][0], np.arange(6)[::-1])  # ring 0 looks lowest
    assert np.nanmean(velodyne["z"][:, 0]) > np.nanmean(velodyne["z"][:, -1])


def test_a_missing_intensity_is_zero_even_after_a_sweep_that_had_one() -> None:
    packer = clouds.CloudPacker(SENSOR, "xyzirc")
    packer.pack(sweep())
    assert not packer.pack(sweep(intensity=False)).points["intensity"].any()


def test_return_probability_on_request() -> None:
    s = sweep()
    cloud = clouds.CloudPacker(SENSOR, "xyzirc", probability=True).pack(s)
    assert cloud.point_step == 20
    np.testing.assert_array_equal(cloud.points["return_probability"], s.return_probability)


def test_empty_and_full_sweeps() -> None:
    empty = Sweep(np.zeros(SENSOR.shape, np.float32), SENSOR)
    message = as_message(clouds.CloudPacker(SENSOR, organised=False).pack(empty))
    assert (message.height, message.width, message.is_dense) == (1, 0, True)
    assert [f.name for f in message.fields] == [f[0] for f in IRC]
    assert read_points(message).size == 0
    full = Sweep(np.full(SENSOR.shape, 9, np.float32), SENSOR)
    assert clouds.CloudPacker(SENSOR).pack(full).is_dense is True


def test_unknown_layouts() -> None:
    with pytest.raises(ConfigError, match="point_type 'xyz' is not known; use one of xyzi, "):
        clouds.CloudPacker(SENSOR, "xyz")


def test_range_images() -> None:
    ranges = np.array([[0, 1.5, 70.0], [65.535, 65.536, 0.0004]], np.float32)
    metres = messages.range_image(ranges)
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, np.where(ranges > 0, ranges, np.nan))
    np.testing.assert_array_equal(messages.range_image(ranges, "16UC1"), [[0, 1500, 0], [65535, 0, 0]])
    with pytest.raises(InputError, match="'mono16' is not known"):
        messages.range_image(ranges, "mono16")


def test_fill_image() -> None:
    out = messages.fill_image(
        Message(), np.ones((3, 5), np.float32), "32FC1", lambda m, d: setattr(m, "data", d.tobytes())
    )
    assert (out.height, out.width, out.step, out.encoding, len(out.data)) == (3, 5, 20, "32FC1", 60)
