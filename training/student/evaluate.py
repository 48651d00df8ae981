# SPDX-License-Identifier: Apache-2.0
"""Held-out evaluation of a student on the training device: means over fixed scenes that training never sees.

These are the numbers of the training curve, and by the same ``RaySums`` those of a bundle (``bundle_report``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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


class RaySums:
    """Sums over the rays of held-out scenes, and of named regions of them; the definitions behind every figure of a student.

    Errors count rays whose truth returns in ``WINDOW``, whatever the model says of the return.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._scores: list[Tensor] = []
        self._truths: list[Tensor] = []

    def add(
        self,
        predicted: Tensor,
        probability: Tensor,
        true: Tensor,
        regions: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Maps ``[..., rows, columns]``: ranges in metres (the true one 0 = no return), return probability, bool regions."""
        returned = true > 0
        window = (true >= WINDOW[0]) & (true <= WINDOW[1])
        error = (predicted - true).abs()
        right = ((probability >= 0.5) == returned).float()
        everywhere = torch.ones_like(returned)
        for name, region in {"": everywhere, **(regions or {})}.items():
            suffix = f"_{name}" if name else ""
            self._count("mae_m" + suffix, error, window & region)
            self._count("abs_rel" + suffix, error / true.clamp_min(1e-3), window & region)
            self._count("return_accuracy" + suffix, right, everywhere & region)
        self._scores.append(probability[..., ::4, ::4].flatten().float().cpu())
        self._truths.append(returned[..., ::4, ::4].flatten().cpu())

    def _count(self, name: str, values: Tensor, where: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float((values * where).sum(dtype=torch.float64))
        self._counts[name] = self._counts.get(name, 0.0) + float(where.sum(dtype=torch.float64))

    def result(self) -> dict[str, float]:
        """``mae_m``, ``abs_rel``, ``return_accuracy``, also as ``NAME_REGION``; ``return_auroc``. What has no ray is left out."""
        means = {name: self._sums[name] / count for name, count in self._counts.items() if count}
        area = auroc(torch.cat(self._scores), torch.cat(self._truths))
        return means if math.isnan(area) else {**means, "return_auroc": area}


@torch.no_grad()
def evaluate(predict: Predictor, stream: SceneStream, scenes: int, batch: int = 16) -> dict[str, float]:
    """Means over the first ``scenes`` evaluation seeds with the exact rig."""
    sums = RaySums()
    seeds = torch.arange(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + scenes)
    for part in seeds.split(batch):
        data = stream(part, exact_only=True)
        sums.add(*predict(data), data.target.range_m, {"seen": data.seen, "unseen": ~data.seen})
    return sums.result()


def auroc(scores: Tensor, truths: Tensor) -> float:
    """Area under the ROC curve by the rank sum (Mann-Whitney), ties averaged."""
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()
    positives = int(truths.sum())
    negatives = len(truths) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((ranks[truths].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def student_predictor(student: Student, limits: tuple[float, float]) -> Predictor:
    """The one-step estimate of a student."""

    def predict(data: Batch) -> tuple[Tensor, Tensor]:
        estimate = student.estimate(data.pixels, data.rays)
        return decode_log(estimate.code, *limits), torch.sigmoid(estimate.logit)

    return predict


def constant_predictor(maps: tuple[Tensor, Tensor]) -> Predictor:
    """The ladder's first rung."""

    def predict(data: Batch) -> tuple[Tensor, Tensor]:
        shape, device = data.target.range_m.shape, data.target.range_m.device
        return maps[0].to(device).expand(shape), maps[1].to(device).expand(shape)

    return predict
