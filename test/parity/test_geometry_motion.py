# SPDX-License-Identifier: Apache-2.0
"""Ego motion within a spin equals the reference vectors, in numpy and torch."""

import re

import numpy as np
import pytest

from lidargen_ros import motion

ATOL = 6e-5  # the reference rounds interpolated poses to float32
FULL_TURN = 1800  # columns from which the published crop of 1792 is taken


@pytest.fixture(scope="session")
def cases(golden):
    v = np.load(golden("geometry/motion.npz"))
    return [{k.split("_", 1)[1]: v[k] for k in v if k.startswith(f"{i}_")} for i in range(int(v["n_cases"]))]


def column_keys(case):
    """The raw column array with its count, and the cropped one with its width."""
    found = {int(m[1]): case[k] for k in case if (m := re.fullmatch(r"col(\d+)", k))}
    return (max(found), found[max(found)]), (min(found), found[min(found)])


def test_motion_matrix(cases):
    for case in cases:
        m = motion.spin_motion(case["T_start"], case["T_end"])
        np.testing.assert_allclose(motion.invert_pose(m), case["M"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_undo_and_redo(cases, kind):
    torch = pytest.importorskip("torch") if kind == "torch" else None
    to = torch.from_numpy if torch else np.asarray
    for case in cases:
        m = motion.spin_motion(case["T_start"], case["T_end"])
        (count, raw), (width, cropped) = column_keys(case)
        points = to(case["points"].astype(np.float64))
        tau = to(motion.column_fractions(raw, count, reference=True))
        undone = motion.uncompensate(points, tau, m, reference=True)
        np.testing.assert_allclose(undone, case["uncompensated"], rtol=0, atol=ATOL)
        tau = to(motion.column_fractions(cropped, FULL_TURN, (FULL_TURN - width) // 2, reference=True))
        redone = motion.compensate(points, tau, m)
        np.testing.assert_allclose(redone, case["compensated"], rtol=0, atol=ATOL)


def test_default_undo_is_near_the_reference_and_exactly_inverse(cases):
    for case in cases:
        m = motion.spin_motion(case["T_start"], case["T_end"])
        (count, raw), _ = column_keys(case)
        tau = motion.column_fractions(raw, count, reference=True)
        undone = motion.uncompensate(case["points"], tau, m)
        np.testing.assert_allclose(motion.compensate(undone, tau, m), case["points"], rtol=0, atol=1e-9)
        # Documented bound: tau (1 - tau) |turn| |travel|.
        turn = np.arccos(np.clip((np.trace(m[:3, :3]) - 1) / 2, -1, 1))
        bound = 0.25 * turn * np.linalg.norm(m[:3, 3]) + 1e-4
        gap = np.linalg.norm(undone - motion.uncompensate(case["points"], tau, m, reference=True), axis=1)
        assert gap.max() <= 1.05 * bound


def test_pose_interpolation(cases):
    for case in cases:
        poses = np.stack([np.eye(4), motion.invert_pose(case["M"])])
        out = motion.interpolate_poses(case["interp_times"], case["ts"], poses)
        np.testing.assert_allclose(out, case["interp_poses"], rtol=0, atol=2e-6)
