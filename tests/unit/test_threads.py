"""Work that threads share: every task once, errors told, and not a bit of the result changed."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest

from scorer import RandomCutForest
from scorer.blocks import share


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_is_done_once(threads):
    """As many tasks as threads, fewer, and more; the calling thread takes part."""
    for count in (0, 1, threads, 40):
        done: list[tuple[int, int]] = []

        def note(i: int, done: list[tuple[int, int]] = done) -> None:
            done.append((i, threading.get_ident()))

        share([functools.partial(note, i) for i in range(count)], threads)
        assert sorted(i for i, _ in done) == list(range(count))
        assert threads > 1 or {who for _, who in done} <= {threading.get_ident()}


def test_an_error_of_any_thread_is_raised():
    """A task that fails is not passed over, whoever had it."""

    def fail() -> None:
        raise ArithmeticError("no")

    for threads in (1, 3):
        with pytest.raises(ArithmeticError):
            share([fail] * 6, threads)


def test_threads_change_no_bit():
    """Fit, honest scores, learning, scores and parts of several blocks, with 1, 2 and 7 threads of 33 trees."""
    rows = np.random.default_rng(0).normal(size=(9000, 24))
    found = []
    for threads in (1, 2, 7):
        forest = RandomCutForest(trees=33, samples=32, time_decay=500, policy="streaming", threads=threads)
        parts = [
            forest.fit_score(rows[:500]),
            forest.update(rows[:5000]),
            forest.score_samples(rows),
            *forest.explain(rows[:2500]),
        ]
        found.append([part.tobytes() for part in parts] + [forest.to_bytes()])
    assert found[0] == found[1] == found[2]
