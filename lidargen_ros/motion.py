# SPDX-License-Identifier: Apache-2.0
"""Ego motion within one spin: points of the ray's own time <-> points of the start of the spin.

The sensor moves from pose S (start) to pose E (end), both LiDAR-to-world: it turns evenly and travels straight. A
point's time is its fraction tau of the spin, 0 at the start and 1 at the end. Points on moving objects are not
handled. numpy arrays or torch tensors, any leading shape; nothing is computed per point but what depends on it.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation, Slerp

from .errors import InputError
from .range_coding import Array, namespace


def invert_pose(pose: ArrayLike) -> NDArray:
    """Inverse of rigid transformations [..., 4, 4], float64."""
    m = np.asarray(pose, dtype=np.float64)
    turned = np.swapaxes(m[..., :3, :3], -1, -2)
    inverse = np.zeros_like(m)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3] = -(turned @ m[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def transform(points: ArrayLike, pose: ArrayLike) -> NDArray:
    """Points [..., 3] through a 4 x 4 rigid transformation, float64."""
    m = np.asarray(pose, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ m[:3, :3].T + m[:3, 3]


def interpolate_poses(at: ArrayLike, times: ArrayLike, poses: ArrayLike) -> NDArray:
    """Poses [N, 4, 4] float64 at the times ``at`` [N], from poses [K, 4, 4] at rising ``times`` [K].

    Rotations along the shortest arc (spherical linear interpolation), positions along straight lines.

    Raises:
        InputError: for fewer than two poses, times that do not rise, or a time outside: nothing is extrapolated.
    """
    t, q = np.asarray(times), np.asarray(at)
    m = np.asarray(poses, dtype=np.float64)
    if len(t) < 2 or not (np.diff(t) > 0).all():
        raise InputError(
            f"pose interpolation needs at least two poses at rising times, has {len(t)}; sort the track"
        )
    if q.size and (q.min() < t[0] or q.max() > t[-1]):
        raise InputError(
            f"pose asked for {q.min()}..{q.max()}, the track covers {t[0]}..{t[-1]}; drop these times"
        )
    # Nanosecond stamps exceed float64: count from the first one.
    t, q = (t - t[0]).astype(np.float64), (q - t[0]).astype(np.float64)
    out = np.tile(np.eye(4), (q.size, 1, 1))
    out[:, :3, :3] = Slerp(t, Rotation.from_matrix(m[:, :3, :3]))(q.ravel()).as_matrix()
    for axis in range(3):
        out[:, axis, 3] = np.interp(q.ravel(), t, m[:, axis, 3])
    return out.reshape(*q.shape, 4, 4)


def spin_motion(start: ArrayLike, end: ArrayLike) -> NDArray:
    """[4, 4] float64: end-frame coordinates -> start-frame coordinates, from LiDAR-to-world poses."""
    return invert_pose(start) @ np.asarray(end, dtype=np.float64)


def column_fractions(columns: ArrayLike, count: int, first: int = 0, reference: bool = False) -> NDArray:
    """Fraction of the spin at which each column is passed: its bin centre, (c + first + 1/2) / count.

    Args:
        count: columns of the full turn; first: how many a crop took away on the left.
        reference: as published, a ramp with both ends included, (c + first) / (count - 1).
    """
    c = np.asarray(columns, dtype=np.float64) + first
    return c / (count - 1) if reference else (c + 0.5) / count


def compensate(points: Array, fractions: Array, motion: ArrayLike) -> Array:
    """Points [..., 3] of their ray's own time -> points at the start of the spin ("de-skew").

    Args:
        fractions: tau [...] of each point.
        motion: [4, 4] from :func:`spin_motion`.
    """
    rotation, travel, tau = _split(points, motion, fractions)
    return _turn(points, rotation, tau) + tau[..., None] * travel


def uncompensate(points: Array, fractions: Array, motion: ArrayLike, reference: bool = False) -> Array:
    """Exact inverse of :func:`compensate`: points at the start of the spin -> points of their ray's own time.

    Args:
        reference: as in the published converter, which interpolates the inverse motion instead: the rotation is
            the same, the position differs by up to tau (1 - tau) |turn| |travel| (millimetres).
    """
    if reference:
        return compensate(points, fractions, invert_pose(motion))
    rotation, travel, tau = _split(points, motion, fractions)
    return _turn(points - tau[..., None] * travel, -rotation, tau)


def _split(points: Any, motion: ArrayLike, fractions: Any) -> tuple[Any, Any, Any]:
    """Rotation vector, travel and fractions, of the kind and on the device of ``points``."""
    m = np.asarray(motion, dtype=np.float64)
    parts = Rotation.from_matrix(m[:3, :3]).as_rotvec(), m[:3, 3]
    xp = namespace(points)
    if xp is np:
        return *parts, np.asarray(fractions, dtype=np.float64)
    like = {"dtype": points.dtype, "device": points.device}
    return *(xp.as_tensor(p, **like) for p in parts), xp.as_tensor(fractions, **like)


def _turn(points: Any, rotation: Any, tau: Any) -> Any:
    """Points turned about the rotation vector by the fraction tau of it (Rodrigues' formula)."""
    xp = namespace(points)
    angle = float((rotation**2).sum() ** 0.5)
    if angle == 0.0:
        return points
    axis = rotation / angle
    cosine, sine = xp.cos(angle * tau)[..., None], xp.sin(angle * tau)[..., None]
    x, y, z = axis
    across = xp.stack(
        [
            y * points[..., 2] - z * points[..., 1],
            z * points[..., 0] - x * points[..., 2],
            x * points[..., 1] - y * points[..., 0],
        ],
        -1,
    )
    along = (points * axis).sum(-1)[..., None] * axis
    return points * cosine + across * sine + along * (1 - cosine)
