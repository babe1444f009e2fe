"""Learning row by row: the clock by which rows age, the policy, the windows of a gated forest.

Owns the order in which rows are scored, judged and learnt. Never decides whether a score is ordinary (`scorer.gate` does).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer import kernels
from scorer.blocks import Blocks, pack
from scorer.errors import BadRows
from scorer.gate import WINDOW_ROWS, Gate
from scorer.rows import as_rows, refuse_infinities

Floats = NDArray[np.float64]


class Watcher(Protocol):
    """Sees rows between their score and their learning, in order, in pieces of any size."""

    def judge(self, first: int, scores: Floats) -> NDArray[np.bool_]:
        """Take note of the scores of the rows from number `first` of the call on; says which rows are to be explained."""

    def explain(self, numbers: NDArray[np.int64]) -> None:
        """Explain these rows of the call: the forest is now as it was when it scored them."""


class Learning(Blocks):
    """The part of the forest that learns from a stream."""

    columns: int
    rows_seen: int
    age: float
    seed: int
    output_after: int
    initial_accept_fraction: float
    gate: Gate
    _entities: dict[str, None]
    _waiting: list[tuple[NDArray[np.float32], int, float]]
    _slots: NDArray[Any]

    @property
    def time_decay(self) -> int:
        """Rows of an entity after which a row's weight has fallen to 1/e."""
        raise NotImplementedError

    def _allocate(self, columns: int) -> None:
        raise NotImplementedError

    def _score(self, points: NDArray[np.float32]) -> Floats:
        raise NotImplementedError

    def _learn(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None,
        policy: str,
        *,
        with_scores: bool,
        watcher: Watcher | None = None,
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores, and which rows are learnt (in a window: will be)."""
        rows = as_rows(X, self.columns)
        refuse_infinities(rows)  # before the first row is learnt, so that all are or none is
        names = None if entities is None else check_entities(entities, len(rows))
        if not self.columns:
            self._allocate(rows.shape[1])
        scores, learnt = np.zeros(len(rows)), np.zeros(len(rows), np.bool_)
        if policy != "gated":
            self._learn_waiting()
        start = 0
        while start < len(rows):
            limit = self.block_rows
            if policy == "gated":
                limit = (
                    self.gate.opening_rows - self.gate.learnt if self.gate.open else WINDOW_ROWS - self.rows_seen % WINDOW_ROWS
                )
            points = pack(rows[start : start + min(limit, self.block_rows)])
            ages = self._take_ages(len(points), None if names is None else names[start : start + len(points)])
            end = start + len(points)
            numbers = self.rows_seen + np.arange(len(points))
            if policy == "frozen" or (policy == "gated" and not self.gate.open):
                scores[start:end] = self._score(points)
                if policy == "gated":
                    passed = self._judge(points, numbers, ages, scores[start:end])
                    end = start + len(passed)
                    learnt[start:end] = passed
                self._silence(scores[start:end])
                self._show(watcher, start, scores[start:end])
            else:
                self._learn_waiting()
                before = self._copy_state() if watcher is not None and len(points) > 1 else None
                given = points, numbers, ages[:-1]
                if watcher is None or before is not None:
                    found = self._learn_points(*given, with_scores=with_scores)
                else:
                    found = self._score(points)
                scores[start:end], learnt[start:end] = found, True
                self._silence(scores[start:end])
                if policy == "gated":
                    self.gate.pass_open(found)
                if watcher is not None:
                    asked = np.flatnonzero(watcher.judge(start, scores[start:end]))
                    self._explain_between(watcher, start, asked, before, *given)
            self.rows_seen += end - start
            self.age = float(ages[end - start])
            if self.rows_seen % WINDOW_ROWS == 0:
                self._learn_waiting()
            start = end
        return scores, learnt

    def _silence(self, scores: Floats) -> None:
        scores[: max(0, self.output_after - self.rows_seen)] = 0.0

    def _show(self, watcher: Watcher | None, first: int, scores: Floats) -> None:
        """Have rows judged, and explained where that is wanted, while the forest is as it was when it scored them."""
        if watcher is not None and (asked := np.flatnonzero(watcher.judge(first, scores))).size:
            watcher.explain(first + asked)

    def _copy_state(self) -> list[NDArray[Any]]:
        return [array.copy() for array in (*self._arrays(), self._slots)]

    def _explain_between(
        self,
        watcher: Watcher,
        first: int,
        asked: NDArray[np.int64],
        before: list[NDArray[Any]] | None,
        points: NDArray[np.float32],
        numbers: NDArray[np.int64],
        ages: Floats,
    ) -> None:
        """Explain rows that are learnt one by one, each by the forest before it. `before` None: nothing was learnt yet; else
        the rows were learnt, and where one is to be explained the forest goes back and learns them once more.
        """
        if before is not None:
            if not asked.size:
                return
            for array, old in zip((*self._arrays(), self._slots), before, strict=True):
                array[...] = old
        done = 0
        for row in asked.tolist():
            self._learn_points(points[done:row], numbers[done:row], ages[done:row], with_scores=False)
            watcher.explain(np.array([first + row]))
            done = row
        self._learn_points(points[done:], numbers[done:], ages[done:], with_scores=False)

    def _take_ages(self, rows: int, names: list[str] | None) -> Floats:
        """Age of each row and of the one after the last, shape (rows + 1,), float64; never falls."""
        if names is None:
            steps = np.full(rows, 1.0 / (self.time_decay * max(1, len(self._entities))))
        else:
            steps = np.empty(rows)
            for i, name in enumerate(names):
                self._entities[name] = None
                steps[i] = 1.0 / (self.time_decay * len(self._entities))
        # One addition after the other, so that the result does not depend on how rows are cut into calls.
        ages: Floats = np.cumsum(np.concatenate([[self.age], steps]))
        return ages

    def _learn_points(self, points: NDArray[np.float32], numbers: Any, ages: Floats, *, with_scores: bool) -> Floats:
        partial = np.zeros((self._chunks, len(points)))
        if not len(points):
            return np.empty(0)
        rule = np.uint64(self.seed), self.initial_accept_fraction, with_scores
        given = *self._arrays(), self._slots, points, numbers, ages
        self._run(kernels.learn_rows, len(points), *given, *rule, partial)
        return self._total(partial)

    def _judge(self, points: NDArray[np.float32], numbers: Any, ages: Floats, scores: Floats) -> NDArray[np.bool_]:
        """Let rows through the gate; returns which passed, of those that were judged."""
        drifts = self.gate.drifts
        passed, judged = self.gate.judge(scores)
        for i in np.flatnonzero(passed):
            self._waiting.append((points[i].copy(), int(numbers[i]), float(ages[i])))
        if self.gate.drifts > drifts:
            # What was normal ages at once, so that as many new rows as the run was long weigh as much as all before.
            known = min(self.rows_seen + judged, self.time_decay * max(1, len(self._entities)))
            ages[judged:] += math.log1p(known / self.gate.drift_rows)
        return passed

    def _learn_waiting(self) -> None:
        if self._waiting:
            points, numbers, ages = zip(*self._waiting, strict=True)
            self._waiting = []
            self._learn_points(np.array(points), np.array(numbers, np.int64), np.array(ages), with_scores=False)


def check_entities(entities: Sequence[Hashable], rows: int) -> list[str]:
    """Entities as text, one per row.

    Raises:
        BadRows: they are more or fewer than the rows.
    """
    if len(entities) != rows:
        raise BadRows(f"There are {len(entities)} entities for {rows} rows.", hint="Give one entity per row.")
    return [str(entity) for entity in entities]
