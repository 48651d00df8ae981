# SPDX-License-Identifier: Apache-2.0
"""The report of a drive: against the single metrics, and on scenes whose numbers are known."""

import json

import numpy as np
import pytest

from lidargen_ros.errors import DataError, InputError
from lidargen_ros.metrics.chamfer import chamfer
from lidargen_ros.metrics.edges import bleeding
from lidargen_ros.metrics.histograms import (
    birds_eye_histogram,
    jensen_shannon_distance,
    maximum_mean_discrepancy,
)
from lidargen_ros.metrics.ladder import ConstantMap, constant_map
from lidargen_ros.metrics.range_errors import (
    errors_by_range,
    errors_by_row,
    errors_by_seen,
    range_errors,
    window,
)
from lidargen_ros.metrics.report import drive_report, ladder_report
from lidargen_ros.metrics.returns import return_scores
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep


def sensor(rows=8, columns=60, **more):
    return Sensor(name="toy", elevations_deg=np.linspace(5, -20, rows), columns=columns, **more)


def drive(of, frames=4, seed=0):
    """Random pairs: range on every ray, return probability, truth."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(frames):
        true = (rng.uniform(2, 90, of.shape) * (rng.random(of.shape) < 0.8)).astype(np.float32)
        generated = np.where(true > 0, true + rng.normal(0, 2, of.shape), 30).clip(1).astype(np.float32)
        probability = np.clip(0.6 * (true > 0) + rng.random(of.shape) * 0.5, 0, 1).astype(np.float32)
        pairs.append((generated, probability, true))
    return pairs


def test_report_equals_the_single_metrics():
    of = sensor()
    pairs = drive(of)
    generated, probability, true = (np.stack(column) for column in zip(*pairs, strict=True))
    decided = probability >= 0.5
    shown = np.where(decided, generated, 0)
    in_window = window(true, 5, 65)
    seen = np.zeros(of.shape, bool)
    seen[:, 10:40] = True
    report = drive_report(iter(pairs), of, of, seen=seen, chamfer_queries=None)

    expected = range_errors(shown, true, in_window)
    assert report["errors"] == pytest.approx(expected)
    assert (report["mae_m"], report["abs_rel"]) == (report["errors"]["mae_m"], report["errors"]["abs_rel"])
    assert report["rays"] == expected["rays"]
    assert report["rays_share"] == pytest.approx(expected["rays"] / in_window.sum())
    assert report["all_rays"]["mae_m"] == pytest.approx(range_errors(generated, true, in_window)["mae_m"])
    assert report["all_rays"]["rays"] == in_window.sum()
    for label, errors in errors_by_range(shown, true, in_window).items():
        assert report["errors_by_range"][label] == pytest.approx(errors)
    assert report["mae_m_by_row"] == pytest.approx(
        [e["mae_m"] for e in errors_by_row(shown, true, in_window)]
    )
    for name, errors in errors_by_seen(shown, true, seen, in_window).items():
        assert report[name]["mae_m"] == pytest.approx(errors["mae_m"])
        assert report[name]["rays"] == errors["rays"]

    base = constant_map(true).range_map
    same_rays = in_window & (shown > 0)
    assert report["baseline_mae_m"] == pytest.approx(np.abs(base - true)[same_rays].mean())
    assert report["baseline_all_rays_mae_m"] == pytest.approx(np.abs(base - true)[in_window].mean())

    assert report["points_mean"] == decided.sum() / 4
    assert report["points_true_mean"] == (true > 0).sum() / 4
    scores = return_scores(probability.reshape(32, 60), (true > 0).reshape(32, 60))
    assert report["return_accuracy"] == pytest.approx(scores["accuracy"])
    assert report["returns"]["auroc"] == pytest.approx(scores["auroc"])
    assert report["seen"]["return_accuracy"] == pytest.approx((decided == (true > 0))[:, seen].mean())
    far = (true >= 80).sum()
    assert report["missed_share_by_range"]["80-"] == pytest.approx(((true >= 80) & ~decided).sum() / far)
    bleeds, judged = bleeding(shown)
    assert report["edge_bleeding_rate"]["generated"] == pytest.approx(bleeds.sum() / judged.sum())

    clouds = [(Sweep(a, of).points(), Sweep(b, of).points()) for a, b in zip(shown, true, strict=True)]
    distances = [chamfer(*pair).l1_sum_m for pair in clouds]
    assert report["chamfer_m"]["mean"] == pytest.approx(np.mean(distances))
    assert report["chamfer_m"]["median"] == pytest.approx(np.median(distances))
    assert report["chamfer"]["l1_half_sum_m"]["mean"] == pytest.approx(np.mean(distances) / 2)


def test_report_is_ready_for_json():
    of = sensor()
    report = drive_report(drive(of), of, of, seen=np.zeros(of.shape, bool), outside_neighbours=True)
    assert json.loads(json.dumps(report, allow_nan=False))["seen"]["mae_m"] is None
    assert report["chamfer_outside_neighbours"]["l1_sum_m"]["mean"] <= report["chamfer_m"]["mean"]


def test_a_perfect_generator():
    of = sensor()
    pairs = [(true, None, true) for _, _, true in drive(of)]
    report = drive_report(pairs, of, of)
    assert report["mae_m"] == report["chamfer_m"]["mean"] == 0
    assert report["return_accuracy"] == report["rays_share"] == 1


def room(of, radius=20.0):
    """A round wall: range radius / cos(elevation) on every ray."""
    return np.broadcast_to((radius / np.cos(of.elevations()))[:, None], of.shape).astype(np.float32)


def test_sensors_with_other_grids_are_compared_on_the_nearest_rays():
    ours = sensor(26, 360)
    theirs = sensor(13, 100, azimuth_start_deg=0.0, clockwise=False)
    report = drive_report([(room(ours), None, room(theirs))], ours, theirs)
    assert report["rays"] == 13 * 100
    assert report["mae_m"] < 0.05
    assert report["return_accuracy"] == 1


def test_rays_and_points_outside_the_common_field_of_view_do_not_count():
    ours = sensor(26, 360)
    front = Sensor(
        name="front",
        elevations_deg=np.linspace(30, -20, 26),
        columns=120,
        azimuth_start_deg=60,
        azimuth_span_deg=120,
    )
    report = drive_report([(room(ours), None, room(front))], ours, front)
    assert 0 < report["rays"] < front.rows * front.columns
    assert report["return_accuracy"] == 1
    assert report["chamfer_m"]["mean"] < 0.5  # a whole turn against a third of one would be 10 m and more


def test_truth_beyond_our_range_is_no_return_for_us():
    ours, theirs = sensor(max_range_m=100), sensor(max_range_m=200)
    true = np.full(theirs.shape, 150, np.float32)
    report = drive_report([(np.zeros(ours.shape, np.float32), None, true)], ours, theirs)
    assert report["return_accuracy"] == 1
    assert report["mae_m"] is None
    assert report["chamfer_m"]["mean"] is None
    assert report["chamfer_m"]["empty"] == 1


def test_a_given_baseline_is_used_without_holding_the_pairs():
    of = sensor()
    base = ConstantMap(np.full(of.shape, 7, np.float32), np.ones(of.shape, np.float32))
    true = np.full(of.shape, 10, np.float32)
    report = drive_report(((true + 1, None, true) for _ in range(40)), of, of, base)
    assert report["frames"] == 40
    assert report["mae_m"] == pytest.approx(1)
    assert report["baseline_mae_m"] == pytest.approx(3)


def test_no_pairs_and_wrong_shapes_are_named():
    of = sensor()
    with pytest.raises(DataError, match="no pair of generated and true"):
        drive_report([], of, of)
    base = constant_map([room(of)])
    with pytest.raises(DataError, match="no pair"):
        drive_report([], of, of, base)
    with pytest.raises(InputError, match=r"pair 1: generated range map is \(3, 4\) but sensor 'toy'"):
        drive_report([(room(of), None, room(of)), (np.ones((3, 4)), None, room(of))], of, of, base)
    with pytest.raises(InputError, match="seen mask"):
        drive_report([(room(of), None, room(of))], of, of, seen=np.ones((2, 2), bool))


def test_ladder_orders_predictors_of_a_slowly_changing_scene():
    of = sensor()
    rng = np.random.default_rng(0)
    scene = rng.uniform(6, 60, of.shape)
    true = [(scene + 0.5 * k).astype(np.float32) for k in range(6)]
    other = [rng.uniform(6, 60, of.shape).astype(np.float32) for _ in range(3)]
    ladder = ladder_report(
        true, of, constant=constant_map(other), training_maps=[*other, true[0] + 5], tokenizer_maps=true
    )
    assert list(ladder) == [
        "best constant map",
        "nearest training sweep",
        "previous sweep",
        "tokenizer floor",
    ]
    assert ladder["previous sweep"]["frames"] == 5
    assert ladder["previous sweep"]["mae_m"] == pytest.approx(0.5, rel=1e-4)
    assert ladder["nearest training sweep"]["mae_m"] < ladder["best constant map"]["mae_m"]
    assert ladder["tokenizer floor"]["mae_m"] == 0


def test_previous_sweeps_may_be_given():
    of = sensor()
    true = [room(of, 20.0), room(of, 30.0)]
    ladder = ladder_report(true, of, previous_maps=[room(of, 19.0), None])
    assert ladder["previous sweep"]["frames"] == 1
    assert ladder["previous sweep"]["mae_m"] == pytest.approx(range_errors(true[0], room(of, 19.0))["mae_m"])
    assert "previous sweep" not in ladder_report(true[:1], of)


def test_birds_eye_histograms_of_a_drive():
    of = sensor()
    pairs = [(g, p >= 0.5, t) for g, p, t in drive(of)]
    report = drive_report(pairs, of, of, birds_eye=True)
    sides = [
        [birds_eye_histogram(Sweep(m, of).points()) for m in maps]
        for maps in zip(*((np.where(r, g, 0), t) for g, r, t in pairs), strict=True)
    ]
    assert report["birds_eye"]["jsd_square_root"] == pytest.approx(jensen_shannon_distance(*sides))
    assert report["birds_eye"]["mmd"] == pytest.approx(maximum_mean_discrepancy(*sides))
    nothing = [(np.zeros(of.shape), None, t) for _, _, t in pairs]
    assert drive_report(nothing, of, of, birds_eye=True)["birds_eye"] == {
        "generated_sweeps": 0,
        "true_sweeps": 4,
    }
