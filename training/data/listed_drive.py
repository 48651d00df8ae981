# SPDX-License-Identifier: Apache-2.0
"""A drive whose spins and pictures are files in a list, read when their turn comes."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
from numpy.typing import NDArray

from lidargen_ros.bags.pointclouds import Cloud
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import DataError
from lidargen_ros.sensors import Sensor

from .clouds import CloudReader
from .drive import Picture, Spin, Track
from .recut import Recut

_MARGIN_US = 500_000


@dataclass
class ListedDrive:
    """See :class:`training.data.drive.Drive`.

    Attributes:
        clouds: (time in microseconds, loader) of each cloud, by time.
        reader: makes turns of them.
        pictures: of all cameras, by time.
        strict: raise for a cloud that cannot be used instead of counting it.
    """

    name: str
    group: str
    views: Mapping[str, View]
    fps: float
    track: Track
    clouds: Sequence[tuple[int, Callable[[], Cloud]]]
    reader: CloudReader
    pictures: Sequence[Picture]
    strict: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def sensor(self) -> Sensor:
        return self.reader.sensor

    def windows(self, length_s: float) -> list[tuple[int, int]]:
        """Pieces from the first cloud on."""
        length, begin, end = round(length_s * 1e6), self.clouds[0][0], self.clouds[-1][0] + 1
        return [(start, min(start + length, end)) for start in range(begin, end, length)]

    def read(self, window: tuple[int, int]) -> tuple[Track, Iterator[Spin | Picture]]:
        """See :class:`training.data.drive.Drive`."""
        near = (window[0] - _MARGIN_US, window[1] + _MARGIN_US)
        pictures = ((p.time_us, 0, p) for p in self.pictures if near[0] <= p.time_us < near[1])
        spins = ((spin.end_us, 1, spin) for spin in self._spins(window))
        # Turns are known when they end; pictures when they are taken.
        return self.track, (event for _, _, event in heapq.merge(pictures, spins, key=lambda item: item[:2]))

    def _spins(self, window: tuple[int, int]) -> Iterator[Spin]:
        recut = Recut(self.sensor)
        inside = [i for i, (time, _) in enumerate(self.clouds) if window[0] <= time < window[1]]
        if not inside:
            return
        first, last = max(inside[0] - 1, 0), inside[-1]
        held: Cloud | None = None
        for index in range(first, min(last + 2, len(self.clouds)) + 1):
            cloud = self._load(index) if index < len(self.clouds) and index <= last + 1 else None
            if held is not None:
                yield from self._turn(recut, held, cloud, index - 1 in inside)
            held = cloud
        for reason, count in recut.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _load(self, index: int) -> Cloud | None:
        try:
            cloud = self.clouds[index][1]()
            if not len(cloud):
                raise DataError(f"drive {self.name}: cloud {index} is empty")
            return cloud
        except DataError as error:
            self._refuse(error)
            return None

    def _turn(self, recut: Recut, cloud: Cloud, following: Cloud | None, wanted: bool) -> Iterator[Spin]:
        end = None if following is None else self.reader.start_us(following)
        try:
            spin = recut.add(*self.reader.turn(cloud, end, self.track))
        except DataError as error:
            if wanted:
                self._refuse(error)
            return
        if spin is not None and wanted:
            yield spin

    def _refuse(self, error: DataError) -> None:
        if self.strict:
            raise error
        self.dropped[str(error)] = self.dropped.get(str(error), 0) + 1


def picture_rate(pictures: Sequence[Picture], camera: str) -> float:
    """Pictures of a camera per second, from the usual step. Raises DataError for fewer than two."""
    times = sorted(p.time_us for p in pictures if p.camera == camera)
    gaps = sorted(b - a for a, b in pairwise(times) if b > a)
    if not gaps:
        raise DataError(f"{camera}: fewer than two pictures with different times")
    rate = 1e6 / gaps[len(gaps) // 2]
    return float(round(rate)) if abs(rate - round(rate)) < 0.05 * rate and rate > 2 else round(rate, 2)


def read_picture(path: Path) -> NDArray:
    """uint8 RGB [height, width, 3] of an image file. Raises DataError if it is missing or damaged."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DataError(f"{path}: missing or damaged picture")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
