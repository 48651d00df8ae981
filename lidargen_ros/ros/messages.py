# SPDX-License-Identifier: Apache-2.0
"""Image messages to pictures and back, by direct views where the layout allows it.

Pure numpy and OpenCV over anything with the attributes of ``sensor_msgs/Image`` or ``CompressedImage``:
rclpy, rosbags and test doubles alike. Sizes in a message are checked against its data before memory is taken.
"""

from collections.abc import Callable, Collection
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..cameras.encodings import ENCODINGS, HIGH_BYTES, Picture, RawPicture, to_rgb
from ..errors import InputError

MAX_PIXELS = 64_000_000
"""Largest accepted image; 8K is 33 million pixels. Stops a broken header from taking gigabytes."""

SUPPORTED_ENCODINGS = (*ENCODINGS, *HIGH_BYTES)

# Straight to RGB where OpenCV can (4.11); the pixels stay as stored, which is what the calibration belongs to.
_DECODED = "rgb8" if hasattr(cv2, "IMREAD_COLOR_RGB") else "bgr8"
_READ_FLAGS = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION


def stamp_ns(header: Any) -> int:
    """Stamp of a message header of ROS 2 or 1, nanoseconds."""
    stamp = header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec if hasattr(stamp, "nanosec") else stamp.nsec)


def picture_of(
    message: Any,
    *,
    raw: Collection[str] = (),
    max_pixels: int = MAX_PIXELS,
    otherwise: Callable[[Any], NDArray] | None = None,
) -> Picture:
    """What a generator takes of an ``Image`` or a ``CompressedImage``: RGB uint8 [height, width, 3], which for ``rgb8`` is a
    view of the message's own data, or what the camera sent.

    Of RGB in 16 bits the high byte is kept; ``mono`` is repeated; Bayer is demosaiced bilinearly.

    Args:
        raw: encodings that are left as they are (``LidarGenerator.raw_encodings``), a view of the message's data.
        otherwise: converts encodings that are not listed here (the node passes cv_bridge where it works).

    Raises:
        InputError: for an unknown encoding, sizes that contradict each other or the data, or a file that is not a whole JPEG
            or PNG of at most ``max_pixels``.
    """
    if hasattr(message, "format"):
        picture = _compressed(message, max_pixels)
    elif otherwise is not None and _encoding(message) not in SUPPORTED_ENCODINGS:
        return otherwise(message)
    else:
        picture = _image(message, max_pixels)
    return picture if picture.encoding in raw and picture.encoding != "rgb8" else picture.rgb()


def picture_to_rgb(message: Any, *, max_pixels: int = MAX_PIXELS) -> NDArray:
    """RGB uint8 [height, width, 3] of an ``Image`` or a ``CompressedImage``; errors as of :func:`picture_of`."""
    return to_rgb(picture_of(message, max_pixels=max_pixels))


def _encoding(message: Any) -> str:
    return str(message.encoding).strip().lower()


