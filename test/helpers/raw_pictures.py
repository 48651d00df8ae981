# SPDX-License-Identifier: Apache-2.0
"""RGB pictures as a camera of another encoding would have sent them."""

import cv2
import numpy as np

from lidargen_ros.cameras.encodings import ENCODINGS, RawPicture

FOUR_TWO_TWO = {
    "yuv422": cv2.COLOR_RGB2YUV_UYVY,
    "uyvy": cv2.COLOR_RGB2YUV_UYVY,
    "yuv422_yuy2": cv2.COLOR_RGB2YUV_YUY2,
    "yuyv": cv2.COLOR_RGB2YUV_YUY2,
}


def raw_picture(rgb, encoding):
    """``rgb`` uint8 ``[H, W, 3]`` with even sides."""
    graph, order, channels, _ = ENCODINGS[encoding]
    if graph == "pixels" and channels == 1:
        pixels = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    elif graph == "pixels":
        pixels = np.dstack([rgb[..., list(order)], rgb[..., :1]])[..., :channels]
    elif graph == "yuv422":
        pixels = cv2.cvtColor(rgb, FOUR_TWO_TWO[encoding])
    elif graph == "nv12":
        height, width = rgb.shape[:2]
        planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
        chroma = planes[height:].reshape(2, height // 2, width // 2)[list(order)]
        pixels = np.concatenate([planes[:height], np.moveaxis(chroma, 0, -1).reshape(height // 2, width)])
    else:
        pixels = np.empty(rgb.shape[:2], np.uint8)
        for cell, colour in enumerate(order):
            place = np.s_[cell // 2 :: 2, cell % 2 :: 2]
            pixels[place] = rgb[place][..., colour]
    return RawPicture(pixels, encoding)
