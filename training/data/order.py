# SPDX-License-Identifier: Apache-2.0
"""Which item a sample number means: endless passes over a data set, each in another order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Shuffled:
    """``order[number]`` is the item of a sample number; it depends on the number, the count and the seed alone.

    So a run that was killed, or goes on with another number of processes, sees the samples it would have seen.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self._count, self._seed = count, seed
        self._pass, self._order = -1, np.arange(0)

    def __getitem__(self, number: int) -> int:
        passes, position = divmod(number, self._count)
        if passes != self._pass:
            self._pass, self._order = passes, self._permutation(passes)
        return int(self._order[position])

    def _permutation(self, passes: int) -> NDArray:
        return np.random.default_rng([self._seed, passes]).permutation(self._count)
