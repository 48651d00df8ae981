# SPDX-License-Identifier: Apache-2.0
"""One frame on one engine: pictures aligned to rays, sampled and decoded, in as few transfers as the engine allows.

Every engine has the graphs ``encoder``, ``denoiser`` and ``decoder``. One with ``pixels`` also shrinks the pictures
itself, one with ``yuv422``, ``nv12`` or ``bayer`` takes them as the camera sent them, one with ``carry`` moves the sweep
before, one with ``points`` makes the points, and one with ``sample4`` draws in 4 steps without asking the host: such an
engine gets pixels and gives points, with one upload and one download.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cameras.align import Alignment, area_weights, atlas, check_image
from .cameras.encodings import ENCODINGS, Picture, RawPicture
from .engines.base import Engine
from .sensors import Sensor
from .student_sampling import draw, noise_of

GRAPHS = ("encoder", "denoiser", "decoder")
DEVICE_GRAPHS = ("yuv422", "nv12", "bayer", "pixels", "sample4", "points")
"""Those beside them that a bundle may hold: with them an engine on a GPU needs the host for nothing."""


class Maps(NamedTuple):
    """Raw output of a bundle: ``[rows, columns]`` float32; ``range_m`` holds a range for every ray, returned or not."""

    range_m: NDArray
    probability: NDArray
    intensity: NDArray


class Limits(NamedTuple):
    """What counts as a return: lowest probability, nearest and farthest range in metres."""

    probability: float
    min_range_m: float
    max_range_m: float


class Points(NamedTuple):
    """Maps ``[rows, columns]`` float32 after the limits: range and intensity are 0 where nothing returns.

    ``cloud`` is ``[rows, columns, 4]``: x, y, z in metres, NaN where nothing returns, and the intensity; None unless asked for.
    """

    range_map: NDArray
    probability: NDArray
    reflected: NDArray
    cloud: NDArray | None = None


class Before(NamedTuple):
    """The sweep before this one: its range map ``[rows, columns]`` (metres, 0 = no return), the probability of each return, the
    sensor, and ``motion [4, 4]``, coordinates in the LiDAR frame then -> now."""

    range_map: NDArray
    probability: NDArray
    sensor: Sensor
    motion: NDArray


def within(maps: Maps, limits: Limits) -> Points:
    """The limits applied on the host; no cloud."""
    returned = (
        (maps.probability >= limits.probability)
        & (maps.range_m >= limits.min_range_m)
        & (maps.range_m <= limits.max_range_m)
    )
    range_map, reflected = (np.where(returned, m, np.float32(0)) for m in (maps.range_m, maps.intensity))
    return Points(range_map, maps.probability, reflected)


def with_cloud(points: Points, aligned: Alignment) -> Points:
    """The points themselves, made on the host; the first features of a ray are its direction."""
    metres = np.where(points.range_map > 0, points.range_map, np.float32(np.nan))
    places = metres * aligned.rays[:3]
    return points._replace(cloud=np.stack([*places, points.reflected], -1))


def raw_encodings(engine: Engine) -> frozenset[str]:
    """Encodings of ``RawPicture`` that an engine has the graphs for."""
    if "pixels" not in engine.graphs:
        return frozenset({"rgb8"})
    return frozenset(name for name, encoding in ENCODINGS.items() if encoding.graph in engine.graphs)


def checked(index: int, picture: Picture) -> RawPicture:
    """A picture with its encoding. Raises InputError where it is none."""
    if not isinstance(picture, RawPicture):
        check_image(index, picture)
        return RawPicture(picture, "rgb8")
    picture.check(f"image {index}")
    return picture


class FramePipeline:
    """Drives an engine; may be shared by generators and threads, one frame at a time.

    Args:
        tile: (height, width) of a view in the atlas.
        shape: (rows, columns) of the sweep.
    """

    def __init__(self, engine: Engine, tile: tuple[int, int], shape: tuple[int, int]) -> None:
        self.engine = engine
        self.shrinks = "pixels" in engine.graphs
        """Whether the engine shrinks the pictures; else the host does."""
        self.raw_encodings = raw_encodings(engine)
        """Encodings of ``RawPicture`` that the engine converts; the host converts the others."""
        self._tile, self._shape = tile, shape
        self._lock = threading.Lock()
        # What the engine holds already and need not be sent again.
        self._aligned: tuple[Alignment, tuple[int, ...]] | None = None
        self._seed: int | None = None
        self._limits: Limits | None = None
        self._best = False
        self._alone = False
        self._image_size: tuple[int, int] | None = None
        self._orders: dict[str, tuple[int, ...]] = {}

    def maps(
        self,
        images: Sequence[Picture | None],
        aligned: Alignment,
        *,
        steps: int,
        seed: int,
        before: Before | None = None,
    ) -> Maps:
        """The maps of one set of pictures, at least one of which is not None; ``before`` is for networks that read it.

        Raises:
            InputError: a picture is neither uint8 ``[H, W, 3]`` nor what its encoding says.
        """
        with self._lock:
            self._compute(images, aligned, steps, seed, before, (), Maps._fields)
            found = self.engine.read(Maps._fields)
        return Maps(found["range_m"], found["probability"], found["intensity"][0])

    def points(
        self,
        images: Sequence[Picture | None],
        aligned: Alignment,
        limits: Limits,
        *,
        steps: int,
        seed: int,
        before: Before | None = None,
        cloud: bool = False,
    ) -> Points:
        """What of the maps lies within the limits, and where; arguments and errors as for :meth:`maps`."""
        if "points" not in self.engine.graphs:
            found = within(self.maps(images, aligned, steps=steps, seed=seed, before=before), limits)
            return with_cloud(found, aligned) if cloud else found
        names = Points._fields if cloud else Points._fields[:-1]
        with self._lock:
            if limits != self._limits:
                self.engine.write({"limits": np.array(limits, np.float32)})
                self._limits = limits
            self._compute(images, aligned, steps, seed, before, ("points",), names)
            return Points(**self.engine.read(names))

    def stages(self, images: Sequence[Picture | None], aligned: Alignment) -> dict[str, float]:
        """Seconds of each stage of one frame (best estimate), each begun when the one before has ended."""
        times: dict[str, float] = {}

        def timed(stage: str, call: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            result = call()
            self.engine.wait()
            times[stage] = time.perf_counter() - start
            return result

        with self._lock:
            self._align(aligned, tuple(i for i, image in enumerate(images) if image is None))
            self._remember(None)
            self._ask_for_best()
            first = timed("send", lambda: self._see(images))
            for graph in (*first, *GRAPHS):
                outputs = tuple(self.engine.graphs[graph].outputs)
                timed(graph, partial(self.engine.run, (graph,), outputs))
            timed("read", lambda: self.engine.read(Maps._fields))
        return times

    def _compute(
        self,
        images: Sequence[Picture | None],
        aligned: Alignment,
        steps: int,
        seed: int,
        before: Before | None,
        last: tuple[str, ...],
        wanted: tuple[str, ...],
    ) -> None:
        self._align(aligned, tuple(i for i, image in enumerate(images) if image is None))
        first = (*self._remember(before), *self._see(images), "encoder")
        if steps == 1:
            self._ask_for_best()
            self.engine.run((*first, "denoiser", "decoder", *last), wanted)
        elif (sampler := f"sample{steps}") in self.engine.graphs:
            self._seed_noise(seed)
            self.engine.run((*first, sampler, "decoder", *last), wanted)
        else:
            self._draw(first, steps, seed)
            self.engine.run(("decoder", *last), tuple(name for name in wanted if name != "intensity"))

    def close(self) -> None:
        """Frees the engine; waits for a frame in flight."""
        with self._lock:
            self.engine.close()

    def _align(self, aligned: Alignment, missing: tuple[int, ...]) -> None:
        known = self._aligned
        if known is None or known[0] is not aligned:
            self.engine.write({"grid": aligned.grid, "rays": aligned.rays})
        if known is None or known[0] is not aligned or known[1] != missing:
            self.engine.write({"mask": aligned.without(missing) if missing else aligned.mask})
        self._aligned = (aligned, missing)

    def _see(self, images: Sequence[Picture | None]) -> tuple[str, ...]:
        """Sends the pictures; returns the graphs that must run before the encoder."""
        pictures = [None if image is None else checked(i, image) for i, image in enumerate(images)]
        if not self._takes([picture for picture in pictures if picture is not None]):
            pictures = [
                None if picture is None else RawPicture(picture.rgb(), "rgb8") for picture in pictures
            ]
        there = [picture for picture in pictures if picture is not None]
        height, width = size = there[0].size
        same = (
            all(picture.size == size for picture in there)
            and height >= self._tile[0]
            and width >= self._tile[1]
        )
        if not self.shrinks or not same:
            rgb = [None if picture is None else picture.rgb() for picture in pictures]
            self.engine.write({"atlas": atlas(rgb, self._tile)})
            return ()
        if size != self._image_size:
            self.engine.write(
                {
                    "row_weights": area_weights(height, self._tile[0]),
                    "column_weights": area_weights(width, self._tile[1]),
                }
            )
            self._image_size = size
        blank = np.zeros_like(there[0].cells())
        cells = [blank if picture is None else picture.cells() for picture in pictures]
        encoding = ENCODINGS[there[0].encoding]
        if encoding.graph == "pixels":
            self._say_order("images", encoding.order)
            self.engine.write({"images": cells})
            return ("pixels",)
        self._say_order("images", ENCODINGS["rgb8"].order)
        self._say_order(encoding.graph, encoding.order)
        self.engine.write({encoding.graph: cells})
        return (encoding.graph, "pixels")

    def _takes(self, pictures: Sequence[RawPicture]) -> bool:
        """Whether the engine converts these: all of one encoding that it knows, in whole cells."""
        encoding = pictures[0].encoding
        return encoding in self.raw_encodings and all(p.encoding == encoding and p.whole for p in pictures)

    def _say_order(self, tensor: str, order: tuple[int, ...]) -> None:
        if self._orders.get(tensor) != order:
            self.engine.write({f"{tensor}_order": np.array(order, np.int64)})
            self._orders[tensor] = order

    @property
    def reads_previous(self) -> bool:
        """Whether the network reads the sweep before."""
        return "previous" in self.engine.graphs["encoder"].inputs

    @property
    def draws(self) -> bool:
        """Whether the network says its spread, which samples are drawn from."""
        return "spread" in self.engine.graphs["denoiser"].outputs

    def _remember(self, before: Before | None) -> tuple[str, ...]:
        """Sends the sweep before; returns the graph that must then run."""
        if not self.reads_previous:
            return ()
        if before is None:
            if not self._alone:
                self.engine.write({"previous": np.zeros((2, *self._shape), np.float32)})
            self._alone = True
            return ()
        self._alone = False
        if "carry" not in self.engine.graphs:
            from .carry import carry  # brings scipy, which takes as long to import as all the rest

            self.engine.write({"previous": carry(*before)})
            return ()
        self.engine.write(
            {
                "before": before.range_map,
                "before_probability": before.probability,
                "motion": before.motion.astype(np.float32),
            }
        )
        return ("carry",)

    def _ask_for_best(self) -> None:
        """No noise at the highest level: what the denoiser then says is its best estimate."""
        if not self._best:
            self.engine.write({"x": np.zeros((1, 2, *self._shape), np.float32), "t": np.ones(1, np.float32)})
            self._best = True

    def _seed_noise(self, seed: int) -> None:
        if self._seed != seed:
            self.engine.write({"noise": noise_of(seed, *self._shape)})
            self._seed = seed

    def _draw(self, first: tuple[str, ...], steps: int, seed: int) -> None:
        """A sample on an engine that cannot step by itself: the state comes to the host between the steps."""
        engine, names = self.engine, ("code", "logit", "intensity", "spread")
        self._best = False
        condition = tuple(engine.graphs["encoder"].outputs)
        engine.run(first, condition)

        def denoise(x: NDArray, t: float) -> tuple[NDArray, ...]:
            engine.write({"x": x.astype(np.float32, copy=False), "t": np.array([t], np.float32)})
            engine.run(("denoiser",), names)
            found = engine.read(names)
            return tuple(found[name] for name in names)

        code, logit, _ = draw(denoise, noise_of(seed, *self._shape), steps)
        engine.write({"code": code.astype(np.float32), "logit": logit.astype(np.float32)})
