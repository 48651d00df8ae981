# SPDX-License-Identifier: Apache-2.0
"""Image messages of a set to pictures, on threads of their own: JPEG takes 6 ms per 720p picture. No ROS in here."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from ..cameras.encodings import Picture, picture_size
from ..errors import InputError
from .matcher import FrameSet
from .messages import picture_of
from .parameters import Settings
from .reporter import Reporter
from .statistics import Statistics


class Decoder:
    """Decodes the images of a set side by side; OpenCV gives the interpreter free meanwhile.

    Args:
        raw: encodings that the generator takes as the cameras send them: there is nothing to do for those.
        convert: for image encodings that :mod:`.messages` does not know.
    """

    def __init__(
        self,
        statistics: Statistics,
        reporter: Reporter,
        raw: Collection[str] = (),
        convert: Callable[[Any], NDArray] | None = None,
    ) -> None:
        self._statistics, self._reporter, self._raw, self._convert = statistics, reporter, raw, convert
        self._pool = ThreadPoolExecutor(max_workers=3, thread_name_prefix="jpeg")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __call__(self, frames: FrameSet, s: Settings) -> list[Picture | None] | None:
        """Pictures in the order of the cameras; None if too few can be read."""

        def one(index: int) -> Picture | None:
            frame, camera = frames.frames[index], s.cameras[index]
            if frame is None:
                return None
            picture = frame.payload
            try:
                image = picture_of(
                    picture.message,
                    raw=self._raw,
                    max_pixels=s.max_image_pixels,
                    otherwise=self._convert,
                )
            except InputError as e:
                self._statistics.cameras[camera].bad += 1
                self._reporter.warning(picture.topic, f"{picture.topic}: {e}; the image is not used")
                return None
            height, width = picture_size(image)
            self._statistics.cameras[camera].size = (width, height)
            return image

        images = list(self._pool.map(one, range(len(frames.frames))))
        usable = sum(image is not None for image in images)
        return images if usable >= (s.min_cameras or len(images)) else None
