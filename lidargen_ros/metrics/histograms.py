# SPDX-License-Identifier: Apache-2.0
"""JSD and MMD on bird's-eye histograms, exactly as LiDARGen, R2DM, R2Flow and RangeLDM compute them.

Zyrianov et al., "Learning to Generate Realistic LiDAR Point Clouds" (LiDARGen), ECCV 2022; Nakashima and
Kurazume, "LiDAR Data Synthesis with Denoising Diffusion Probabilistic Models" (R2DM), ICRA 2024; Hu et al.,
"RangeLDM", ECCV 2024.

- A histogram counts points with 3 < radius < 70 m (KITTI-360; RangeLDM takes 2 to 90 m on nuScenes; R2DM has
  already cut its ranges to 0.5 to 63 m) in 100 x 100 cells of 1.6 m over x, y in +-80 m.
- Their "JSD" is the *square root* of the Jensen-Shannon divergence with natural logarithms, between the
  histograms summed over each set. A published 0.045 is a divergence of 0.0020. Here both are given by name.
- Their MMD is the biased squared maximum mean discrepancy (Gretton et al., JMLR 2012), diagonal included,
  with a Gaussian kernel of sigma 0.5 between normalised single histograms. Those all lie within about 0.1 of
  each other, so the kernel is nearly linear and the values sit near 1e-4: a weak test.

LiDM (Ran et al., CVPR 2024) prints other quantities under the same names (0.05 m occupancy; minimum matching
distance). The two must never share a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, jensenshannon

FIELD_M, BINS, RADII_M, KERNEL_SIGMA = 160.0, 100, (3.0, 70.0), 0.5


def birds_eye_histogram(points: NDArray, radii: tuple[float, float] = RADII_M) -> NDArray:
    """Counts ``[100, 100]`` (x, y) of points ``[n, 3]``, metres, sensor at the origin, strictly within the radii."""
    radius = np.linalg.norm(points, axis=1)
    x, y = points[(radius > radii[0]) & (radius < radii[1]), :2].T.astype(np.float64)
    # radii below half the field: every point falls into a cell
    cells = [np.floor((axis + FIELD_M / 2) * (BINS / FIELD_M)).astype(np.intp) for axis in (x, y)]
    counts = np.bincount(cells[0] * BINS + cells[1], minlength=BINS * BINS)
    return counts.reshape(BINS, BINS).astype(np.float64)


def jensen_shannon_distance(generated: Sequence[NDArray], true: Sequence[NDArray]) -> float:
    """Square root of the Jensen-Shannon divergence (nats): what the LiDARGen family prints as "JSD"."""
    p, q = (np.sum(histograms, axis=0, dtype=np.float64).ravel() for histograms in (generated, true))
    return float(jensenshannon(p / p.sum(), q / q.sum()))


def jensen_shannon_divergence(generated: Sequence[NDArray], true: Sequence[NDArray]) -> float:
    """The Jensen-Shannon divergence itself, in nats (Lin 1991); at most ln 2."""
    return jensen_shannon_distance(generated, true) ** 2


def maximum_mean_discrepancy(generated: Sequence[NDArray], true: Sequence[NDArray]) -> float:
    """Biased squared MMD between two sets of histograms, as above. Sets may differ in size."""
    p, q = (_normalised(histograms) for histograms in (generated, true))
    return _kernel_mean(p, p) + _kernel_mean(q, q) - 2 * _kernel_mean(p, q)


def _normalised(histograms: Sequence[NDArray]) -> NDArray:
    flat = np.stack([np.ravel(histogram) for histogram in histograms]).astype(np.float64)
    return flat / flat.sum(axis=1, keepdims=True)


def _kernel_mean(p: NDArray, q: NDArray) -> float:
    return float(np.exp(-cdist(p, q, "sqeuclidean") / (2 * KERNEL_SIGMA**2)).mean())
