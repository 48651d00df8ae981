# SPDX-License-Identifier: Apache-2.0
"""Does the calibration put LiDAR edges on image edges?

Range jumps and brightness edges come from the same outlines of objects. If turning a camera by a degree puts
more of the jumps on edges than the given calibration does, the calibration (or the pairing in time) is doubtful.
Idea: J. Levinson and S. Thrun, "Automatic Online Calibration of Cameras and Lasers", RSS 2013.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from lidargen_ros.cameras.rig import View
from lidargen_ros.motion import column_fractions, compensate, transform
from lidargen_ros.sensors import Sensor

OFFSETS_DEG = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
_LEAST_EDGES = 150
_DOUBTFUL_GAIN = 1.15  # the best turn scores this much better than none


def spin_points(range_map: NDArray, sensor: Sensor, motion: NDArray) -> NDArray:
    """[N, 3] float64 returns at the start of the spin; ``motion``: start -> end coordinates."""
    seen = range_map > 0
    points = range_map[seen][:, None] * sensor.directions(dtype=np.float64)[seen]
    return _at_start(points, np.nonzero(seen)[1], sensor, motion)


def _at_start(points: NDArray, columns: NDArray, sensor: Sensor, motion: NDArray) -> NDArray:
    back = np.linalg.inv(motion.astype(np.float64))
    return compensate(points, column_fractions(columns, sensor.columns), back)


def edge_points(range_map: NDArray, sensor: Sensor, motion: NDArray) -> tuple[NDArray, NDArray]:
    """Outlines of near objects, [N, 3] each at the start of the spin: upright ones, and level ones.

    An outline lies between a ray on the object and its neighbour that passes it: at the range of the first, in
    the direction half way. A jump must stand out from the step before it, or far ground would be all outlines.
    """
    directions = sensor.directions(dtype=np.float64)
    found = []
    for axis in (1, 0):
        parts = []
        for step in (-1, 1):
            beyond, before = np.roll(range_map, -step, axis), np.roll(range_map, step, axis)
            jump = beyond - range_map
            previous = np.where(before > 0, np.abs(before - range_map), 0)
            outline = (range_map > 0) & (jump > np.maximum(0.5, 0.1 * range_map)) & (jump > 3 * previous)
            if axis == 0 or not sensor.full_turn:  # the first and the last are no neighbours
                lines = np.moveaxis(outline, axis, 0)
                lines[0], lines[-1] = False, False
            middle = directions[outline] + np.roll(directions, -step, axis)[outline]
            middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
            points = range_map[outline][:, None] * middle
            parts.append(_at_start(points, np.nonzero(outline)[1], sensor, motion))
        found.append(np.concatenate(parts))
    return found[0], found[1]


def image_edges(rgb: NDArray) -> tuple[NDArray, NDArray]:
    """[h, w] float32 in 0..1 twice: strength of upright edges, and of level ones, widened a little."""
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    width = max(1.0, rgb.shape[1] / 640)
    edges = []
    for dx, dy in ((1, 0), (0, 1)):
        strength = np.abs(cv2.Sobel(grey, cv2.CV_32F, dx, dy))
        strength = np.minimum(strength / max(float(np.quantile(strength, 0.98)), 1e-6), 1.0)
        edges.append(cv2.GaussianBlur(strength, (0, 0), width))
    return edges[0], edges[1]


@dataclass
class Alignment:
    """Scores of one camera, summed over frames by :meth:`add`.

    Attributes:
        scores: [pitch, yaw] sums of edge strength for each turn of the camera in ``OFFSETS_DEG``.
        edges: number of outline points seen in the image.
    """

    scores: NDArray
    edges: int = 0

    @classmethod
    def empty(cls) -> "Alignment":
        return cls(np.zeros((len(OFFSETS_DEG), len(OFFSETS_DEG))))

    def add(self, rgb: NDArray, view: View, outlines: tuple[NDArray, NDArray]) -> None:
        """One frame: picture, its camera, and the outlines from :func:`edge_points`."""
        for edges, points in zip(image_edges(rgb), outlines, strict=True):
            local = transform(points, view.lidar_to_camera)
            in_view = view.camera.project(local)[1]
            local = local[in_view]
            self.edges += len(local)
            for i, pitch in enumerate(OFFSETS_DEG):
                for k, yaw in enumerate(OFFSETS_DEG):
                    # Camera axes: y points down, x right.
                    turn = Rotation.from_euler("yx", (yaw, pitch), degrees=True).as_matrix()
                    pixels, visible = view.camera.project(local @ turn.T)
                    u, v = np.rint(pixels[visible]).astype(np.int64).T
                    self.scores[i, k] += edges[v, u].sum() / max(1, visible.sum()) * len(local)

    @property
    def best_deg(self) -> tuple[float, float]:
        """(yaw, pitch) of the turn that fits best."""
        pitch, yaw = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        return OFFSETS_DEG[yaw], OFFSETS_DEG[pitch]

    @property
    def gain(self) -> float:
        """Score of the best turn over that of the calibration as it is."""
        centre = len(OFFSETS_DEG) // 2
        return float(self.scores.max() / max(self.scores[centre, centre], 1e-9))

    def verdict(self) -> tuple[str, str]:
        """(``ok`` | ``doubtful`` | ``unknown``, words)."""
        if self.edges < _LEAST_EDGES:
            return "unknown", f"only {self.edges} outlines in view"
        yaw, pitch = self.best_deg
        words = f"edges fit best {yaw:+.1f} deg in yaw, {pitch:+.1f} in pitch (x {self.gain:.2f})"
        far = max(abs(yaw), abs(pitch)) >= 1.0
        return ("doubtful" if far and self.gain > _DOUBTFUL_GAIN else "ok"), words
