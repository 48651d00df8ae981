# SPDX-License-Identifier: Apache-2.0
"""What a process that synthesises tells the libraries it uses, so that its own threads get the cores."""

import ctypes

import cv2

from ...ros.compat import MALLOC

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def settle_in() -> None:
    """For the whole process: frames are done side by side, so nothing inside a frame needs threads; memory is kept.

    A cloud takes 4 MB in several copies. glibc would map each anew, and the system clear its pages one by one while
    Python's lock is held: a third of what packing costs (docs/synthesis.md).
    """
    cv2.setNumThreads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, int(MALLOC["MALLOC_MMAP_THRESHOLD_"]))
        mallopt(_M_TRIM_THRESHOLD, int(MALLOC["MALLOC_TRIM_THRESHOLD_"]))
