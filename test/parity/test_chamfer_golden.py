# SPDX-License-Identifier: Apache-2.0
"""Chamfer distances of two recorded clouds, in every form that the record has."""

import numpy as np
import pytest

from lidargen_ros.metrics.chamfer import chamfer


def test_recorded_chamfer(golden):
    with np.load(golden("geometry/chamfer.npz")) as record:
        result = chamfer(record["a"], record["b"])
        assert [result.generated_points, result.true_points] == record["n_in_window"].tolist()
        expected = {
            "accuracy_m": record["mean_ab"],
            "completeness_m": record["mean_ba"],
            "l1_sum_m": record["sum_l2"],  # the record calls the Euclidean distance l2
            "l1_half_sum_m": record["half_sum_l2"],
            "l2_sum_m2": record["sum_sq"],
        }
        for name, value in expected.items():
            assert getattr(result, name) == pytest.approx(float(value), rel=1e-12), name
