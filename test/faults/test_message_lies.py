# SPDX-License-Identifier: Apache-2.0
"""Headers that lie: whatever a message claims, it becomes its picture or an InputError, and takes no more memory."""

import tracemalloc
from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidargen_ros.errors import InputError
from lidargen_ros.ros.messages import SUPPORTED_ENCODINGS, picture_to_rgb

MAX_PIXELS = 100_000
SIDES = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
PICTURE = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
FILES = {kind: cv2.imencode(f".{kind}", PICTURE)[1].tobytes() for kind in ("jpg", "png")}


@settings(max_examples=150)
@given(
    encoding=st.one_of(st.sampled_from(SUPPORTED_ENCODINGS), st.sampled_from(["", "64FC3", "jpeg"])),
    width=SIDES,
    height=SIDES,
    step=SIDES,
    size=st.integers(0, 6000),
    big=st.integers(0, 255),
)
def test_raw_images(encoding, width, height, step, size, big) -> None:
    data = np.zeros(size, np.uint8)
    message = Message(encoding=encoding, width=width, height=height, step=step, is_bigendian=big, data=data)
    try:
        image = picture_to_rgb(message, max_pixels=MAX_PIXELS)
    except InputError:
        return
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert width * height <= size  # no encoding has less than a byte per pixel


@settings(max_examples=100)
@given(data=st.data(), kind=st.sampled_from(["jpg", "png"]))
def test_damaged_files(data, kind) -> None:
    file = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of what a decoder believes stands in the first bytes.
        at = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(file) - 1)))
        file[at] = data.draw(st.integers(0, 255))
    file = file[: data.draw(st.one_of(st.just(len(file)), st.integers(0, len(file))))]
    try:
        image = picture_to_rgb(Message(data=bytes(file), format=kind), max_pixels=MAX_PIXELS)
    except InputError:
        return
    assert image.ndim == 3
    assert image.shape[0] * image.shape[1] <= MAX_PIXELS


@settings(max_examples=100)
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]))
def test_noise(data, start) -> None:
    with pytest.raises(InputError):
        picture_to_rgb(Message(data=start + data, format="jpeg"))


def test_a_lie_takes_no_memory() -> None:
    """A picture of 60 million pixels, within the limit, of which 100 bytes are there."""
    png = bytearray(FILES["png"])
    png[16:24] = (10_000).to_bytes(4, "big") + (9_000).to_bytes(4, "big")
    lies = [
        lambda: picture_to_rgb(
            Message(
                encoding="bgr16", width=10_000, height=6_000, step=60_000, is_bigendian=0, data=bytes(100)
            )
        ),
        lambda: picture_to_rgb(Message(data=bytes(png), format="png")),
    ]
    for lie in lies:
        tracemalloc.start()
        with pytest.raises(InputError):
            lie()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
