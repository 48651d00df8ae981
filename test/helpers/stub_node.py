# SPDX-License-Identifier: Apache-2.0
"""The real node around a generator that is quick and predictable: ``python stub_node.py --ros-args ...``.

The range of every ray is 10 m plus the mean red of the first image / 10, so that a cloud tells which images made it.
Pictures of ``RAW`` come to it as the camera sent them; any other that is not RGB would be an error.

Environment: STUB_DELAY_S per frame; STUB_FAIL_AT comma-separated frame numbers that raise EngineError; STUB_RAISE_AT
frame numbers that raise something unforeseen (counted over the life of the process, the warm-up is 0); STUB_REFUSE a
message with which the bundle is refused; STUB_MEMORY_MB that the model holds; STUB_RIG_S that a calibration takes;
STUB_BUILD_S that the engine takes to build.
"""

import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lidargen_ros.cameras import PinholeCamera, Rig, View
from lidargen_ros.cameras.encodings import Picture, RawPicture, to_rgb
from lidargen_ros.errors import BundleError, EngineError
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep

FRAMES = itertools.count()
RAW = frozenset({"rgb8", "bgr8", "bayer_rggb8", "nv12"})  # as if its engine had some of the graphs
SENSOR = Sensor("stub", np.linspace(15, -25, 128), columns=1800)


def rig() -> Rig:
    """Three pinhole cameras looking ahead and back to both sides."""
    views = []
    for name, yaw in (("front", 0.0), ("rear_left", 2.4), ("rear_right", -2.4)):
        c, s = np.cos(yaw), np.sin(yaw)
        pose = np.eye(4)
        pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        views.append(View(name, PinholeCamera(640, 352, 300.0, 300.0, 319.5, 175.5), pose))
    return Rig(tuple(views), "stub")


def numbers(name: str) -> set[int]:
    return {int(n) for n in os.environ.get(name, "").split(",") if n}


class StubGenerator:
    """Has the interface of LidarGenerator."""

    def __init__(self, bundle: str, *, engine: str = "auto", threads: int | None = None) -> None:
        if refusal := os.environ.get("STUB_REFUSE"):
            raise BundleError(refusal)
        if seconds := float(os.environ.get("STUB_BUILD_S", "0")):
            logging.getLogger("lidargen_ros.engines").info("building engine of the stub")
            time.sleep(seconds)
        self.sensor, self.rig, self.return_threshold = SENSOR, rig(), 0.5
        self._weights = [np.ones(1 << 17) for _ in range(int(os.environ.get("STUB_MEMORY_MB", "0")))]
        self._delay_s = float(os.environ.get("STUB_DELAY_S", "0"))
        self._fail, self._raise = numbers("STUB_FAIL_AT"), numbers("STUB_RAISE_AT")

    @property
    def raw_encodings(self) -> frozenset[str]:
        return RAW

    def check_steps(self, steps: int | None) -> int:
        return steps or 1

    def set_rig(self, rig: Rig) -> None:
        time.sleep(float(os.environ.get("STUB_RIG_S", "0")))
        self.rig = rig

    def __call__(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None = None,
        *,
        stamp_ns: int = 0,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sweep:
        frame = next(FRAMES)
        time.sleep(self._delay_s)
        if frame in self._fail:
            raise EngineError("out of memory (injected)")
        if frame in self._raise:
            raise ZeroDivisionError("injected")
        raw = [image.encoding for image in images if isinstance(image, RawPicture)]
        assert RAW.issuperset(raw), raw
        level = 0.0 if images[0] is None else float(to_rgb(images[0])[..., 0].mean())
        ranges = np.full(SENSOR.shape, 10 + level / 10, np.float32)
        ranges[:, ::9] = 0
        return Sweep(ranges, SENSOR, stamp_ns, intensity=np.full(SENSOR.shape, 0.5, np.float32))

    def describe(self) -> dict[str, Any]:
        return {"model": "stub", "engine": "numpy", "machine": "test"}

    def close(self) -> None:
        self._weights.clear()


if __name__ == "__main__":
    from lidargen_ros.ros.node import main

    sys.exit(main(make_generator=StubGenerator))
