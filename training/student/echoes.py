# SPDX-License-Identifier: Apache-2.0
"""Scenes that are used more than once, because rendering one takes longer than a training step on it.

Data echoing (Choi et al. 2019, arXiv 1907.05550) of whole batches: between one new batch of scenes and the next, earlier
ones come again with other noise. Which one is drawn from the step's number alone, so that a run that goes on from a
checkpoint sees the same batches; it only has to render the first few again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ..draws import sample_seed

T = TypeVar("T")
_ECHO_DRAWS = 3  # purpose of the draws of ``training/draws.py``


def scenes_of(step: int, uses: int, kept: int, seed: int) -> int:
    """Number of the batch of scenes for a step: new at every ``uses``-th, in between one of the last ``kept``."""
    newest, again = divmod(step, uses)
    if not again:
        return newest
    return newest - sample_seed(seed, step, _ECHO_DRAWS) % min(kept, newest + 1)


class Kept(Generic[T]):
    """The last ``count`` (1 or more) values that were made, by key; others are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._values: OrderedDict[object, T] = OrderedDict()

    def get(self, key: object, make: Callable[[], T]) -> T:
        if key in self._values:
            return self._values[key]
        if len(self._values) == self._count:
            self._values.popitem(last=False)  # before the next is made: two more would not fit into memory
        self._values[key] = value = make()
        return value
