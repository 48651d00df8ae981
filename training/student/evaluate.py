# SPDX-License-Identifier: Apache-2.0
"""Held-out evaluation of a student on the training device: means over fixed scenes that training never sees.

These are the numbers of the training curve; ``lidargen evaluate`` computes the full set from bags or saved sweeps.
Errors are over true returns in 5-65 m whatever the model says of the return.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lidargen_ros.models.student import Student
from lidargen_ros.range_coding import decode_log

from ..scenes.seeds import EVALUATION_SEEDS
from .stream import Batch, SceneStream

WINDOW = (5.0, 65.0)
Predictor = Callable[[Batch], tuple[Tensor, Tensor]]  # -> range in metres, return probability, [B, R, C]


@torch.no_grad()
def constant_map(stream: SceneStream, seeds: Tensor, batch: int = 16) -> tuple[Tensor, Tensor]:
    """The best constant predictor: per-ray median range over the returns of training scenes, and share of returns.

    ``[R, C]`` each. Rays that never returned get the median of their row.
    """
    maps = torch.cat(
        [stream(s, exact_only=True).target.range_m.to("cpu", torch.float16) for s in seeds.split(batch)]
    ).float()
    returned = maps > 0
    values = torch.where(returned, maps, torch.nan)
    medians = torch.cat([values[:, r : r + 8].nanmedian(dim=0).values for r in range(0, maps.shape[1], 8)])
    rows = medians.nanmedian(dim=1, keepdim=True).values.nan_to_num(float(np.nanmedian(values[:8].numpy())))
    return torch.where(medians.isnan(), rows, medians), returned.float().mean(0)


@torch.no_grad()
def evaluate(predict: Predictor, stream: SceneStream, scenes: int, batch: int = 16) -> dict[str, float]:
    """Means over the first ``scenes`` evaluation seeds with the exact rig."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}

    def add(name: str, values: Tensor, where: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float((values * where).sum(dtype=torch.float64))
        counts[name] = counts.get(name, 0.0) + float(where.sum(dtype=torch.float64))

    scores, truths = [], []
    seeds = torch.arange(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + scenes)
    for part in seeds.split(batch):
        data = stream(part, exact_only=True)
        predicted, probability = predict(data)
        true = data.target.range_m
        window = (true >= WINDOW[0]) & (true <= WINDOW[1])
        error = (predicted - true).abs()
        for suffix, where in (("", window), ("_seen", window & data.seen), ("_unseen", window & ~data.seen)):
            add("mae_m" + suffix, error, where)
            add("abs_rel" + suffix, error / true.clamp_min(1e-3), where)
        right = (probability >= 0.5) == (true > 0)
        add("return_accuracy", right.float(), torch.ones_like(right))
        scores.append(probability[:, ::4, ::4].flatten().float().cpu())
        truths.append((true > 0)[:, ::4, ::4].flatten().cpu())
    result = {name: sums[name] / max(counts[name], 1.0) for name in sums}
    result["return_auroc"] = auroc(torch.cat(scores), torch.cat(truths))
    return result


def auroc(scores: Tensor, truths: Tensor) -> float:
    """Area under the ROC curve by the rank sum (Mann-Whitney), ties averaged."""
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()
    positives = int(truths.sum())
    negatives = len(truths) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((ranks[truths].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def student_predictor(student: Student, limits: tuple[float, float], autocast: Callable) -> Predictor:
    """The one-step estimate of a student."""

    def predict(data: Batch) -> tuple[Tensor, Tensor]:
        with autocast():
            estimate = student.estimate(data.pixels, data.rays)
        return decode_log(estimate.code, *limits), torch.sigmoid(estimate.logit)

    return predict


def constant_predictor(maps: tuple[Tensor, Tensor]) -> Predictor:
    """The ladder's first rung."""

    def predict(data: Batch) -> tuple[Tensor, Tensor]:
        shape, device = data.target.range_m.shape, data.target.range_m.device
        return maps[0].to(device).expand(shape), maps[1].to(device).expand(shape)

    return predict
