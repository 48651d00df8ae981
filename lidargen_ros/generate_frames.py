# SPDX-License-Identifier: Apache-2.0
"""What ``lidargen generate`` reads and writes: frames of clips or single pictures in, one set of files per frame out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from .cameras.rig import Rig
    from .models.published import Generated
    from .sweep import Sweep


@dataclass(frozen=True)
class Frame:
    """One thing to generate: a name for its files, pictures, and what a clip knows besides."""

    name: str
    images: tuple[Path, ...] = ()
    clip: str = ""
    number: str = ""


@dataclass(frozen=True)
class Inputs:
    """Pictures of a frame (front, rear left, rear right), their rig, and the measured map if there is one."""

    images: Sequence[NDArray]
    rig: Rig
    measured: NDArray | None = None
    stamp_ns: int = 0


def frames_of_clips(root: Path, clips: Sequence[str], frames: str) -> list[Frame]:
    """All chosen frames of the clips below ``root``; ``frames`` is ``all`` or like ``0,5,10:50:10``."""
    from .bags.clips import ClipReader, list_clips

    known = [str(name) for name in list_clips(root)]
    chosen = []
    for clip in known if list(clips) == ["all"] else clips:
        with ClipReader(root, clip) as reader:
            names = reader.frames
        for number in names if frames == "all" else _numbers(frames):
            match = [n for n in names if int(n) == int(number)]
            if not match:
                raise DataError(
                    f"clip {clip}: no complete frame {number}; it has {len(names)}, {names[0]} to {names[-1]}"
                )
            chosen.append(Frame(f"{clip}_{match[0]}", clip=clip, number=match[0]))
    if not chosen:
        raise ConfigError(f"--frames {frames} picks none: write all, or numbers like 0,5,10:50:10")
    return list(dict.fromkeys(chosen))  # a frame named twice is still one


def _numbers(text: str) -> Iterator[int]:
    """``3,5:8,10:50:10`` -> 3, 5, 6, 7, 10, 20, 30, 40 (ends left out, as in Python)."""
    for part in text.split(","):
        bounds = part.split(":")
        whole = len(bounds) <= 3 and all(b.strip().isdigit() for b in bounds)
        if not whole or (len(bounds) == 3 and int(bounds[2]) == 0):
            raise ConfigError(f"--frames {text!r} is not understood: write all, or numbers like 0,5,10:50:10")
        numbers = [int(b) for b in bounds]
        yield from numbers if len(numbers) == 1 else range(*numbers)


def read_frame(frame: Frame, root: Path | None, rig: Rig) -> Inputs:
    """Pictures and calibration of a frame."""
    if frame.images:
        return Inputs([read_picture(path) for path in frame.images], rig)
    from .bags.clips import PUBLISHED_VIEWS, ClipReader

    assert root is not None
    with ClipReader(root, frame.clip) as reader:
        return Inputs(
            [reader.image(frame.number, camera) for camera in PUBLISHED_VIEWS],
            reader.rig(frame.number),
            reader.range_map(frame.number),
            reader.times_us(frame.number)[0] * 1000,
        )


def read_picture(path: Path) -> NDArray:
    """RGB uint8 ``[height, width, 3]``."""
    import cv2

    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if bgr is None:
        why = "cannot be decoded; save it as JPEG or PNG" if path.is_file() else "does not exist"
        raise InputError(f"picture {path} {why}")
    return bgr[..., ::-1].copy()


def write_frame(
    folder: Path,
    frame: Frame,
    inputs: Inputs,
    generated: Generated,
    truth: Sweep | None,
    facts: dict[str, Any],
    save_latent: bool,
) -> None:
    """Write the picture, the clouds, the latent if wanted, and last the range map."""
    from .cloud_writers import write_pcd, write_ply
    from .files import replacing
    from .pictures import save_picture
    from .viz import three_row_picture

    sweep = generated.sweep
    page = three_row_picture(list(inputs.images), inputs.rig, sweep, truth)
    with replacing(folder / f"{frame.name}.jpg") as path:
        save_picture(path, page)
    points = sweep.points()
    for suffix, write in ((".ply", write_ply), (".pcd", write_pcd)):
        with replacing(folder / f"{frame.name}{suffix}") as path, path.open("wb") as file:
            write(file, points)
    if save_latent:
        with replacing(folder / f"{frame.name}.latent.npz") as path:
            np.savez(path, latent=generated.latent.float().cpu().numpy())
    with replacing(folder / f"{frame.name}.npz") as path:
        np.savez_compressed(
            path,
            range_map=sweep.range_map,
            stamp_ns=np.int64(sweep.stamp_ns),
            sensor=json.dumps(sweep.sensor.to_dict()),
            generator=json.dumps(facts),
        )


def without_outliers(generated: Generated) -> Generated:
    """Rays whose points stand apart from their neighbours become rays without a return."""
    from .outliers import inliers

    sweep = generated.sweep
    ranges = sweep.range_map.copy()
    seen = sweep.returns
    ranges[seen] = np.where(inliers(sweep.points()), ranges[seen], 0)
    return replace(generated, sweep=replace(sweep, range_map=ranges))
