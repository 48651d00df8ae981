# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays and back, by direct views where the layout allows it.

Pure numpy and OpenCV over anything with the attributes of ``sensor_msgs/Image`` or ``CompressedImage``:
rclpy, rosbags and test doubles alike. Sizes in a message are checked against its data before memory is taken.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MAX_PIXELS = 64_000_000
"""Largest accepted image; 8K is 33 million pixels. Stops a broken header from taking gigabytes."""

# encoding -> (channels, bytes per channel, conversion to RGB; None: it is RGB already).
# Names: sensor_msgs/image_encodings.hpp. A Bayer name tells the top-left 2 x 2 pixels row by row; OpenCV names
# the same mosaic by its second row and column, hence the swapped letters.
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "8uc3": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "8uc4": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8uc1": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 2, None),
    "bgr16": (3, 2, cv2.COLOR_BGR2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    **{
        f"bayer_{pattern}{8 * size}": (1, size, code)
        for size in (1, 2)
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2RGB),
            ("bggr", cv2.COLOR_BayerRG2RGB),
            ("gbrg", cv2.COLOR_BayerGR2RGB),
            ("grbg", cv2.COLOR_BayerGB2RGB),
        )
    },
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "nv12": (1, 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
}
SUPPORTED_ENCODINGS = tuple(_ENCODINGS)

_READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # calibration belongs to the pixels as stored


def stamp_ns(header: Any) -> int:
    """Stamp of a message header of ROS 2 or 1, nanoseconds."""
    stamp = header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec if hasattr(stamp, "nanosec") else stamp.nsec)


def picture_to_rgb(
    message: Any, *, max_pixels: int = MAX_PIXELS, otherwise: Callable[[Any], NDArray] | None = None
) -> NDArray:
    """RGB uint8 [height, width, 3] of an ``Image`` or a ``CompressedImage``; arguments and errors as theirs below."""
    if hasattr(message, "format"):
        return compressed_to_rgb(message, max_pixels=max_pixels)
    return image_to_rgb(message, max_pixels=max_pixels, otherwise=otherwise)


def image_to_rgb(
    message: Any, *, max_pixels: int = MAX_PIXELS, otherwise: Callable[[Any], NDArray] | None = None
) -> NDArray:
    """RGB uint8 [height, width, 3] of a raw image; for ``rgb8`` a view of the message's own data.

    16-bit encodings keep their high byte; ``mono`` is repeated; Bayer is demosaiced bilinearly.

    Args:
        otherwise: converts encodings that are not listed here (the node passes cv_bridge where it works).

    Raises:
        InputError: for an unknown encoding, or sizes that contradict each other or the data.
    """
    encoding = str(message.encoding).strip().lower()
    if encoding not in _ENCODINGS:
        if otherwise is not None:
            return otherwise(message)
        raise InputError(
            f"image encoding {message.encoding!r} is not supported; publish one of "
            f"{', '.join(SUPPORTED_ENCODINGS)}"
        )
    channels, size, code = _ENCODINGS[encoding]
    width, height = checked_size(message.width, message.height, max_pixels)
    planar = encoding in ("nv12", "nv21")
    if (planar and (width % 2 or height % 2)) or (channels == 2 and width % 2):
        raise InputError(f"{encoding} image of {width} x {height}: its sides must be even")
    view = _view(message, width, height * 3 // 2 if planar else height, channels, size)
    if size == 2:
        view = (view >> 8).astype(np.uint8)
    if code is None:
        return view
    return cv2.cvtColor(view, code)


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


def compressed_to_rgb(message: Any, *, max_pixels: int = MAX_PIXELS) -> NDArray:
    """RGB uint8 [height, width, 3] of a JPEG or PNG ``CompressedImage``.

    The size is read from the file's header before anything is decoded, and a file without its end is refused:
    decoders fill what is missing with grey and say nothing.

    Raises:
        InputError: not JPEG or PNG, truncated, undecodable, or larger than ``max_pixels``.
    """
    data = memoryview(message.data).cast("B")
    check_compressed(data, str(message.format), max_pixels)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error as e:
        raise InputError(f"compressed image cannot be decoded: {e.err}") from e
    if bgr is None:
        raise InputError(f"compressed image of {len(data)} bytes cannot be decoded; the data is damaged")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def check_compressed(data: memoryview, form: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of a complete JPEG or PNG, read from its header.

    Raises:
        InputError: see :func:`compressed_to_rgb`.
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
