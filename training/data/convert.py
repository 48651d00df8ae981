# SPDX-License-Identifier: Apache-2.0
"""Turns a recorded drive into clips: pairs pictures with spins, projects points, writes, and counts what is lost.

Frame ``f`` of a clip is the f-th picture of the reference camera; the other cameras join it with their nearest
picture. A camera without one within the tolerance gets a place holder without pose, so readers leave the frame
out. Each spin goes with the complete frame nearest to its start.
"""

import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidargen_ros.errors import DataError, LidargenError
from lidargen_ros.motion import invert_pose
from lidargen_ros.projection import points_to_range_map

from .clips_writer import ClipWriter
from .drive import Drive, Picture, Spin
from .ftheta_fit import Lens, lens_for

_MOST_WAITING = 120  # pictures per camera held until the LiDAR catches up


@dataclass(frozen=True)
class ConvertOptions:
    """How drives become clips.

    Attributes:
        clip_length_s: length of a clip; the published ones have 20 s.
        min_spins: clips with fewer spins are not written.
        camera_tolerance_s: pictures of one frame lie at most this far from the reference camera's.
        spin_tolerance_s: a spin's start and its picture lie at most this far apart; 0: 0.55 picture periods.
        max_track_gap_s: a spin during a longer gap between poses is dropped.
        max_width: wider pictures are scaled down to this; 0 keeps them.
        crf: quality of the video, 0 (lossless) to 51; 18 is visually lossless.
        strict: stop at the first item that cannot be used instead of counting it.
    """

    clip_length_s: float = 20.0
    min_spins: int = 10
    camera_tolerance_s: float = 0.02
    spin_tolerance_s: float = 0.0
    max_track_gap_s: float = 0.5
    max_width: int = 0
    crf: int = 18
    strict: bool = False


@dataclass
class Summary:
    """What became of a drive. ``spins_read == spins_kept + sum(spins_dropped.values())``."""

    drive: str
    group: str = ""  # pieces of one group stay in one split
    clips: list[str] = field(default_factory=list)
    clips_there: list[str] = field(default_factory=list)  # written by an earlier run
    clips_dropped: Counter[str] = field(default_factory=Counter)
    spins_read: int = 0
    spins_kept: int = 0
    spins_dropped: Counter[str] = field(default_factory=Counter)
    frames: int = 0  # pictures of the reference camera written
    frames_incomplete: Counter[str] = field(default_factory=Counter)
    source_dropped: Counter[str] = field(default_factory=Counter)
    points_read: int = 0
    points_kept: int = 0
    sync_error_us: list[int] = field(default_factory=list)  # picture minus spin start, of kept spins
    notes: list[str] = field(default_factory=list)


def clip_name(drive: str, window: tuple[int, int]) -> str:
    """``<uuid>_<start>_<end>``; the uuid is the drive's and always the same."""
    return f"{uuid.uuid5(uuid.NAMESPACE_URL, f'lidargen-drive:{drive}')}_{window[0]}_{window[1]}"


def convert(
    drive: Drive,
    root: Path,
    options: ConvertOptions = ConvertOptions(),
    progress: Callable[[float], None] = lambda share: None,
) -> Summary:
    """Write the clips of a drive below ``root``; clips that are complete there are left alone.

    Args:
        progress: called with the share of the drive that is done, 0..1.

    Raises:
        LidargenError: with ``strict`` for any item that cannot be used; always for a drive that cannot be read.
    """
    summary = Summary(drive.name, drive.group)
    lenses = {name: lens_for(view.camera, options.max_width) for name, view in drive.views.items()}
    for name, lens in lenses.items():
        if lens.resampled:
            summary.notes.append(f"{name}: pictures are resampled to an f-theta camera")
    windows = drive.windows(options.clip_length_s)
    for number, window in enumerate(windows):
        name = clip_name(drive.name, window)
        if (root / "metadata" / f"{name}.npz").exists():
            summary.clips_there.append(name)
        else:
            writer = ClipWriter(
                root, name, drive.sensor, {k: v.vector for k, v in lenses.items()}, drive.fps, options.crf
            )
            with writer:
                job = _ClipJob(drive, window, writer, lenses, options, summary)
                job.run(lambda share, done=number: progress((done + share) / len(windows)))
        progress((number + 1) / len(windows))
    summary.source_dropped.update(drive.dropped)
    summary.notes.extend(drive.notes)
    return summary


