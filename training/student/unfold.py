# SPDX-License-Identifier: Apache-2.0
"""The weights of a bundle, made fit for training again: their normalisation was folded into the convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lidargen_ros.models.student import Student, StudentConfig


def is_folded(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of a bundle: they hold no statistics of normalisation."""
    return not any(name.endswith("running_mean") for name in weights)


def normalised(student: Student) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Name of each convolution that is followed by normalisation, and that normalisation."""
    for name, container in student.named_modules():
        if isinstance(container, nn.Sequential):
            for (first, layer), (_, following) in pairwise(container.named_children()):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    yield f"{name}.{first}", following


@torch.no_grad()
def unfold(
    weights: Mapping[str, Tensor],
    config: StudentConfig,
    frames: Iterable[Any],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Weights of a student that answers as the folded one does, by its running statistics and, nearly, by those of a batch.

    The statistics are measured on ``frames`` (with ``pixels`` and ``rays``, as ``stream.Batch``); each normalisation gets
    the scale and shift that undo it.
    """
    student = Student(config)
    pairs = dict(normalised(student))
    whole = student.state_dict()
    for name in whole:
        if name in weights:
            whole[name] = weights[name].float()
    student.load_state_dict(whole)
    sums: dict[str, list[Tensor]] = {}
    hooks = []
    for name, norm in pairs.items():
        norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]  # so that it changes nothing yet
        norm.bias.copy_(weights[f"{name}.bias"])
        sums[name] = []
        hooks.append(norm.register_forward_pre_hook(collector(sums[name])))
    student.to(device).eval()
    for frame in frames:
        student.estimate(frame.pixels, frame.rays)
    for hook in hooks:
        hook.remove()
    for name, norm in pairs.items():
        mean, square = torch.stack(sums[name]).mean(0)
        variance = (square - mean**2).clamp_min(1e-8)
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)
    return {name: value.cpu() for name, value in student.state_dict().items()}


def collector(found: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that keeps mean and mean square ``[2, channels]`` of what comes in."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        found.append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    return hook
