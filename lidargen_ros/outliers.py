# SPDX-License-Identifier: Apache-2.0
"""Statistical outlier filter for point clouds."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def inliers(points: NDArray, neighbours: int = 20, ratio: float = 1.0) -> NDArray:
    """[N, 3] -> [N] bool: points whose neighbourhood is not unusually thin.

    The mean distance d of a point to its nearest ``neighbours`` (itself among them) must satisfy
    0 < d < mean(d) + ratio * std(d) over the cloud, as in Open3D's ``remove_statistical_outlier``; points that
    coincide with all their neighbours are dropped too. A cloud with fewer than two points has no inliers.
    """
    if len(points) < 2:
        return np.zeros(len(points), bool)
    k = min(neighbours, len(points))
    distances, _ = cKDTree(points).query(points, k=k)
    d = distances.mean(axis=1)
    return (d > 0) & (d < d.mean() + ratio * d.std(ddof=1))