class _ClipJob:
    """One clip in the making. Pictures wait until the LiDAR has passed them, spins until the pictures have."""

    def __init__(
        self,
        drive: Drive,
        window: tuple[int, int],
        writer: ClipWriter,
        lenses: dict[str, Lens],
        options: ConvertOptions,
        summary: Summary,
    ) -> None:
        self.drive, self.window, self.writer, self.lenses = drive, window, writer, lenses
        self.options, self.summary = options, summary
        self.cameras = list(drive.views)
        self.pictures: dict[str, deque[Picture]] = {name: deque() for name in self.cameras}
        self.newest: dict[str, int] = {}
        self.spins: deque[Spin] = deque()
        self.complete: deque[tuple[int, int]] = deque()  # (frame, time) not yet used by a spin
        self.placeholder: dict[str, NDArray] = {}
        self.first_us: int | None = None
        self.passed_us = 0  # pictures up to here have been decided
        self.used_frame = -1
        self.origin = np.eye(4)
        self.tolerance_us = round((options.spin_tolerance_s or 0.55 / drive.fps) * 1e6)

    def run(self, progress: Callable[[float], None]) -> None:
        """Read the window to its end and finish the clip, unless too little of it is usable."""
        try:
            self.track, events = self.drive.read(self.window)
        except DataError as error:  # nothing recorded of the motion, for example; the other clips may be well
            self._refuse(error, self.summary.clips_dropped, "clip")
            return
        for event in events:
            if isinstance(event, Picture):
                self._take_picture(event)
            else:
                self._take_spin(event)
                done = (event.start_us - (self.first_us or 0)) / (self.options.clip_length_s * 1e6)
                progress(min(max(done, 0.0), 1.0))
            self._advance(final=False)
        self._advance(final=True)
        if self.writer.spins < self.options.min_spins:
            self.summary.clips_dropped[f"fewer than {self.options.min_spins} usable spins"] += 1
            self._drop_spins("in a clip too short to keep", self.writer.spins)
            self.summary.spins_kept -= self.writer.spins
            return
        self.writer.finish()
        self.summary.clips.append(self.writer.clip)

    def _refuse(self, error: LidargenError, counter: Counter[str], what: str) -> None:
        if self.options.strict:
            raise error
        counter[f"{what}: {error}" if len(counter) < 50 else what] += 1

    def _drop_spins(self, reason: str, count: int = 1) -> None:
        if count and self.options.strict:
            raise DataError(f"drive {self.drive.name}, clip {self.writer.clip}: spin dropped: {reason}")
        if count:
            self.summary.spins_dropped[reason] += count

    def _take_picture(self, picture: Picture) -> None:
        if picture.time_us <= self.newest.get(picture.camera, -1):
            self.summary.frames_incomplete[f"{picture.camera}: picture out of order"] += 1
            return
        self.newest[picture.camera] = picture.time_us
        waiting = self.pictures[picture.camera]
        waiting.append(picture)
        # Before the first spin nothing is known to be wanted; keep a little and let the rest go.
        if self.first_us is None:
            while waiting[0].time_us < picture.time_us - 300_000:
                waiting.popleft()
        elif len(waiting) > _MOST_WAITING:
            waiting.popleft()
            self.summary.frames_incomplete[f"{picture.camera}: more than {_MOST_WAITING} pictures ahead"] += 1

    def _take_spin(self, spin: Spin) -> None:
        self.summary.spins_read += 1
        self.summary.points_read += len(spin.points)
        latest = self.spins[-1].start_us if self.spins else self.last_spin_us
        if spin.start_us <= latest:
            self._drop_spins("starts before the spin ahead of it")
        elif not (self.track.covers(spin.start_us) and self.track.covers(spin.end_us)):
            self._drop_spins("no pose of the vehicle at that time")
        elif self.track.largest_gap_us(spin.start_us, spin.end_us) > self.options.max_track_gap_s * 1e6:
            self._drop_spins(f"more than {self.options.max_track_gap_s} s between poses")
        else:
            if self.first_us is None:
                # Poses are stored as float32: the world of a clip begins at its first spin, so they stay small.
                self.first_us, self.origin = spin.start_us, invert_pose(self.track.at([spin.start_us])[0])
            self.spins.append(spin)
            self.passed_us = max(self.passed_us, spin.end_us)

    last_spin_us = -1

    def _advance(self, final: bool) -> None:
        """Decide the frames that can be decided, then the spins whose frames are all decided."""
        decided = self._decide_frames(final)
        while self.spins and (final or decided >= self.spins[0].start_us + self.tolerance_us):
            self._write_spin(self.spins.popleft())

    def _decide_frames(self, final: bool) -> int:
        """Write frames up to the newest spin; returns the time up to which all frames are known."""
        if self.first_us is None:
            return -1
        reference, *others = self.cameras
        near_us = round(self.options.camera_tolerance_s * 1e6)
        waiting = self.pictures[reference]
        end = self.passed_us + (self.tolerance_us if final else 0)
        while waiting and waiting[0].time_us <= end:
            picture = waiting[0]
            # A camera is known here once it has given a later picture; half a second late counts as silent.
            late = self.newest[reference] - picture.time_us > 500_000
            known = all(self.newest.get(name, -1) >= picture.time_us + near_us for name in others)
            if not (known or late or final):
                return picture.time_us - 1
            waiting.popleft()
            if picture.time_us >= self.first_us - self.tolerance_us:
                self._write_frame(
                    picture, {name: self._nearest(name, picture.time_us, near_us) for name in others}
                )
        return waiting[0].time_us - 1 if waiting else min(self.newest.get(reference, -1), end)

    def _nearest(self, camera: str, time_us: int, near_us: int) -> Picture | None:
        waiting = self.pictures[camera]
        while waiting and waiting[0].time_us < time_us - near_us:
            waiting.popleft()
        best = min(waiting, key=lambda picture: abs(picture.time_us - time_us), default=None)
        return best if best is not None and abs(best.time_us - time_us) <= near_us else None

    def _write_frame(self, reference: Picture, others: dict[str, Picture | None]) -> None:
        loaded: dict[str, NDArray] = {}
        missing = self.summary.frames_incomplete
        chosen: dict[str, Picture | None] = {reference.camera: reference, **others}
        for camera, picture in chosen.items():
            if picture is None:
                missing[f"{camera}: no picture within {self.options.camera_tolerance_s} s"] += 1
            elif not self.track.covers(picture.time_us):
                missing[f"{camera}: no pose of the vehicle at that time"] += 1
            else:
                try:
                    loaded[camera] = self.lenses[camera].picture(picture.load())
                except LidargenError as error:
                    self._refuse(error, missing, f"{camera}: picture cannot be used")
        frame = -1
        for camera in self.cameras:
            rgb = loaded.get(camera)
            if rgb is None:
                target = self.lenses[camera].target
                rgb = self.placeholder.get(camera, np.zeros((target.height, target.width, 3), np.uint8))
            self.placeholder[camera] = rgb
            frame = self.writer.add_image(camera, rgb)
        self.summary.frames += 1
        for camera in loaded:
            picture = chosen[camera]
            assert picture is not None
            pose = self._world(picture.time_us) @ self.drive.views[camera].camera_to_lidar
            self.writer.add_camera_pose(camera, frame, pose, picture.time_us)
        if len(loaded) == len(self.cameras):
            self.complete.append((frame, reference.time_us))

    def _world(self, time_us: int) -> NDArray:
        """LiDAR-to-world [4, 4] in the clip's own world."""
        pose: NDArray = self.origin @ self.track.at([time_us])[0]
        return pose

    def _write_spin(self, spin: Spin) -> None:
        self.last_spin_us = spin.start_us
        while len(self.complete) > 1 and abs(self.complete[1][1] - spin.start_us) <= abs(
            self.complete[0][1] - spin.start_us
        ):
            self.complete.popleft()
        if not self.complete or abs(self.complete[0][1] - spin.start_us) > self.tolerance_us:
            self._drop_spins(f"no complete frame within {self.tolerance_us / 1e6:.3f} s of its start")
            return
        range_map, intensity = points_to_range_map(spin.points, self.drive.sensor, spin.intensity, spin.rows)
        if not range_map.any():
            self._drop_spins("no point on the sensor's rays")
            return
        frame, time_us = self.complete.popleft()
        poses = np.stack([self._world(t) for t in (spin.start_us, spin.end_us)])
        times = (spin.start_us, spin.end_us)
        self.writer.add_spin(
            frame, range_map, poses, times, intensity if spin.intensity is not None else None
        )
        self.summary.spins_kept += 1
        self.summary.points_kept += int((range_map > 0).sum())
        self.summary.sync_error_us.append(time_us - spin.start_us)
