# SPDX-License-Identifier: Apache-2.0
"""The perspective view of clouds against a rendering by the published plotting function."""

import numpy as np

from lidargen_ros.pictures import PerspectiveView, cloud_picture


def test_positions_equal_the_formula_and_the_rendering(golden):
    with np.load(golden("geometry/viewpoint.npz")) as record:
        positions, _, shown = PerspectiveView().project(record["points"])
        assert shown.all()
        np.testing.assert_allclose(positions, record["formula_xy"], atol=1e-3)
        # the rendering's centroids count pixel centres as integers
        np.testing.assert_allclose(positions - 0.5, record["measured_centroid_xy"], atol=0.5)


def test_drawn_points_lie_where_the_rendering_has_them(golden):
    with np.load(golden("geometry/viewpoint.npz")) as record:
        for point, measured in zip(record["points"], record["measured_centroid_xy"], strict=True):
            lit = cloud_picture(point[None], rgb=(255, 255, 255), rings_m=()).sum(axis=2).astype(float)
            lit -= lit.min()
            y, x = np.nonzero(lit)
            weights = lit[y, x]
            centroid = [(x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()]
            np.testing.assert_allclose(centroid, measured, atol=1.0)
