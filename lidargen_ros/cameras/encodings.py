# SPDX-License-Identifier: Apache-2.0
"""Pictures as cameras send them: how their bytes are laid out, and how they become RGB.

Names are those of ``sensor_msgs/image_encodings.hpp``. OpenCV converts on the host; ``models.picture_graphs`` does it where an
engine computes.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


class Encoding(NamedTuple):
    """An encoding of one byte per value.

    Attributes:
        graph: which graph of an engine takes it.
        order: where that graph finds what it needs: red, green, blue (``pixels``); both Y, Cb, Cr of two pixels (``yuv422``);
            Cb, Cr (``nv12``); the colour (0 red, 1 green, 2 blue) of the top left 2 x 2 pixels, row by row (``bayer``).
        channels: of the array ``[H, W, channels]``; 1 for ``[H, W]``.
        to_rgb: OpenCV's conversion; None: it is RGB already.
    """

    graph: str
    order: tuple[int, ...]
    channels: int
    to_rgb: int | None


_UYVY = Encoding("yuv422", (1, 3, 0, 2), 2, cv2.COLOR_YUV2RGB_UYVY)
_YUYV = Encoding("yuv422", (0, 2, 1, 3), 2, cv2.COLOR_YUV2RGB_YUY2)
_BGR = Encoding("pixels", (2, 1, 0), 3, cv2.COLOR_BGR2RGB)
_BGRA = Encoding("pixels", (2, 1, 0), 4, cv2.COLOR_BGRA2RGB)
_GREY = Encoding("pixels", (0, 0, 0), 1, cv2.COLOR_GRAY2RGB)
ENCODINGS = {
    "rgb8": Encoding("pixels", (0, 1, 2), 3, None),
    "bgr8": _BGR,
    "8uc3": _BGR,
    "rgba8": Encoding("pixels", (0, 1, 2), 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _BGRA,
    "8uc4": _BGRA,
    "mono8": _GREY,
    "8uc1": _GREY,
    # OpenCV names a mosaic by its second row and column, hence the swapped letters.
    "bayer_rggb8": Encoding("bayer", (0, 1, 1, 2), 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": Encoding("bayer", (2, 1, 1, 0), 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": Encoding("bayer", (1, 2, 0, 1), 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": Encoding("bayer", (1, 0, 2, 1), 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": Encoding("nv12", (0, 1), 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": Encoding("nv12", (1, 0), 1, cv2.COLOR_YUV2RGB_NV21),
}
# Two bytes per value, of which the high one is kept: what it is then.
HIGH_BYTES = {"rgb16": "rgb8", "bgr16": "bgr8", "mono16": "mono8"} | {
    f"bayer_{pattern}16": f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")
}


class RawPicture(NamedTuple):
    """A picture as its camera sent it.

    Attributes:
        pixels: uint8 ``[H, W, channels]``, ``[H, W]`` (grey, Bayer) or ``[3 H / 2, W]`` (nv12, nv21); rows may be padded.
        encoding: a key of ``ENCODINGS``.
    """

    pixels: NDArray
    encoding: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        rows, width = self.pixels.shape[:2]
        return (rows * 2 // 3 if ENCODINGS[self.encoding].graph == "nv12" else rows), width

    def check(self, what: str) -> None:
        """Raises InputError where ``pixels`` are not what ``encoding`` says; ``what`` names the picture."""
        if self.encoding not in ENCODINGS:
            raise InputError(
                f"{what}: encoding {self.encoding!r} is unknown; give one of {', '.join(ENCODINGS)}"
            )
        encoding, shape = ENCODINGS[self.encoding], self.pixels.shape
        sides = {"nv12": (3, 2), "yuv422": (1, 2)}.get(encoding.graph, (1, 1))  # whole multiples of these
        planes = shape[2:] if encoding.channels > 1 else (1,)
        dimensions = 3 if encoding.channels > 1 else 2
        fits = len(shape) == dimensions and planes == (encoding.channels,) and 0 not in shape
        if self.pixels.dtype != np.uint8 or not fits or shape[0] % sides[0] or shape[1] % sides[1]:
            raise InputError(
                f"{what} is {self.pixels.dtype} {shape}, which is no {self.encoding}; see RawPicture"
            )

    def rgb(self) -> NDArray:
        """uint8 ``[H, W, 3]``, converted by OpenCV; the pixels themselves for ``rgb8``."""
        code = ENCODINGS[self.encoding].to_rgb
        return self.pixels if code is None else cv2.cvtColor(self.pixels, code)

    @property
    def whole(self) -> bool:
        """Whether there are :meth:`cells`: mosaics with an odd side have none."""
        return ENCODINGS[self.encoding].graph != "bayer" or not any(side % 2 for side in self.size)

    def cells(self) -> NDArray:
        """The pixels as graphs take them, a view: ``pixels`` ``[H, W, channels]``, ``yuv422`` ``[H, W / 2, 4]``, ``nv12``
        ``[3, H / 2, W / 2, 2]``, ``bayer`` ``[H / 2, 2, W / 2, 2]``."""
        height, width = self.size
        shape = {
            "pixels": (height, width, -1),
            "yuv422": (height, width // 2, 4),
            "nv12": (3, height // 2, width // 2, 2),
            "bayer": (height // 2, 2, width // 2, 2),
        }[ENCODINGS[self.encoding].graph]
        return self.pixels.reshape(shape)


Picture = NDArray | RawPicture
"""What a generator takes: RGB uint8 ``[H, W, 3]``, or as the camera sent it."""


def to_rgb(picture: Picture) -> NDArray:
    """RGB uint8 ``[H, W, 3]``, converted on the host if need be."""
    return picture.rgb() if isinstance(picture, RawPicture) else picture


def picture_size(picture: Picture) -> tuple[int, int]:
    """(height, width)."""
    return picture.size if isinstance(picture, RawPicture) else (picture.shape[0], picture.shape[1])
