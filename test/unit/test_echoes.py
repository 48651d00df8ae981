# SPDX-License-Identifier: Apache-2.0
"""Which scenes a training step uses when scenes are used more than once."""

from collections import Counter

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from training.student.echoes import Kept, scenes_of


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 32), st.integers(0, 5))
def test_every_batch_of_scenes_is_new_once_and_then_among_the_kept(step, uses, kept, seed):
    number = scenes_of(step, uses, kept, seed)
    newest = step // uses
    assert max(0, newest - kept + 1) <= number <= newest
    if step % uses == 0:
        assert number == newest


def test_each_is_used_about_as_often():
    counts = Counter(scenes_of(step, 4, 16, 0) for step in range(4000))
    settled = [counts[n] for n in range(50, 950)]
    assert 3.8 < sum(settled) / len(settled) < 4.2
    assert min(settled) >= 1
    assert max(settled) <= 12


def test_what_is_kept_is_made_once_and_the_oldest_goes_first():
    made = []
    kept = Kept(2)
    for key in (0, 0, 1, 0, 2, 1, 2, 0):
        assert kept.get(key, lambda key=key: made.append(key) or key * 10) == key * 10
    assert made == [0, 1, 2, 0]