def _image(message: Any, max_pixels: int) -> RawPicture:
    """A raw image over the message's data; of 16-bit encodings the high bytes."""
    name = _encoding(message)
    kept, size = HIGH_BYTES.get(name, name), 2 if name in HIGH_BYTES else 1
    if kept not in ENCODINGS:
        raise InputError(
            f"image encoding {message.encoding!r} is not supported; publish one of "
            f"{', '.join(SUPPORTED_ENCODINGS)}"
        )
    encoding = ENCODINGS[kept]
    width, height = checked_size(message.width, message.height, max_pixels)
    planar = encoding.graph == "nv12"
    if (planar and (width % 2 or height % 2)) or (encoding.graph == "yuv422" and width % 2):
        raise InputError(f"{name} image of {width} x {height}: its sides must be even")
    view = _view(message, width, height * 3 // 2 if planar else height, encoding.channels, size)
    return RawPicture((view >> 8).astype(np.uint8) if size == 2 else view, kept)


def _view(message: Any, width: int, rows: int, channels: int, size: int) -> NDArray:
    """[rows, width(, channels)] over the message's data, honouring ``step`` and byte order."""
    data = np.frombuffer(message.data, dtype=np.uint8)
    row, step = width * channels * size, int(message.step)
    needed = step * (rows - 1) + row
    if step < row or data.size < needed:
        raise InputError(
            f"{message.encoding} image of {message.width} x {message.height} with step {step} needs rows of "
            f"{row} and {needed} bytes in all; the message holds {data.size}"
        )
    dtype = np.dtype(np.uint8 if size == 1 else ">u2" if message.is_bigendian else "<u2")
    if channels == 1:
        return np.ndarray((rows, width), dtype, data, strides=(step, size))
    return np.ndarray((rows, width, channels), dtype, data, strides=(step, channels * size, size))


def _compressed(message: Any, max_pixels: int) -> RawPicture:
    """A JPEG or PNG, decoded.

    The size is read from the file's header before anything is decoded, and a file without its end is refused:
    decoders fill what is missing with grey and say nothing.
    """
    data = memoryview(message.data).cast("B")
    check_compressed(data, str(message.format), max_pixels)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error as e:
        raise InputError(f"compressed image cannot be decoded: {e.err}") from e
    if pixels is None:
        raise InputError(f"compressed image of {len(data)} bytes cannot be decoded; the data is damaged")
    return RawPicture(pixels, _DECODED)


def check_compressed(data: memoryview, form: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of a complete JPEG or PNG, read from its header.

    Raises:
        InputError: see :func:`picture_of`.
    """
    start = bytes(data[:24])
    if start.startswith(b"\xff\xd8"):
        return checked_size(*_jpeg_size(data), max_pixels)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        if len(data) < 45 or bytes(data[-8:-4]) != b"IEND":
            raise InputError(f"truncated PNG: {len(data)} bytes without an end chunk")
        width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
        return checked_size(width, height, max_pixels)
    raise InputError(
        f"compressed image with format {form!r} is neither JPEG nor PNG; republish it as jpeg "
        "(for example with image_transport republish)"
    )


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Width and height from the frame header (ITU T.81, B.2.2), once the end marker has been found."""
    at, size = 2, None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill bytes, markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            size = (
                int.from_bytes(data[at + 7 : at + 9], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
            )
        if marker == 0xDA:  # entropy-coded data follows, in which FF D9 can only be the end of the image
            if size is None:
                break
            tail = max(at, len(data) - 4096)
            if all(b"\xff\xd9" not in bytes(data[start:]) for start in (tail, at)):
                raise InputError(
                    f"truncated JPEG: {len(data)} bytes of a {size[0]} x {size[1]} image, no end marker"
                )
            return size
        at += 2 + length
    raise InputError(f"truncated JPEG: its header is incomplete after {len(data)} bytes")


def checked_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) as ints.

    Raises:
        InputError: for an empty or implausibly large image.
    """
    width, height = int(width), int(height)
    if width < 1 or height < 1 or width * height > max_pixels:
        raise InputError(f"image of {width} x {height} pixels; expected between 1 and {max_pixels} pixels")
    return width, height


def range_image(range_map: NDArray, encoding: str = "32FC1") -> NDArray:
    """[rows, columns] to publish; no return is NaN in ``32FC1`` (metres) and 0 in ``16UC1`` (millimetres).

    REP 118. Ranges that 16 bits cannot hold (above 65.535 m) become 0 in ``16UC1``.

    Args:
        range_map: [rows, columns] float32 metres, 0 = no return.

    Raises:
        InputError: for another encoding.
    """
    if encoding == "32FC1":
        return np.where(range_map > 0, range_map, np.float32(np.nan)).astype("<f4", copy=False)
    if encoding == "16UC1":
        millimetres = np.rint(np.asarray(range_map, dtype=np.float64) * 1000)
        return np.where((millimetres > 0) & (millimetres <= 65535), millimetres, 0).astype("<u2")
    raise InputError(f"range image encoding {encoding!r} is not known; use 32FC1 or 16UC1")


def fill_image(message: Any, array: NDArray, encoding: str, assign: Callable[[Any, NDArray], None]) -> Any:
    """Write a [rows, columns(, channels)] array into an ``Image`` message, header excepted; returns it.

    Args:
        assign: puts a flat uint8 array into ``message.data`` (see :func:`.compat.data_assigner`).
    """
    array = np.ascontiguousarray(array)
    message.height, message.width = array.shape[:2]
    message.encoding = encoding
    message.is_bigendian = 0
    message.step = array.strides[0]
    assign(message, array.reshape(-1).view(np.uint8))
    return message
