# SPDX-License-Identifier: Apache-2.0
"""Keeps the generator's rig up to date while frames go on; ray maps are rebuilt on a thread of their own. No ROS here."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..cameras import Rig
from ..errors import CalibrationError
from .calibration import LiveCalibration, Poses, chosen_rig, doubts
from .parameters import Settings
from .pipeline import Generator
from .reporter import Reporter
from .statistics import Statistics
from .worker import Worker


@dataclass(frozen=True)
class CalibrationState:
    """What the diagnostics tell about the calibration."""

    source: str = ""
    missing: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    stamps_ns: dict[str, int] = field(default_factory=dict)  # of the CameraInfo in use, by camera
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # width, height, by camera


class Calibrator:
    """Decides which rig the generator uses: the parameter's, the bundle's, or what CameraInfo and TF say.

    Args:
        poses: TF, with ``calibration: tf``.
        changed: called, on any thread, after the generator has taken another rig.

    Raises:
        ConfigError: the rig does not exist or does not fit the cameras. CalibrationError: implausible values.
    """

    def __init__(
        self,
        generator: Generator,
        settings: Settings,
        statistics: Statistics,
        reporter: Reporter,
        changed: Callable[[], None],
        poses: Poses | None = None,
    ) -> None:
        self._generator, self._statistics, self._reporter = generator, statistics, reporter
        self._changed, self._own = changed, generator.rig
        rig = chosen_rig(self._own, settings)
        generator.set_rig(rig)
        self._live = None if settings.calibration == "rig" else LiveCalibration(rig, settings, poses)
        self.ready = self._live is None
        """Whether there is a calibration to work with."""
        self._worker: Worker[Rig] | None = None

    @property
    def listens(self) -> bool:
        """Whether CameraInfo is wanted."""
        return self._live is not None

    @property
    def missing(self) -> list[str]:
        """What is waited for before the first frame can be used."""
        return self._live.missing if self._live else []

    def start(self) -> None:
        """Start the thread that rebuilds."""
        self._worker = Worker("calibrate", self._rebuild, replaced=lambda _: None, failed=self._on_failure)

    def stop(self) -> bool:
        """Whether the thread ended in time."""
        worker, self._worker = self._worker, None
        return worker is None or worker.stop(drain=True)

    def on_info(self, camera: str, topic: str, info: Any, settings: Settings) -> None:
        """A CameraInfo came."""
        if self._live is None:
            return
        try:
            self._take(self._live.update(camera, topic, info, settings.frame_id))
        except CalibrationError as e:
            self._statistics.note(f"bad_calibration:{camera}")
            self._reporter.warning(topic, f"{e}; the message is not used")

    def look_up(self, settings: Settings) -> None:
        """Read TF anew; call it now and then."""
        if self._live is None:
            return
        try:
            self._take(self._live.look_up(settings.frame_id))
        except CalibrationError as e:
            self._statistics.note("bad_calibration:tf")
            self._reporter.warning("tf", f"{e}; the last poses stay in use")

    def check(self, settings: Settings) -> None:
        """Whether the settings' rig could be used. Raises ConfigError or CalibrationError."""
        chosen_rig(self._own, settings)

    def choose(self, settings: Settings) -> None:
        """Take the rig that changed settings ask for."""
        rig = chosen_rig(self._own, settings)
        self._take(self._live.rebase(rig) if self._live else rig)

    def state(self) -> CalibrationState:
        """For the diagnostics."""
        rig = self._generator.rig
        sizes = [(v.camera.width, v.camera.height) for v in rig.views]
        return CalibrationState(
            rig.source or rig.name,
            self.missing,
            doubts(rig),
            dict(self._live.stamps_ns) if self._live else {},
            dict(zip(self._statistics.cameras, sizes, strict=True)),
        )

    def _take(self, rig: Rig | None) -> None:
        if rig is None:
            return
        if self._worker is None:  # not active: nobody waits
            self._rebuild(rig)
        else:
            self._worker.submit(rig)

    def _rebuild(self, rig: Rig) -> None:
        """Frames in flight finish with the old maps."""
        self._generator.set_rig(rig)
        self.ready = True
        self._statistics.note("calibrations")
        self._changed()

    def _on_failure(self, rig: Rig, error: Exception) -> None:
        text = "".join(traceback.format_exception(error)).rstrip()
        self._statistics.note("failed_calibrations")
        self._reporter.error(
            "calibrate", f"{type(error).__name__}: {error}; the last calibration stays\n{text}"
        )
