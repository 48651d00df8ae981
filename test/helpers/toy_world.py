# SPDX-License-Identifier: Apache-2.0
"""A small analytic street with a moving car: what its LiDAR and cameras record is known exactly.

World: x forward, y left, z up; ground at z = 0, a few boxes and poles. Used by tests to make bags, clips and
folders in foreign layouts. Synthetic by construction.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.motion import invert_pose, transform
from lidargen_ros.sensors import Sensor

BOXES = np.array(  # centre, half size
    [
        [[12, 5, 1], [2, 1, 1]],
        [[20, -6, 2], [3, 1.5, 2]],
        [[-10, 6, 2], [3, 1.5, 2]],
        [[-12, -7, 1], [2, 1, 1]],
        [[35, 0, 4], [1, 12, 4]],
        [[0, 18, 3], [30, 1, 3]],
        [[0, -18, 3], [30, 1, 3]],
        [[-35, 0, 4], [1, 12, 4]],
        [[8, -3, 1.5], [0.2, 0.2, 1.5]],
        [[-7, 3, 1.5], [0.2, 0.2, 1.5]],
    ],
    dtype=float,
)
FAR = 80.0


def cast(origins, directions):
    """Distance [N] (inf: none) and index [N] (0 ground, 1.. boxes, -1 none) along unit rays [N, 3]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(directions[:, 2] < 0, -origins[:, 2] / directions[:, 2], np.inf)
        hit = np.where(np.isfinite(t), 0, -1)
        for number, (centre, half) in enumerate(BOXES, 1):
            a = (centre - half - origins) / directions
            b = (centre + half - origins) / directions
            near, far = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
            first = (near < far) & (near > 0) & (near < t)
            t, hit = np.where(first, near, t), np.where(first, number, hit)
    t = np.where(t > FAR, np.inf, t)
    return t, np.where(np.isfinite(t), hit, -1)


@dataclass
class ToyWorld:
    """The car, its sensors and its motion; all times in seconds from the start."""

    sensor: Sensor = field(
        default_factory=lambda: Sensor("toy", np.linspace(8, -20, 15), 360, spin_time_s=0.1, max_range_m=FAR)
    )
    speed: float = 8.0
    yaw_rate: float = 0.3
    width: int = 160
    height: int = 96
    focal: float = 90.0
    camera_yaws_deg: tuple = (0.0, 125.0, -125.0)
    noise: float = 0.0

    def body(self, t):
        """Body-to-world [4, 4]: constant speed and turn."""
        yaw = self.yaw_rate * t
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
        if self.yaw_rate:
            radius = self.speed / self.yaw_rate
            pose[:2, 3] = radius * np.sin(yaw), radius * (1 - np.cos(yaw))
        else:
            pose[0, 3] = self.speed * t
        return pose

    @property
    def lidar_in_body(self):
        pose = np.eye(4)
        pose[:3, 3] = 0.5, 0.0, 1.9
        return pose

    def camera_in_body(self, index):
        """Optical frame of a camera in the body frame."""
        flu_from_optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        yaw = np.deg2rad(self.camera_yaws_deg[index])
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("z", yaw).as_matrix() @ flu_from_optical
        pose[:3, 3] = 0.8 * np.cos(yaw), 0.8 * np.sin(yaw), 1.5
        return pose

    def camera(self):
        return PinholeCamera(
            self.width, self.height, self.focal, self.focal, self.width / 2 - 0.5, self.height / 2 - 0.5
        )

    def picture(self, index, t):
        """RGB uint8 as the camera sees it at one moment."""
        v, u = np.mgrid[: self.height, : self.width]
        rays = self.camera().rays(np.stack([u, v], axis=-1)).reshape(-1, 3)
        pose = self.body(t) @ self.camera_in_body(index)
        directions = rays @ pose[:3, :3].T
        origins = np.broadcast_to(pose[:3, 3], directions.shape)
        _, hit = cast(origins, directions)
        rgb = np.full((len(rays), 3), (150, 180, 220), np.uint8)
        grey = np.array([90, *(40 + 37 * n % 200 for n in range(len(BOXES)))])
        seen = hit >= 0
        rgb[seen] = grey[hit[seen], None] * np.array([1.0, 0.9, 0.8])
        return rgb.reshape(self.height, self.width, 3)

    def spin(self, start, seed=0):
        """One turn: range map [rows, columns], 0 = none, measured from the pose at each ray's own time."""
        s = self.sensor
        times = start + s.column_times()
        poses = np.stack([self.body(t) @ self.lidar_in_body for t in times])  # [columns, 4, 4]
        directions = np.einsum("cij,rcj->rci", poses[:, :3, :3], s.directions(dtype=np.float64))
        origins = np.broadcast_to(poses[None, :, :3, 3], directions.shape)
        distance, _ = cast(origins.reshape(-1, 3), directions.reshape(-1, 3))
        ranges = np.where(np.isfinite(distance), distance, 0).reshape(s.shape)
        if self.noise:
            ranges += (ranges > 0) * np.random.default_rng(seed).normal(0, self.noise, ranges.shape)
        return ranges.astype(np.float32)

    def cloud(self, start, deskewed=False, seed=0):
        """Points in firing order: [N, 3] LiDAR frame, row [N], seconds after the start [N].

        ``deskewed``: all in the LiDAR frame of the start, as drivers with motion compensation give them.
        """
        ranges = self.spin(start, seed)
        s = self.sensor
        points = (ranges[..., None] * s.directions(dtype=np.float64)).transpose(1, 0, 2).reshape(-1, 3)
        rows = np.tile(np.arange(s.rows), s.columns)
        times = np.repeat(s.column_times(), s.rows)
        seen = ranges.T.reshape(-1) > 0
        points, rows, times = points[seen], rows[seen], times[seen]
        if deskewed:
            back = invert_pose(self.body(start) @ self.lidar_in_body)
            for t in np.unique(times):
                at = times == t
                pose = back @ self.body(start + t) @ self.lidar_in_body
                points[at] = transform(points[at], pose)
        return points.astype(np.float32), rows, times
