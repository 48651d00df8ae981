# SPDX-License-Identifier: Apache-2.0
"""The one home of range (metres) <-> network value.

* linear, inverse and concat: the published model (5..100 m). It has no value for "no return": 0 m is coded like
  5 m, so decoding drops everything within a buffer of either limit.
* log: the students. Whether a ray returns at all is another output of theirs, never part of the code.

All functions take numpy arrays or torch tensors of any shape and keep their type and dtype. The published model
computes in float32 in exactly this order; give it float32, or values at the buffers' edges may flip.
"""

import math
import sys
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor

MIN_M, MAX_M = 5.0, 100.0
# Buffers of the published image-to-LiDAR program; the library's own default was 0.5 and 0.5.
NEAR_M, FAR_M = 1.5, 10.0
CONCAT_THRESHOLD_M = 20.0


def namespace(x: Any) -> Any:
    """``torch`` for a tensor (without importing it for anybody else), else ``numpy``."""
    return sys.modules["torch"] if type(x).__module__.split(".")[0] == "torch" else np


def encode_linear(
    ranges: Array, min_m: float = MIN_M, max_m: float = MAX_M, min_value: float = -1.0
) -> Array:
    """Metres -> [-1, 1] (``min_value`` 0: [0, 1]), clipped. No return (0) becomes the code of ``min_m``."""
    x = (_clip(ranges, min_m, max_m) - min_m) / (max_m - min_m)
    return x * 2 - 1 if min_value == -1.0 else x


def decode_linear(
    codes: Array,
    min_m: float = MIN_M,
    max_m: float = MAX_M,
    near_m: float = NEAR_M,
    far_m: float = FAR_M,
    min_value: float = -1.0,
) -> Array:
    """Inverse of :func:`encode_linear`: metres, kept where min_m + near_m < r < max_m - far_m, else 0."""
    return _gated(_unit(codes, min_value) * (max_m - min_m) + min_m, min_m + near_m, max_m - far_m)


def encode_inverse(
    ranges: Array, min_m: float = MIN_M, max_m: float = MAX_M, min_value: float = -1.0
) -> Array:
    """Metres -> inverse range, scaled like :func:`encode_linear`; no return becomes the code of ``max_m``."""
    x = (_clip(1 / _filled(ranges, max_m), 1 / max_m, 1 / min_m) - 1 / max_m) / (1 / min_m - 1 / max_m)
    return x * 2 - 1 if min_value == -1.0 else x


def decode_inverse(
    codes: Array,
    min_m: float = MIN_M,
    max_m: float = MAX_M,
    near_m: float = NEAR_M,
    far_m: float = FAR_M,
    min_value: float = -1.0,
) -> Array:
    """Inverse of :func:`encode_inverse`; gated like :func:`decode_linear`."""
    inverse = _unit(codes, min_value) * (1 / min_m - 1 / max_m) + 1 / max_m
    # A code below the scale is farther than max_m: held there, so that it is neither negative nor infinite.
    return _gated(1 / _clip(inverse, 1 / max_m, math.inf), min_m + near_m, max_m - far_m)


def encode_concat(
    ranges: Array, min_m: float = MIN_M, max_m: float = MAX_M, reference: bool = False
) -> list[Array]:
    """Three channels: inverse, linear, linear.

    ``reference``: as in the published model, where no return is the code of ``max_m`` in the linear channels too.
    """
    linear = encode_linear(_filled(ranges, max_m) if reference else ranges, min_m, max_m)
    return [encode_inverse(ranges, min_m, max_m), linear, linear]


def decode_concat(
    inverse: Array,
    linear: Array,
    min_m: float = MIN_M,
    max_m: float = MAX_M,
    near_m: float = NEAR_M,
    far_m: float = FAR_M,
    threshold_m: float = CONCAT_THRESHOLD_M,
) -> Array:
    """Metres from the inverse channel where it is valid and below ``threshold_m``, else from ``linear`` (the mean
    of the linear channels)."""
    near = decode_inverse(inverse, min_m, max_m, near_m, far_m)
    far = decode_linear(linear, min_m, max_m, near_m, far_m)
    return namespace(near).where((near > 0) & (near < threshold_m), near, far)


def encode_log(ranges: Array, min_m: float, max_m: float) -> Array:
    """Metres -> [-1, 1], equal ratios equal steps, clipped. No return (0) becomes -1: mask it out of any loss."""
    return namespace(ranges).log(_clip(ranges, min_m, max_m) / min_m) * (2 / math.log(max_m / min_m)) - 1


def decode_log(codes: Array, min_m: float, max_m: float) -> Array:
    """Inverse of :func:`encode_log`; codes are clipped to [-1, 1]."""
    return namespace(codes).exp((_clip(codes, -1, 1) + 1) * (0.5 * math.log(max_m / min_m))) * min_m


def _clip(x: Array, low: float, high: float) -> Array:
    return x.clip(low, high)


def _filled(ranges: Array, value: float) -> Array:
    xp = namespace(ranges)
    return xp.where(ranges == 0, xp.full_like(ranges, value), ranges)


def _unit(codes: Array, min_value: float) -> Array:
    return (codes + 1) / 2 if min_value == -1.0 else codes


def _gated(ranges: Array, low: float, high: float) -> Array:
    xp = namespace(ranges)
    return xp.where((ranges > low) & (ranges < high), ranges, xp.zeros_like(ranges))
