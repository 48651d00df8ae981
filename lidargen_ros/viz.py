# SPDX-License-Identifier: Apache-2.0
"""One page about one moment: what the cameras saw, what was generated, what was measured; whatever there is of it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from .cameras.rig import Rig, View
from .errors import InputError
from .pictures import (
    INK,
    MUTED,
    PAPER,
    TOP_VIEW,
    PerspectiveView,
    cloud_picture,
    draw_points,
    error_picture,
    range_colours,
    range_picture,
    save_picture,
)
from .sweep import Sweep

__all__ = [
    "TOP_VIEW",
    "PerspectiveView",
    "cloud_picture",
    "draw_points",
    "error_picture",
    "range_colours",
    "range_picture",
    "save_picture",
    "three_row_picture",
]

_FONT, _GAP, _TAG = cv2.FONT_HERSHEY_SIMPLEX, 10, 26


def three_row_picture(
    images: Sequence[NDArray],
    rig: Rig | None,
    generated: Sweep | None,
    truth: Sweep | None = None,
    width: int = 1920,
) -> NDArray:
    """Camera views with points drawn in; range maps; clouds in perspective.

    Row 1 orders the cameras by where they look, from straight back over left, front and right, as the columns
    of the range maps run: rear left, front, rear right for the published rig; five cameras or more take two
    lines. The points are the generated ones, else the true ones. Row 2 shows the true map above the generated
    one, and bars for what each camera sees. Row 3 shows the true cloud left of the generated one; where there is
    one cloud, from behind and from above. The last line is the colour scale of range.

    Args:
        images: RGB uint8, one per view of the rig and in its order, of any size with the camera's aspect.
        rig: None without images: there is no row 1 then.
        generated, truth: one of them at least.
        width: of the page in pixels.

    Raises:
        InputError: if there is not one image per camera, or no sweep.
    """
    views = rig.views if rig else ()
    if len(images) != len(views):
        raise InputError(
            f"{len(images)} images for rig {rig.name if rig else ''!r} of {len(views)} cameras; give one per camera"
        )
    named = [(name, s) for name, s in (("true", truth), ("generated", generated)) if s is not None]
    if not named:
        raise InputError("no sweep to draw: give a generated or a true one")
    shown = named[-1][1]
    order = sorted(range(len(views)), key=lambda k: -_azimuth(views[k]))
    per_line = len(order) if len(order) <= 4 else -(-len(order) // 2)
    lines = [order[k : k + per_line] for k in range(0, len(order), per_line)] if order else []
    blocks = [
        *(_cameras([images[k] for k in row], [views[k] for k in row], shown, width) for row in lines),
        _maps([views[k] for k in order], named, width),
        _clouds(named, width),
        _legend(width),
    ]
    gap = np.full((_GAP, width, 3), PAPER, np.uint8)
    return np.concatenate([part for block in blocks for part in (block, gap)][:-1])


def _cameras(images: Sequence[NDArray], views: Sequence[View], sweep: Sweep, width: int) -> NDArray:
    edges = _edges(width, len(views))
    aspect = float(np.median([image.shape[0] / image.shape[1] for image in images]))
    height = round(aspect * (edges[0][1] - edges[0][0]))
    points, row = sweep.points(), np.full((height, width, 3), PAPER, np.uint8)
    for image, view, (left, right) in zip(images, views, edges, strict=True):
        # drawn before the cut, so that the camera's own aspect holds
        scaled = cv2.resize(image, (right - left, round((right - left) * image.shape[0] / image.shape[1])))
        drawn = draw_points(scaled, view, points, size=max(2, width // 800))
        top = max(0, (drawn.shape[0] - height) // 2)
        shown = drawn[top : top + height]
        row[: shown.shape[0], left:right] = shown
        _caption(row[:, left:right], _title(view.name))
    return row


def _maps(views: Sequence[View], named: Sequence[tuple[str, Sweep]], width: int) -> NDArray:
    height = round(0.19 * width / len(named))
    parts = []
    for name, sweep in named:
        picture = range_picture(sweep.range_map, width, height)
        _caption(picture, f"{name} range map  {sweep.sensor.rows} x {sweep.sensor.columns}")
        parts += [picture, np.full((3, width, 3), PAPER, np.uint8)]
    return np.concatenate([*parts, _compass(views, named[-1][1], width)])


def _clouds(named: Sequence[tuple[str, Sweep]], width: int) -> NDArray:
    (_, half), (start, end) = _edges(width, 2)
    behind = PerspectiveView(
        eye=(-44.0, 0.0, 27.0), target=(9.0, 0.0, 0.0), width=half, height=round(half / 2)
    )
    above = replace(TOP_VIEW, width=end - start, height=behind.height)
    name, sweep = named[-1]
    pairs = [(sweep, behind, name), (sweep, above, f"{name}, from above")]
    if len(named) == 2:
        pairs = [(named[0][1], behind, named[0][0]), (sweep, replace(behind, width=end - start), name)]
    panels = []
    for sweep, view, name in pairs:
        points = sweep.points()
        panel = cloud_picture(points, view)
        _caption(panel, f"{name}  {len(points):,} points")
        panels.append(panel)
    gap = np.full((behind.height, start - half, 3), PAPER, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _compass(views: Sequence[View], sweep: Sweep, width: int) -> NDArray:
    """Directions of the columns, and a bar for the columns that each camera sees at the horizon."""
    strip = np.full((_TAG + 6, width, 3), PAPER, np.uint8)
    azimuths = sweep.sensor.azimuths()
    horizon = 30.0 * np.stack([np.cos(azimuths), np.sin(azimuths), np.zeros_like(azimuths)], axis=-1)
    for view in views:
        seen = cv2.resize(view.project(horizon)[1][None].astype(np.uint8), (width, 1))[0] > 0
        strip[2:5, seen] = (88, 166, 255)
    step = width / sweep.sensor.columns
    for name, degrees in (("back", 179.9), ("left", 90), ("front", 0), ("right", -90), ("back", -179.9)):
        column = int(sweep.sensor.columns_of(np.deg2rad(degrees)))
        if column >= 0:
            size = cv2.getTextSize(name, _FONT, 0.45, 1)[0][0]
            x = int(np.clip((column + 0.5) * step - size / 2, 4, width - size - 4))
            cv2.putText(strip, name, (x, 22), _FONT, 0.45, MUTED, 1, cv2.LINE_AA)
    return strip


def _legend(width: int) -> NDArray:
    strip = np.full((_TAG + 8, width, 3), PAPER, np.uint8)
    left, right = width // 3, 2 * width // 3
    ranges = np.geomspace(2.5, 100.0, right - left)
    strip[4:12, left:right] = range_colours(ranges)
    for mark in (3, 5, 10, 20, 40, 80):
        x = left + int(np.searchsorted(ranges, mark * 0.999))
        text = f"{mark} m"
        size = cv2.getTextSize(text, _FONT, 0.42, 1)[0][0]
        cv2.putText(strip, text, (x - size // 2, 28), _FONT, 0.42, MUTED, 1, cv2.LINE_AA)
    cv2.putText(strip, "range", (left - 70, 13), _FONT, 0.45, MUTED, 1, cv2.LINE_AA)
    return strip


def _caption(picture: NDArray, text: str) -> None:
    """A small tag in the upper left corner, in place."""
    size = cv2.getTextSize(text, _FONT, 0.5, 1)[0][0]
    tag = picture[8 : 8 + _TAG, 8 : 8 + size + 16]
    tag[...] = (0.35 * tag + 0.65 * np.asarray(PAPER)).astype(np.uint8)
    place = (16, 8 + _TAG - 8)
    cv2.putText(picture, text, place, _FONT, 0.5, INK, 1, cv2.LINE_AA)


def _title(name: str) -> str:
    """camera_rear_left_70fov -> rear left 70fov"""
    return name.removeprefix("camera_").replace("_", " ")


def _azimuth(view: View) -> float:
    return float(np.arctan2(view.camera_to_lidar[1, 2], view.camera_to_lidar[0, 2]))


def _edges(width: int, count: int) -> list[tuple[int, int]]:
    """Left and right ends of ``count`` panels with small gaps."""
    marks = np.rint(np.linspace(0, width + 6, count + 1)).astype(int)
    return [(int(a), int(b) - 6) for a, b in pairwise(marks)]
