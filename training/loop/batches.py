# SPDX-License-Identifier: Apache-2.0
"""The batches of this rank in order, made in advance by threads where the recipe wants that."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..recipe import Recipe
from . import ranks


class Batches:
    """``next(first)`` is this rank's part of the global batch of ``size`` samples that begins with sample ``first``."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        self._recipe, self._size = recipe, size
        self._mine = size // ranks.count()
        self._pool = ThreadPoolExecutor(recipe.ahead) if recipe.ahead else None
        self._coming: deque[tuple[int, Future[Any]]] = deque()

    def next(self, first: int) -> Any:
        if self._pool is None:
            return self._make(first)
        if not self._coming:
            self._ask(first)
        while len(self._coming) <= self._recipe.ahead:
            self._ask(self._coming[-1][0] + self._size)
        number, batch = self._coming.popleft()
        assert number == first, "batches are taken in order"
        return batch.result()

    def _ask(self, first: int) -> None:
        assert self._pool is not None
        self._coming.append((first, self._pool.submit(self._make, first)))

    def _make(self, first: int) -> Any:
        return self._recipe.batch(first + ranks.rank() * self._mine, self._mine)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
