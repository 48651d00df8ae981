# SPDX-License-Identifier: Apache-2.0
"""Frames of a video by number, with PyAV: seeks to the key frame before, decodes only from there.

Frame ``n`` is the n-th in display order, whatever the time stamps say; data sets address video so.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import DataError

MAX_PIXELS = 1 << 25  # 32 Mpx: above any automotive camera, and 100 MB in memory


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("reading video needs PyAV, which is not installed; pip install av") from error
    return av


class VideoReader:
    """One open video file.

    Raises:
        DataError: naming the file, if it is missing, not a video, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = _pyav()
        try:
            self._container = self._av.open(str(path), metadata_errors="ignore")
        except (OSError, ValueError, self._av.FFmpegError) as error:
            raise DataError(f"{path}: cannot be opened as a video ({error}); copy it again") from error
        try:
            self._stream = self._usable_stream()
            self._stamps = self._frame_stamps()
        except DataError:
            self.close()
            raise
        self.width, self.height = self._stream.width, self._stream.height
        self._frames: Any = None  # the running decoder and the number of the frame it gives next
        self._next = -1

    def _usable_stream(self) -> Any:
        streams = self._container.streams.video
        if not streams or streams[0].codec_context is None:
            raise DataError(f"{self.path}: holds no video that can be decoded; expected an mp4 with one")
        size = streams[0].width, streams[0].height
        if not (min(size) > 0 and size[0] * size[1] <= MAX_PIXELS):
            raise DataError(f"{self.path}: pictures of {size[0]} x {size[1]} are not believable")
        # One thread: loaders run many readers side by side, and decoder threads do not survive a fork.
        streams[0].codec_context.thread_count = 1
        return streams[0]

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def fps(self) -> float:
        """Mean frame rate in Hz."""
        rate = self._stream.average_rate
        return float(rate) if rate else 0.0

    def _frame_stamps(self) -> list[int]:
        """Presentation stamps in display order, in units of the stream's time base."""
        # The container's index costs no reading. It holds decoding stamps; evenly spaced ones mean evenly
        # spaced pictures, so the n-th stamp is known. Otherwise all packets are read once (not decoded).
        entries = getattr(self._stream, "index_entries", None) or []
        decoding = [entry.timestamp for entry in entries]
        steps = {b - a for a, b in pairwise(decoding)}
        if (
            len(decoding) == self._stream.frames > 0
            and len(steps) <= 1
            and self._stream.start_time is not None
        ):
            step = steps.pop() if steps else 1
            return [self._stream.start_time + n * step for n in range(len(decoding))]
        try:
            stamps = sorted(p.pts for p in self._container.demux(self._stream) if p.pts is not None)
        except (ValueError, self._av.FFmpegError) as error:
            raise DataError(f"{self.path}: damaged video ({error}); copy it again") from error
        return stamps

    def frame(self, number: int) -> NDArray:
        """RGB picture ``number`` as uint8 ``[height, width, 3]``.

        Raises:
            DataError: if the video is shorter, or cannot be decoded there.
        """
        if not 0 <= number < len(self):
            raise DataError(f"{self.path}: frame {number} asked for, the video has {len(self)}")
        try:
            # Going on costs less than seeking when the wanted frame is close ahead.
            near = self._frames is not None and self._next <= number <= self._next + 12
            found = self._decode_to(number) if near else None
            # Files are sought by decoding stamps, which may lead to a key frame shown after the wanted picture:
            # then from further ahead.
            for earlier in (0, 16, 128, number):
                if found is not None:
                    break
                self._container.seek(
                    self._stamps[max(0, number - earlier)], stream=self._stream, backward=True
                )
                self._frames = self._container.decode(self._stream)
                found = self._decode_to(number)
        except (ValueError, self._av.FFmpegError) as error:
            self._frames = None
            raise DataError(f"{self.path}: frame {number} is damaged ({error}); copy it again") from error
        if found is None:
            self._frames = None
            raise DataError(f"{self.path}: frame {number} of {len(self)} is not there; copy it again")
        self._next = number + 1
        return found

    def _decode_to(self, number: int) -> NDArray | None:
        """Decode up to a picture; None if the decoder is past it or it never comes."""
        target = self._stamps[number]
        for picture in self._frames:
            if picture.pts is not None and picture.pts >= target:
                if picture.pts > target or (picture.width, picture.height) != (self.width, self.height):
                    return None
                rgb: NDArray = picture.to_ndarray(format="rgb24")
                return rgb
        return None

    def close(self) -> None:
        self._container.close()


_OF_THE_PARENT: list[Any] = []


class OpenFiles:
    """The last ``capacity`` opened files; the one unused longest is closed first.

    Safe in data loader workers: an object that reaches another process (fork or pickle) starts empty there.
    """

    def __init__(self, opener: Callable[[Path], Any], capacity: int = 16) -> None:
        self._opener, self._capacity = opener, capacity
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._pid = os.getpid()

    def __call__(self, path: Path) -> Any:
        if self._pid != os.getpid():
            # After a fork these belong to the parent. Freeing its decoders here waits for threads that this
            # process does not have, for ever.
            _OF_THE_PARENT.append(self._open)
            self._open, self._pid = OrderedDict(), os.getpid()
        if path not in self._open:
            self._open[path] = self._opener(path)
            while len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def __getstate__(self) -> dict:
        return {"_opener": self._opener, "_capacity": self._capacity}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["_opener"], state["_capacity"])  # type: ignore[misc]

    def close(self) -> None:
        if self._pid == os.getpid():
            for file in self._open.values():
                file.close()
            self._open.clear()
