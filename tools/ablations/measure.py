# SPDX-License-Identifier: Apache-2.0
"""Held-out figures of a variant, by the definitions of the training curve (``training.student.evaluate``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lidargen_ros.metrics.calibration import sample_calibration
from lidargen_ros.models.student import PATCH, Condition
from training.student.evaluate import RaySums

from .answers import Answer
from .scenes import Scenes
from .variants import Model

SEAM_COLUMNS = 2 * PATCH[1]  # at either end of the turn
SAMPLES, STEPS = 9, 4
LEVELS = (0.5, 0.8)

Maps = Callable[[Tensor], tuple[Tensor, Tensor]]  # scene numbers -> range, return probability, [B, R, C]


def estimated(model: Model, answer: Answer, scenes: Scenes) -> Maps:
    """Best estimates in one step."""

    def maps(index: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(len(index), *answer.shape, device=index.device)
        return answer.maps(model(scenes.frames(index), nothing, torch.ones(len(index), device=index.device)))

    return maps


@torch.no_grad()
def figures(maps: Maps, scenes: Scenes, count: int, batch: int) -> dict[str, float]:
    """Over the first ``count`` scenes; ``_seam``: the columns at both ends of the turn."""
    sums = RaySums()
    columns = torch.arange(scenes.sensor.columns, device=scenes.entry.device)
    seam = torch.minimum(columns, columns.flip(0)) < SEAM_COLUMNS
    for index in batches(scenes, count, batch):
        true, seen = scenes.range_m[index].float(), scenes.seen(index)
        sums.add(*maps(index), true, {"seen": seen, "unseen": ~seen, "seam": seam.expand_as(seen)})
    return sums.result()


@torch.no_grad()
def drawn_figures(model: Model, answer: Answer, scenes: Scenes, count: int, batch: int) -> dict[str, float]:
    """Sweeps drawn in ``STEPS`` steps: the error of one, and for ``SAMPLES`` of them how far they scatter and how often
    their central interval holds the truth, in sight and out of it.
    """
    device = scenes.entry.device
    sums, stacks, truths, sights = RaySums(), [], [], []
    for index in batches(scenes, count, batch):
        true, seen = scenes.range_m[index].float(), scenes.seen(index)
        condition = model.student.encode(*model.look(scenes.frames(index)))

        def denoise(x: Tensor, t: float, condition: Condition = condition) -> Any:
            return model.student.denoise(x, torch.full((len(x),), t, device=device), condition)

        drawn = []
        for sample in range(SAMPLES):
            start = answer.noise([SAMPLES * int(scene) + sample for scene in index]).to(device)
            ranges, probability = answer.draw(denoise, start, STEPS)
            drawn.append(torch.where(probability >= 0.5, ranges, 0.0))
        sums.add(ranges, probability, true)
        stacks.append(torch.stack(drawn))
        truths.append(true)
        sights.append(seen)
    stack = torch.cat(stacks, 1).flatten(1, 2).cpu().numpy()  # [samples, scenes * rows, columns]
    truth, sight = (torch.cat(maps).flatten(0, 1).cpu().numpy() for maps in (truths, sights))
    found = {"drawn_mae_m": sums.result()["mae_m"]}
    for place, mask in (("seen", sight), ("unseen", ~sight)):
        honest = sample_calibration(stack, truth, mask, LEVELS)
        if honest["rays"]:
            found |= {
                f"drawn_coverage_{round(100 * level)}_{place}": honest["coverage"][level] for level in LEVELS
            }
            found[f"drawn_spread_m_{place}"] = honest["spread_m"]
    return found


def batches(scenes: Scenes, count: int, batch: int) -> Iterator[Tensor]:
    yield from torch.arange(count, device=scenes.entry.device).split(batch)
