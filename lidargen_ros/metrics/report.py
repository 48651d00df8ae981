# SPDX-License-Identifier: Apache-2.0
"""Everything that one drive can say about a generator, in one dict that is ready for JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from ..errors import DataError
from ..sensors import Sensor
from .chamfer import WINDOW_M, Chamfer, chamfer, summarise
from .drive_sums import DriveSums
from .histograms import (
    birds_eye_histogram,
    jensen_shannon_distance,
    jensen_shannon_divergence,
    maximum_mean_discrepancy,
)
from .ladder import ConstantMap, SweepLibrary, constant_map

Pair = tuple[NDArray, NDArray | None, NDArray]
CHAMFER_QUERIES = 20_000


def drive_report(
    pairs: Iterable[Pair],
    sensor: Sensor,
    truth_sensor: Sensor,
    baseline: ConstantMap | None = None,
    *,
    seen: NDArray | None = None,
    window_m: tuple[float, float] = WINDOW_M,
    chamfer_queries: int | None = CHAMFER_QUERIES,
    outside_neighbours: bool = False,
    birds_eye: bool = False,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Compare generated with true sweeps, on the grid of the true sensor.

    Each true ray is compared with the generator's ray nearest by angle, where the generator's field of view
    covers it; the clouds are cut to the common field of view before their Chamfer distance is taken.

    Args:
        pairs: (generated range map of ``sensor``, its returns, true range map of ``truth_sensor``), each
            ``[rows, columns]``, metres, 0 = no return. Returns: bool mask or probability on the grid of the
            generated map, or None where the map itself says it. With returns given, the map may hold the
            model's range on every ray.
        baseline: best constant predictor on the grid of ``truth_sensor``. None: fitted to the true maps of
            these very pairs, the best constant there can be (all pairs are then held in memory).
        seen: bool ``[rows, columns]`` of ``sensor``: rays that some camera sees.
        window_m: true ranges that errors count, and radii that Chamfer counts.
        chamfer_queries: ``queries`` of ``chamfer``; None for all points.
        outside_neighbours: also report ``chamfer_outside_neighbours``, see ``chamfer``.
        birds_eye: also report ``birds_eye``: JSD and MMD, see ``histograms`` (80 kB of memory per sweep).
        threshold: probability from which on a ray returns.

    Returns:
        ``mae_m``, ``abs_rel``: over the ``rays`` whose truth returns inside the window and where the
        generator returned too; ``rays_share`` is their share of the true returns in the window.
        ``baseline_mae_m``: the baseline on the same rays. ``all_rays``, ``baseline_all_rays_mae_m``: over all
        true returns in the window at which the map holds a range, whatever the return decision.
        ``return_accuracy``: share of the shared rays decided as the truth is, truth beyond the generator's
        range limits counting as no return. ``chamfer_m``: mean, median and best of ``l1_sum_m``, the larger
        of the usual forms; every form is under ``chamfer``. ``seen``, ``unseen``: the headline figures of
        either part, where ``seen`` is given. The rest is described in docs/metrics.md.

    Raises:
        DataError: no pairs. InputError: a map does not fit its sensor.
    """
    if baseline is None:
        pairs = list(pairs)
        if not pairs:
            raise _nothing()
        baseline = constant_map(true for _, _, true in pairs)
    sums = DriveSums(sensor, truth_sensor, baseline, seen, window_m, threshold)
    forms = (False, True) if outside_neighbours else (False,)
    histograms: list[list[NDArray]] = []

    def distances(clouds: tuple[NDArray, NDArray]) -> list[Chamfer | None]:
        if birds_eye:
            histograms.append([birds_eye_histogram(cloud) for cloud in clouds])
        return [
            chamfer(*clouds, window_m, outside_neighbours=form, queries=chamfer_queries, workers=1)
            for form in forms
        ]

    found: list[list[Chamfer | None]] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # Batches bound the memory; the searches of one batch run side by side with the counting.
        for batch in _batches(pairs, 16):
            found += pool.map(distances, (sums.add(*pair) for pair in batch))
    if not found:
        raise _nothing()
    report = sums.result()
    for form, name in enumerate(("chamfer", "chamfer_outside_neighbours")[: len(forms)]):
        report[name] = summarise(per_frame[form] for per_frame in found)
    headline = report["chamfer"].get("l1_sum_m", {})
    report["chamfer_m"] = {
        **{key: headline.get(key) for key in ("mean", "median", "best", "mean_95")},
        "frames": report["chamfer"]["frames"],
        "empty": report["chamfer"]["empty"],
        "definition": "mean distance generated to true + mean distance true to generated, not squared",
        "queries_per_direction": chamfer_queries,
    }
    if birds_eye:
        report["birds_eye"] = _birds_eye(histograms)
    return report


def ladder_report(
    true_maps: Sequence[NDArray],
    truth_sensor: Sensor,
    *,
    constant: ConstantMap | None = None,
    training_maps: Sequence[NDArray] | None = None,
    tokenizer_maps: Sequence[NDArray] | None = None,
    previous_maps: Sequence[NDArray | None] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """``drive_report`` of each rung of the ladder, for the same true sweeps; see ``ladder``.

    Args:
        true_maps: ``[rows, columns]`` of ``truth_sensor``, in order of time.
        constant: best constant map of the training data; None: of these sweeps themselves.
        training_maps: sweeps of the training data, on the same grid, for the nearest training sweep.
        tokenizer_maps: what a tokenizer makes of each true map (its floor).
        previous_maps: the sweep before each true one, None where there is none; by default the map before it in
            ``true_maps``.
        options: of ``drive_report``.

    Returns:
        Reports named ``best constant map``, ``previous sweep``, and where given ``nearest training sweep``
        and ``tokenizer floor``. The previous sweep needs two maps, and has one frame less.
    """
    constant = constant_map(true_maps) if constant is None else constant
    rungs: dict[str, Iterable[Pair]] = {
        "best constant map": ((constant.range_map, constant.return_share, true) for true in true_maps)
    }
    if training_maps is not None:
        library = SweepLibrary(training_maps)
        rungs["nearest training sweep"] = ((library.nearest(true), None, true) for true in true_maps)
    before = [None, *true_maps[:-1]] if previous_maps is None else previous_maps
    if any(guess is not None for guess in before):
        matched = zip(before, true_maps, strict=True)
        rungs["previous sweep"] = ((guess, None, true) for guess, true in matched if guess is not None)
    if tokenizer_maps is not None:
        rungs["tokenizer floor"] = zip(tokenizer_maps, [None] * len(true_maps), true_maps, strict=True)
    return {
        name: drive_report(pairs, truth_sensor, truth_sensor, constant, **options)
        for name, pairs in rungs.items()
    }


def _birds_eye(histograms: Sequence[Sequence[NDArray]]) -> dict[str, Any]:
    generated, true = ([h for h in side if h.any()] for side in zip(*histograms, strict=True))
    sides = {"generated_sweeps": len(generated), "true_sweeps": len(true)}
    if not generated or not true:
        return sides
    return {
        **sides,
        "jsd_square_root": jensen_shannon_distance(generated, true),
        "js_divergence_nats": jensen_shannon_divergence(generated, true),
        "mmd": maximum_mean_discrepancy(generated, true),
    }


def _nothing() -> DataError:
    return DataError(
        "no pair of generated and true sweeps to compare; check the topics or files that were given"
    )


def _batches(items: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
