# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing of the published model: resize with antialiasing, centre crop or pad, scale to [-1, 1]."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ..errors import InputError
from .base import Camera

RESIZE_HW = (720, 1280)
CROP_HW = (704, 1280)


def preprocess(
    image: NDArray, resize_hw: tuple[int, int] = RESIZE_HW, crop_hw: tuple[int, int] = CROP_HW
) -> NDArray:
    """RGB uint8 [height, width, 3] -> float32 [3, *crop_hw] in [-1, 1].

    The aspect is not preserved; a crop larger than the resized image pads with black before scaling, so with -1.

    Raises:
        InputError: if the image is not uint8 RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image is {image.dtype} {image.shape}, expected uint8 [height, width, 3] RGB")
    resized = resize(image.astype(np.float32) / 255, *resize_hw)
    top, left = crop_offsets(resize_hw, crop_hw)
    out = np.zeros((*crop_hw, 3), np.float32)
    rows, source_rows = _overlap(top, resize_hw[0], crop_hw[0])
    columns, source_columns = _overlap(left, resize_hw[1], crop_hw[1])
    out[rows, columns] = resized[source_rows, source_columns]
    return np.ascontiguousarray(((out - 0.5) / 0.5).transpose(2, 0, 1))


def preprocessed_camera(
    camera: Camera, resize_hw: tuple[int, int] = RESIZE_HW, crop_hw: tuple[int, int] = CROP_HW
) -> Camera:
    """The camera that belongs to the preprocessed image."""
    top, left = crop_offsets(resize_hw, crop_hw)
    return camera.scaled(resize_hw[1], resize_hw[0]).cropped(left, top, crop_hw[1], crop_hw[0])


def crop_offsets(size_hw: tuple[int, int], crop_hw: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the centre crop, half to even; negative where the image is padded (the smaller half first)."""
    top, left = (
        -((crop - size) // 2) if crop > size else round((size - crop) / 2)
        for size, crop in zip(size_hw, crop_hw, strict=True)
    )
    return top, left


def resize(image: NDArray, height: int, width: int) -> NDArray:
    """[h, w, channels] float32 -> [height, width, channels], bilinear with antialiasing (a triangle as wide as the
    scale, as in PIL and torch's ``interpolate(antialias=True)``), not rounded in between."""
    h, w, channels = image.shape
    tall = (_weights(h, height) @ image.reshape(h, -1)).reshape(height, w, channels)
    turned = tall.transpose(1, 0, 2).reshape(w, -1)
    return (_weights(w, width) @ turned).reshape(width, height, channels).transpose(1, 0, 2)


@lru_cache(maxsize=32)
def _weights(size: int, target: int) -> csr_array:
    """Sparse [target, size] float32 whose rows sum to 1."""
    scale = size / target
    support = max(scale, 1.0)
    centres = scale * (np.arange(target) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    last = np.minimum((centres + support + 0.5).astype(int), size)
    taps = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(0, 1 - np.abs(taps + 0.5 - centres[:, None]) / support)
    weights[taps >= last[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(weights)
    return csr_array(
        (weights[rows, columns].astype(np.float32), (rows, taps[rows, columns])), shape=(target, size)
    )


def _overlap(offset: int, size: int, crop: int) -> tuple[slice, slice]:
    """Where the image lands in the crop, and which part of the image that is."""
    begin, end = max(offset, 0), min(offset + crop, size)
    return slice(begin - offset, end - offset), slice(begin, end)
