# SPDX-License-Identifier: Apache-2.0
"""A trained student goes on as a larger one that answers the same at first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from lidargen_ros.errors import ConfigError
from lidargen_ros.models.student import Student, StudentConfig

GROWS = ("hypotheses", "previous", "spread", "full_blocks")
_FIRST_SPREAD = -2.0  # logarithm; range codes of early students are off by that much


def grow(weights: Mapping[str, Tensor], old: StudentConfig, new: StudentConfig) -> dict[str, Tensor]:
    """Weights of a student ``new`` that computes what ``weights`` of a student ``old`` do.

    New inputs are read with weight 0, new blocks add 0. Drawn samples differ: the spread preconditions them anew. New
    look-ups are the last before the farthest, which stays the last.

    Raises:
        ConfigError: they differ in more than ``GROWS``, or ``new`` is the smaller one.
    """
    values = asdict(old), asdict(new)
    differing = [k for k in values[0] if values[0][k] != values[1][k]]
    wrong = [k for k in differing if k not in GROWS or values[0][k] > values[1][k]]
    if wrong:
        raise ConfigError(
            f"start_from is a student with model.{wrong[0]}={values[0][wrong[0]]}, the experiment has "
            f"{values[1][wrong[0]]}; only {', '.join(GROWS)} may grow"
        )
    grown = Student(new).state_dict()
    places = [*range(4 * (old.hypotheses - 1)), *range(4 * (new.hypotheses - 1), 4 * new.hypotheses)]
    after = 4 * new.hypotheses
    places += range(after, after + old.ray_features + 2 * old.previous)
    for name, value in grown.items():
        known = weights.get(name)
        if known is None:
            # Of a new block only the normalisation at its end must be silent.
            if name.startswith("decoder.noisy") or name.endswith("second.1.weight"):
                value.zero_()
        elif known.shape == value.shape:
            value.copy_(known)
        elif name.startswith("decoder.out"):
            value.zero_()
            value[: len(known)] = known
            if value.dim() == 1:
                value[len(known) :] = _FIRST_SPREAD
        else:  # the first convolutions: look-ups, rays, the sweep before, and what follows them
            rest = known.shape[1] - len(places)
            value.zero_()
            value[:, [*places, *range(value.shape[1] - rest, value.shape[1])]] = known
    return grown
