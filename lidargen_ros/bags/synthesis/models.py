# SPDX-License-Identifier: Apache-2.0
"""Both families of models behind the few methods that bags need."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...cameras.align import atlas
from ...cameras.encodings import Picture, RawPicture, to_rgb
from ...cameras.rig import Rig, load_rig
from ...errors import EngineError
from ...sensors import Sensor
from ...sweep import Sweep
from .options import Options


@dataclass(frozen=True)
class ModelInfo:
    """What a plan needs to know of a model.

    Attributes:
        about: what produces the sweeps, the same on every machine that runs it alike.
        machine: where it ran.
    """

    sensor: Sensor
    rig: Rig
    about: dict[str, Any]
    machine: str


class Model(Protocol):
    """Makes sweeps of pictures, one set at a time (the graphs of all families are for one)."""

    raw_encodings: frozenset[str]
    """Of pictures that it takes as the camera sent them."""

    def info(self) -> ModelInfo: ...

    def prepare(self, image: Picture) -> Picture:
        """What can be done of a picture beside inference, on any thread."""
        ...

    def __call__(self, images: Sequence[Picture | None], rig: Rig, stamp_ns: int) -> Sweep:
        """Raises EngineError or InputError."""
        ...


def load_model(options: Options) -> Model:
    """The model that the options name. Raises LidargenError."""
    return PublishedModel(options) if options.checkpoint else StudentModel(options)


class StudentModel:
    """A bundle, run by :class:`lidargen_ros.LidarGenerator`."""

    def __init__(self, options: Options) -> None:
        from ...generator import LidarGenerator

        s = options.settings
        self._generator = LidarGenerator.from_bundle(s.bundle, engine=s.engine, threads=s.threads or None)
        if s.return_threshold:
            self._generator.return_threshold = s.return_threshold
        self._steps, self._seed = self._generator.check_steps(s.steps or None), s.seed
        self.raw_encodings = self._generator.raw_encodings

    def info(self) -> ModelInfo:
        about = self._generator.describe()
        machine = about.pop("machine")
        return ModelInfo(self._generator.sensor, self._generator.rig, about, machine)

    def prepare(self, image: Picture) -> Picture:
        if isinstance(image, RawPicture) or self._generator.shrinks:
            return image
        # What the generator would do first, in the thread that waits for the engine.
        return atlas([image], self._generator.tile)

    def __call__(self, images: Sequence[Picture | None], rig: Rig, stamp_ns: int) -> Sweep:
        return self._generator(images, rig, stamp_ns=stamp_ns, steps=self._steps, seed=self._seed)


class PublishedModel:
    """Checkpoints of the published model; its noise depends on seed and stamp, its rig is fixed."""

    raw_encodings: frozenset[str] = frozenset()

    def __init__(self, options: Options) -> None:
        from ...models.published import PublishedPipeline
        from ...models.published_options import PublishedOptions

        s, chosen = options.settings, PublishedOptions.named(options.mode)
        chosen = replace(chosen, seed=s.seed, steps=s.steps or chosen.steps)
        self._pipeline = PublishedPipeline.load(options.checkpoint, options.device or "cuda", chosen)
        self._options = options

    def info(self) -> ModelInfo:
        from ... import __version__
        from ...generator import machine
        from ...models.checkpoints import find_checkpoint

        weights: Path = find_checkpoint(self._options.checkpoint)
        about = {
            "model": weights.parent.name,
            "model_size": weights.stat().st_size,
            "engine": f"torch-{self._pipeline.device.type}",
            "mode": self._options.mode,
            "steps": self._pipeline.options.steps,
            "software": f"lidargen_ros {__version__}",
        }
        return ModelInfo(self._pipeline.sensor, load_rig("published"), about, machine())

    def prepare(self, image: Picture) -> Picture:
        return image

    def __call__(self, images: Sequence[Picture | None], rig: Rig, stamp_ns: int) -> Sweep:
        import torch

        given = [to_rgb(image) for image in images if image is not None]
        try:
            return self._pipeline(given, frame=str(stamp_ns), stamp_ns=stamp_ns).sweep
        except torch.OutOfMemoryError as e:
            raise EngineError(f"out of GPU memory: {str(e).splitlines()[0]}; use fewer workers") from e


def make_sweep(
    model: Model, images: Sequence[Picture | None], rig: Rig, stamp_ns: int, options: Options
) -> Sweep:
    """A sweep within the range limits of the settings. Raises EngineError or InputError."""
    sweep = model(images, rig, stamp_ns)
    if not np.isfinite(sweep.range_map).all():
        raise EngineError("the model gave ranges that are not finite")
    s = options.settings
    kept = (sweep.range_map >= s.min_range) & (sweep.range_map <= s.max_range)
    return replace(sweep, range_map=np.where(kept, sweep.range_map, np.float32(0)))


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs as ``CUDA_VISIBLE_DEVICES`` takes them; none without a driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    drivers = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(drivers.iterdir())))] if drivers.is_dir() else []
