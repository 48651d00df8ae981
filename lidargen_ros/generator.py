# SPDX-License-Identifier: Apache-2.0
"""``LidarGenerator``: images in, ``Sweep`` out. The one class that node, bags, command line and benchmarks drive."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import __version__
from .bundle import Bundle, load_bundle
from .bundle_engines import open_engine
from .cameras.align import Alignment, align
from .cameras.encodings import Picture
from .cameras.rig import Rig
from .errors import BundleError, ConfigError, InputError
from .frame_pipeline import Before, FramePipeline, Limits, Maps, Points
from .sensors import Sensor
from .sweep import Sweep

FEATURES = ("full", "fine", "patch", "mid", "coarse")


class LidarGenerator:
    """Turns one set of camera images into one sweep.

    Example:
        >>> generator = LidarGenerator.from_bundle("nano")
        >>> sweep = generator([front, rear_left, rear_right])
        >>> sweep.range_map.shape, sweep.points().shape[1]
        ((128, 1800), 3)
    """

    def __init__(self, bundle: Bundle, pipeline: FramePipeline, *, lidar_height: float | None = None) -> None:
        self.bundle = bundle
        self.sensor: Sensor = bundle.sensor
        self._pipeline = pipeline
        student = bundle.manifest["preprocessing"]
        self.tile: tuple[int, int] = tuple(student["tile"])
        self.hypotheses = tuple(student["hypotheses"])
        self.lidar_height = float(student["lidar_height_m"] if lidar_height is None else lidar_height)
        defaults = bundle.manifest["sampler"]
        self.steps = int(defaults["steps"])
        self.return_threshold = float(defaults["return_threshold"])
        self._lock = threading.Lock()
        self._aligned: tuple[Rig, Alignment] | None = None
        self._default_rig = bundle.rig

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        *,
        engine: str = "auto",
        threads: int | None = None,
        lidar_height: float | None = None,
    ) -> LidarGenerator:
        """Loads and verifies a bundle and opens its graphs.

        Args:
            bundle: folder, or the name of a shipped one such as ``"nano"``.
            engine: ``"auto"`` or a name from ``engines.select``.
            threads: host threads per frame; None takes one per core.
            lidar_height: of the imitated LiDAR above the ground, metres; None takes the bundle's.

        Raises:
            BundleError: the bundle is missing, incomplete or altered.
            EngineError: no engine, or not the wanted one, can run here.
        """
        loaded = load_bundle(bundle)
        if loaded.manifest["family"] != "student":
            raise BundleError(
                f"bundle {loaded.name} is of family {loaded.manifest['family']}; LidarGenerator runs students"
            )
        opened = open_engine(loaded, engine, threads=threads)
        tile = tuple(loaded.manifest["preprocessing"]["tile"])
        return cls(loaded, FramePipeline(opened, tile, loaded.sensor.shape), lidar_height=lidar_height)

    @property
    def rig(self) -> Rig:
        """The rig in use: the last one set, else the bundle's own."""
        aligned = self._aligned
        return aligned[0] if aligned else self._default_rig

    def set_rig(self, rig: Rig) -> None:
        """Rebuilds the ray maps for another calibration; frames in flight finish with the old one."""
        self._align(rig)

    def with_sensor(self, sensor: Sensor) -> LidarGenerator:
        """The same engines imitating another LiDAR: students read its rays, so beams may lie elsewhere.

        Raises:
            ConfigError: other numbers of rows or columns than the graphs were exported for.
        """
        if sensor.shape != self.sensor.shape:
            raise ConfigError(
                f"sensor {sensor.name} is {sensor.shape}, the graphs of bundle {self.bundle.name} are for "
                f"{self.sensor.shape}; export them for this sensor"
            )
        bundle = replace(self.bundle, manifest={**self.bundle.manifest, "sensor": sensor.to_dict()})
        return LidarGenerator(bundle, self._pipeline, lidar_height=self.lidar_height)

    def _align(self, rig: Rig) -> Alignment:
        aligned = self._aligned
        if aligned is None or (aligned[0] is not rig and aligned[0] != rig):
            maps = align(
                rig, self.sensor, tile=self.tile, hypotheses=self.hypotheses, lidar_height=self.lidar_height
            )
            with self._lock:
                self._aligned = aligned = (rig, maps)
        return aligned[1]

    @property
    def seen(self) -> NDArray:
        """``[rows, columns]`` bool: rays along which some camera of the rig looks."""
        return self._align(self.rig).seen

    def __call__(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None = None,
        *,
        stamp_ns: int = 0,
        steps: int | None = None,
        seed: int = 0,
        previous: Sweep | None = None,
        motion: ArrayLike | None = None,
    ) -> Sweep:
        """One sweep.

        Args:
            images: RGB uint8 ``[height, width, 3]`` or ``RawPicture`` in the order of ``rig.views``, any size; None where a
                camera is missing. What stands in ``raw_encodings`` is converted where the engine computes.
            rig: calibration; None keeps the one in use.
            stamp_ns: stamp of the sweep, nanoseconds.
            steps: 1 gives the best estimate, more draw a sample with ``seed``; None takes the bundle's default.
            previous: the sweep before this one, for networks that read it (``reads_previous``); None where there is none.
            motion: ``[4, 4]`` coordinates in the LiDAR frame of ``previous`` -> in that of this sweep, from odometry.

        Raises:
            InputError: wrong number, type or shape of images, or none at all; ``previous`` without ``motion``, of another
                sensor, or for a network that does not read it.
        """
        before = self._before(previous, motion)
        found = self._points(images, rig, steps, seed, before)
        return Sweep(
            range_map=found.range_map,
            sensor=self.sensor,
            stamp_ns=stamp_ns,
            return_probability=found.probability,
            intensity=found.reflected,
        )

    def cloud(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
    ) -> NDArray:
        """Points alone, made where the engine computes: on a GPU nothing is left for the host to do.

        Returns:
            ``[rows, columns, 4]`` float32: x, y, z in metres in the LiDAR frame, NaN where nothing returns, and the
            intensity in 0..1: as bytes, an organised ``PointCloud2`` of 16 bytes per point.
        """
        cloud = self._points(images, rig, steps, seed, cloud=True).cloud
        assert cloud is not None
        return cloud

    def _points(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None,
        steps: int | None,
        seed: int,
        before: Before | None = None,
        cloud: bool = False,
    ) -> Points:
        limits = Limits(self.return_threshold, self.sensor.min_range_m, self.sensor.max_range_m)
        return self._pipeline.points(
            *self._checked(images, rig),
            limits,
            steps=self.check_steps(steps),
            seed=seed,
            before=before,
            cloud=cloud,
        )

    @property
    def raw_encodings(self) -> frozenset[str]:
        """Encodings of ``RawPicture`` that the engine converts; the host converts the others."""
        return self._pipeline.raw_encodings

    @property
    def shrinks(self) -> bool:
        """Whether the engine shrinks the pictures; else the host does."""
        return self._pipeline.shrinks

    @property
    def draws(self) -> bool:
        """Whether samples can be drawn (``steps`` above 1)."""
        return self._pipeline.draws

    @property
    def reads_previous(self) -> bool:
        """Whether the network reads the sweep before."""
        return self._pipeline.reads_previous

    def _before(self, previous: Sweep | None, motion: ArrayLike | None) -> Before | None:
        if previous is None:
            return None
        if not self.reads_previous:
            raise InputError(f"bundle {self.bundle.name} does not read the sweep before; leave previous out")
        if motion is None or np.shape(motion) != (4, 4):
            raise InputError(
                "previous needs motion, a 4 x 4 matrix from its LiDAR frame to this one; give both"
            )
        if previous.sensor.shape != self.sensor.shape:
            raise InputError(
                f"previous is of sensor {previous.sensor.name} {previous.sensor.shape}, this generator makes "
                f"{self.sensor.shape}; give a sweep that it made"
            )
        certain = (previous.range_map > 0).astype(np.float32)
        probability = certain if previous.return_probability is None else previous.return_probability
        return Before(previous.range_map, probability, previous.sensor, np.asarray(motion, np.float64))

    def maps(
        self,
        images: Sequence[Picture | None],
        rig: Rig | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        previous: Sweep | None = None,
        motion: ArrayLike | None = None,
    ) -> Maps:
        """Range, return probability and intensity of every ray, before any threshold (arguments as for a call)."""
        before = self._before(previous, motion)
        return self._pipeline.maps(
            *self._checked(images, rig), steps=self.check_steps(steps), seed=seed, before=before
        )

    def stages(self, images: Sequence[Picture | None], rig: Rig | None = None) -> dict[str, float]:
        """Seconds of each stage up to the maps, for benchmarks."""
        return self._pipeline.stages(*self._checked(images, rig))

    def _checked(
        self, images: Sequence[Picture | None], rig: Rig | None
    ) -> tuple[Sequence[Picture | None], Alignment]:
        rig = self.rig if rig is None else rig
        if len(images) != len(rig.views):
            names = ", ".join(v.name for v in rig.views)
            raise InputError(
                f"{len(images)} images for a rig of {len(rig.views)} cameras ({names}); give one each, or None"
            )
        if all(image is None for image in images):
            raise InputError("every camera is missing; give at least one image")
        return images, self._align(rig)

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to take; None means the bundle's own.

        Raises:
            ConfigError: below 1, or above 1 for a network that says no spread to draw samples from.
        """
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"steps is {steps}; use 1 for the best estimate, more to draw a sample")
        if steps > 1 and not self.draws:
            raise ConfigError(
                f"steps is {steps}, but bundle {self.bundle.name} gives a best estimate only; use steps 1"
            )
        return steps

    def describe(self) -> dict[str, Any]:
        """What produces the sweeps: model, engine, machine; for reports, diagnostics and metadata topics."""
        return {
            "model": self.bundle.name,
            "model_version": self.bundle.manifest.get("version", ""),
            "model_sha256": self.bundle.digest,
            "engine": self._pipeline.engine.name,
            "precision": self._pipeline.engine.precision,
            "steps": self.steps,
            "sensor": self.sensor.name,
            "rig": [v.name for v in self.rig.views],
            "software": f"lidargen_ros {__version__}",
            "machine": machine(),
        }

    def close(self) -> None:
        """Frees the engine; the generator cannot be used afterwards."""
        self._pipeline.close()


def machine() -> str:
    """Processor and cores of this machine in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
