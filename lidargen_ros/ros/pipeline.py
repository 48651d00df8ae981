# SPDX-License-Identifier: Apache-2.0
"""From a set of matched images to published messages; runs on the worker's thread. No ROS in here."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cameras import Rig
from ..errors import EngineError, InputError
from ..sensors import Sensor
from ..sweep import Sweep
from .matcher import FrameSet
from .messages import compressed_to_rgb, image_to_rgb
from .parameters import Settings
from .reporter import Reporter
from .statistics import Statistics


class Generator(Protocol):
    """What the node needs of :class:`lidargen_ros.LidarGenerator`; tests put in their own."""

    sensor: Sensor
    return_threshold: float

    @property
    def rig(self) -> Rig: ...

    def set_rig(self, rig: Rig) -> None: ...

    def __call__(
        self,
        images: Sequence[NDArray | None],
        rig: Rig | None = None,
        *,
        stamp_ns: int = 0,
        steps: int | None = None,
        seed: int = 0,
    ) -> Sweep: ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Pipeline:
    """Decodes, generates, checks and publishes one set at a time; each set ends published or under a drop reason.

    Args:
        publish: takes the sweep, the stamp message of the first camera and the settings.
        now_ns: the node's clock, for the age of data.
        convert: for image encodings that :mod:`.messages` does not know.
    """

    def __init__(
        self,
        generator: Generator,
        publish: Callable[[Sweep, Any, Settings], None],
        statistics: Statistics,
        reporter: Reporter,
        now_ns: Callable[[], int],
        convert: Callable[[Any], NDArray] | None = None,
    ) -> None:
        self._generator, self._publish, self._statistics = generator, publish, statistics
        self._reporter, self._now_ns, self._convert = reporter, now_ns, convert
        self._pool = ThreadPoolExecutor(max_workers=3, thread_name_prefix="decode")
        self._default_threshold = generator.return_threshold

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()

    def __call__(self, job: tuple[FrameSet, Settings]) -> None:
        """One set, from its messages to its publication."""
        frames, s = job
        start = time.monotonic()
        present = [f for f in frames.frames if f is not None]
        arrivals = [f.payload.received for f in present]
        age_s = (self._now_ns() - frames.stamp_ns) / 1e9
        if s.deadline and age_s > s.deadline:
            self._reporter.warning(
                "deadline",
                f"sets are {age_s:.2f} s old when their turn comes, deadline is {s.deadline:g} s: dropped",
            )
            self._statistics.drop("too_old")
            return
        images = self._decode(frames, s)
        if images is None:
            self._statistics.drop("bad_image")
            return
        decoded = time.monotonic()
        sweep = self._generate(images, frames.stamp_ns, s)
        if sweep is None:
            return
        generated = time.monotonic()
        stamp = next(f for f in present if f.stamp_ns == frames.stamp_ns).payload.message.header.stamp
        self._publish(sweep, stamp, s)
        done = time.monotonic()
        for stage, seconds in (
            ("match", max(arrivals) - min(arrivals)),
            ("wait", start - max(arrivals)),
            ("decode", decoded - start),
            ("generate", generated - decoded),
            ("publish", done - generated),
            ("total", done - min(arrivals)),
        ):
            self._statistics.stages[stage].add(seconds)
        self._statistics.publish((self._now_ns() - frames.stamp_ns) / 1e9, frames.spread_ns / 1e9)

    def _decode(self, frames: FrameSet, s: Settings) -> list[NDArray | None] | None:
        """RGB images in the order of the cameras; None if too few can be read."""

        def one(index: int) -> NDArray | None:
            frame, camera = frames.frames[index], s.cameras[index]
            if frame is None:
                return None
            picture = frame.payload
            try:
                if picture.transport == "raw":
                    image = image_to_rgb(
                        picture.message, max_pixels=s.max_image_pixels, otherwise=self._convert
                    )
                else:
                    image = compressed_to_rgb(picture.message, max_pixels=s.max_image_pixels)
            except InputError as e:
                self._statistics.cameras[camera].bad += 1
                self._reporter.warning(picture.topic, f"{picture.topic}: {e}; the image is not used")
                return None
            self._note_size(camera, index, picture.topic, (image.shape[1], image.shape[0]))
            return image

        images = list(self._pool.map(one, range(len(frames.frames))))
        usable = sum(image is not None for image in images)
        return images if usable >= (s.min_cameras or len(images)) else None

    def _note_size(self, camera: str, index: int, topic: str, size: tuple[int, int]) -> None:
        """Say once when a camera's size changes, and whether it fits the calibration."""
        state = self._statistics.cameras[camera]
        if state.size == size:
            return
        state.size = size
        calibrated = self._generator.rig.views[index].camera
        stretch = size[0] / size[1] / (calibrated.width / calibrated.height)
        if not 0.97 < stretch < 1.03:
            self._statistics.note(f"odd_size:{camera}")
            self._reporter.warning(
                f"{topic} size",
                f"{topic}: images are {size[0]} x {size[1]}, the calibration is for {calibrated.width} x "
                f"{calibrated.height}: not the same proportions; correct the rig if the images are cropped",
            )

    def _generate(self, images: list[NDArray | None], stamp_ns: int, s: Settings) -> Sweep | None:
        self._generator.return_threshold = s.return_threshold or self._default_threshold
        try:
            sweep = self._generator(images, stamp_ns=stamp_ns, steps=s.steps or None, seed=s.seed)
        except (EngineError, MemoryError) as e:
            what = str(e) or type(e).__name__
            self._reporter.error("engine", f"the engine failed on a frame: {what}; it is dropped")
            self._statistics.drop("engine")
            return None
        if not np.isfinite(sweep.range_map).all():
            self._reporter.error("output", "the model gave ranges that are not finite; the sweep is dropped")
            self._statistics.drop("bad_output")
            return None
        kept = (sweep.range_map >= s.min_range) & (sweep.range_map <= s.max_range)
        return replace(sweep, range_map=np.where(kept, sweep.range_map, np.float32(0)))
