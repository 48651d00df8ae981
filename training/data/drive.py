# SPDX-License-Identifier: Apache-2.0
"""What every source of recorded driving gives: spins and pictures by time, a track, a sensor and cameras.

Frames: LiDAR x forward, y left, z up; cameras OpenCV axes; metres; times in microseconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import DataError
from lidargen_ros.motion import interpolate_poses, invert_pose, spin_motion, transform, uncompensate
from lidargen_ros.sensors import Sensor


@dataclass(frozen=True)
class Spin:
    """One turn of the LiDAR, every point in the LiDAR frame at the time it was measured (not de-skewed).

    Attributes:
        points: [N, 3] float32 metres.
        intensity: [N] float32, nominally 0..1.
        rows: [N] row of each point in the drive's sensor, -1 unknown; None tells rows by elevation.
    """

    start_us: int
    end_us: int
    points: NDArray
    intensity: NDArray | None = None
    rows: NDArray | None = None


@dataclass(frozen=True)
class Picture:
    """One picture; ``load`` gives uint8 RGB [height, width, 3] when it is needed."""

    camera: str
    time_us: int
    load: Callable[[], NDArray]


class Track:
    """LiDAR-to-world poses over time.

    Args:
        times_us: [K] rising; poses: [K, 4, 4].
        extend_us: poses up to this far outside are extrapolated at constant velocity, so that the first and the
            last spin of a recording keep their ends.

    Raises:
        DataError: fewer than two poses, or times that do not rise.
    """

    def __init__(self, times_us: ArrayLike, poses: ArrayLike, extend_us: int = 150_000) -> None:
        times, matrices = np.asarray(times_us, np.int64), np.asarray(poses, np.float64)
        if len(times) < 2 or (np.diff(times) <= 0).any():
            raise DataError(f"track of {len(times)} poses: needs two or more, at rising times")
        if not np.isfinite(matrices).all():
            raise DataError("track: a pose holds NaN or infinity")
        # Velocities over at least 0.1 s, where there is that much: neighbours of a fast track are mostly noise.
        inner = min(int(np.searchsorted(times, times[0] + 100_000)), len(times) - 1)
        outer = max(int(np.searchsorted(times, times[-1] - 100_000, "right")) - 1, 0)
        before = _extrapolated(times[[inner, 0]], matrices[[inner, 0]], times[0] - extend_us)
        after = _extrapolated(times[[outer, -1]], matrices[[outer, -1]], times[-1] + extend_us)
        self.first_us, self.last_us = int(times[0]), int(times[-1])
        self._times = np.concatenate([[times[0] - extend_us], times, [times[-1] + extend_us]])
        self._poses = np.concatenate([before[None], matrices, after[None]])

    def covers(self, time_us: int) -> bool:
        """Whether the pose at this time is known (or within the extrapolated ends)."""
        return bool(self._times[0] <= time_us <= self._times[-1])

    def largest_gap_us(self, start_us: int, end_us: int) -> int:
        """Longest time without a pose that touches start..end."""
        first = max(int(np.searchsorted(self._times, start_us, "right")) - 1, 0)
        last = int(np.searchsorted(self._times, end_us, "left")) + 1
        return int(np.diff(self._times[first:last]).max(initial=0))

    def at(self, times_us: Sequence[int] | NDArray) -> NDArray:
        """[N, 4, 4] LiDAR-to-world. Raises InputError outside the track."""
        return interpolate_poses(np.asarray(times_us, np.int64), self._times, self._poses)


def _extrapolated(times: NDArray, poses: NDArray, wanted: int) -> NDArray:
    """Pose at ``wanted`` when the motion from poses[0] to poses[1], as the sensor sees it, goes on."""
    share = float(wanted - times[1]) / float(times[1] - times[0])
    step = invert_pose(poses[0]) @ poses[1]
    turn = Rotation.from_matrix(step[:3, :3]).as_rotvec()
    step[:3, :3], step[:3, 3] = Rotation.from_rotvec(turn * share).as_matrix(), step[:3, 3] * share
    pose: NDArray = poses[1] @ step
    return pose


class Drive(Protocol):
    """One recording: what a loader in ``training/data/sources`` returns.

    Attributes:
        name: tells recordings apart.
        group: what must not be divided between splits: the drive, or several pieces of one.
        sensor: the LiDAR; its rows number ``Spin.rows``.
        views: cameras by the name they get in the data set, the reference camera first.
        fps: rate of the reference camera.
        dropped: counts of what the loader left out, by reason; grows while events are read.
        notes: what the loader had to assume.
    """

    name: str
    group: str
    sensor: Sensor
    views: Mapping[str, View]
    fps: float
    dropped: dict[str, int]
    notes: list[str]

    def windows(self, length_s: float) -> Sequence[tuple[int, int]]:
        """Pieces of at most this length, in the drive's own clock; each becomes a clip."""
        ...

    def read(self, window: tuple[int, int]) -> tuple[Track, Iterator[Spin | Picture]]:
        """The track over a piece (and a little more), and its spins and pictures roughly by time."""
        ...


def to_ray_time(
    points: NDArray, fractions: NDArray, start: NDArray, end: NDArray, reference: NDArray | None = None
) -> NDArray:
    """Undo de-skewing: points [N, 3] all given at one pose -> each at its own time, float32.

    Args:
        fractions: [N] of the spin at which each point was measured.
        start, end: [4, 4] LiDAR-to-world at the ends of the spin.
        reference: [4, 4] LiDAR-to-world at the pose the points are given at; None is the start.
    """
    if reference is not None:
        points = transform(points, spin_motion(start, reference))
    return uncompensate(np.asarray(points, np.float64), fractions, spin_motion(start, end)).astype(np.float32)
