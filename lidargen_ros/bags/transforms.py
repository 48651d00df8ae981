# SPDX-License-Identifier: Apache-2.0
"""A small tf tree: fixed transforms and tracks of moving ones, chained between any two frames (REP-105)."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..errors import CalibrationError, DataError
from ..motion import interpolate_poses, invert_pose
from ..ros.messages import stamp_ns


def pose_matrix(translation: Any, rotation: Any, where: str) -> NDArray:
    """[4, 4] from messages with x y z and x y z w.

    Raises:
        DataError: NaN, or a quaternion that is not of unit length.
    """
    q = np.array([rotation.x, rotation.y, rotation.z, rotation.w], np.float64)
    t = np.array([translation.x, translation.y, translation.z], np.float64)
    if not np.isfinite([*q, *t]).all() or abs(np.linalg.norm(q) - 1) > 0.01:
        raise DataError(f"{where}: rotation {q.tolist()} with translation {t.tolist()} is no pose")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(q).as_matrix(), t
    return pose


class FrameTree:
    """Frames and what is known between them; frame names without a leading slash (ROS 1 has them)."""

    def __init__(self) -> None:
        self._fixed: dict[tuple[str, str], NDArray] = {}
        self._moving: dict[tuple[str, str], dict[int, NDArray]] = {}

    def add_fixed(self, parent: str, child: str, pose: NDArray) -> None:
        """``pose`` maps child coordinates to parent coordinates, always."""
        self._fixed[parent.lstrip("/"), child.lstrip("/")] = pose

    def add_moving(self, parent: str, child: str, time_ns: int, pose: NDArray) -> None:
        """``pose`` maps child coordinates to parent coordinates at one time."""
        self._moving.setdefault((parent.lstrip("/"), child.lstrip("/")), {})[time_ns] = pose

    def copy(self) -> "FrameTree":
        """A tree that can grow without this one."""
        other = FrameTree()
        other._fixed = dict(self._fixed)
        other._moving = {edge: dict(track) for edge, track in self._moving.items()}
        return other

    @property
    def fixed_edges(self) -> dict[tuple[str, str], NDArray]:
        """(parent, child) -> ``[4, 4]`` child coordinates to parent coordinates."""
        return dict(self._fixed)

    @property
    def frames(self) -> list[str]:
        return sorted({name for pair in (*self._fixed, *self._moving) for name in pair})

    def _path(self, source: str, target: str) -> list[tuple[tuple[str, str], bool]]:
        """Edges from source up or down to target; True where an edge is walked from child to parent."""
        neighbours: dict[str, list[tuple[str, tuple[str, str], bool]]] = {}
        for parent, child in (*self._fixed, *self._moving):
            neighbours.setdefault(child, []).append((parent, (parent, child), True))
            neighbours.setdefault(parent, []).append((child, (parent, child), False))
        ways: dict[str, list[tuple[tuple[str, str], bool]]] = {source: []}
        queue = deque([source])
        while queue:
            at = queue.popleft()
            if at == target:
                return ways[at]
            for other, edge, up in neighbours.get(at, ()):
                if other not in ways:
                    ways[other] = [*ways[at], (edge, up)]
                    queue.append(other)
        raise CalibrationError(
            f"no transform from {source!r} to {target!r}; known frames: {', '.join(self.frames) or 'none'}; "
            "record /tf_static or give the pose in the configuration"
        )

    def fixed(self, source: str, target: str) -> NDArray:
        """[4, 4] source coordinates -> target coordinates, over fixed transforms alone.

        Raises:
            CalibrationError: no such chain, or a moving transform in it.
        """
        source, target = source.lstrip("/"), target.lstrip("/")
        pose = np.eye(4)
        for edge, up in self._path(source, target):
            step = self._fixed.get(edge)
            if step is None:
                # ROS 1 broadcasters repeat fixed transforms on /tf; those that never change are as good.
                poses = np.array(list(self._moving[edge].values()))
                step = poses[0]
                if np.abs(poses - step).max() > 1e-6:
                    raise CalibrationError(
                        f"{source!r} to {target!r} goes over the moving transform {edge[0]!r} to {edge[1]!r}; "
                        "the sensors must be fixed to one another"
                    )
            pose = (step if up else invert_pose(step)) @ pose
        return pose

    def track(self, source: str, target: str) -> tuple[NDArray, NDArray]:
        """Times [K] ns and poses [K, 4, 4], source -> target, at the times of the finest moving transform.

        Raises:
            CalibrationError: no chain. DataError: nothing in the chain moves, or too few poses.
        """
        path = self._path(source.lstrip("/"), target.lstrip("/"))
        tracks = {
            edge: (np.array(sorted(track)), np.array([track[t] for t in sorted(track)]))
            for edge, _ in path
            if (track := self._moving.get(edge)) is not None
        }
        times = max((known for known, _ in tracks.values()), key=len, default=np.zeros(0, np.int64))
        if len(times) < 2:
            raise DataError(
                f"{source!r} to {target!r}: no motion of the vehicle is recorded between these frames"
            )
        poses = np.tile(np.eye(4), (len(times), 1, 1))
        for edge, up in path:
            if edge not in tracks:
                step = self._fixed[edge]
            elif len(tracks[edge][0]) == 1:
                step = tracks[edge][1][0]
            else:  # slower corrections (map to odom) hold their first and last value outside
                known, matrices = tracks[edge]
                step = interpolate_poses(np.clip(times, known[0], known[-1]), known, matrices)
            poses = (step if up else invert_pose(step)) @ poses
        return times, poses


def add_tf(tree: FrameTree, transforms: Iterable[Any], fixed: bool) -> None:
    """Add the transforms of one TFMessage of ROS 1 or 2."""
    for stamped in transforms:
        parent, child = stamped.header.frame_id.lstrip("/"), stamped.child_frame_id.lstrip("/")
        where = f"transform {parent!r} to {child!r}"
        pose = pose_matrix(stamped.transform.translation, stamped.transform.rotation, where)
        if fixed:
            tree.add_fixed(parent, child, pose)
        else:
            tree.add_moving(parent, child, stamp_ns(stamped.header), pose)
