"""Shingles: the last rows of one entity side by side as one row, so that a forest sees how values follow each other.

Owns the rolling window of each entity and the rule for late rows. Never mixes entities, never learns or scores.

A shingle is complete once its entity has had `size` rows; before that there is none. Its columns are the base columns of the
oldest row first, the newest last.

Rule for late rows: with order values, a row whose order value is not above that of its entity's newest row is late. It gets no
shingle and leaves the window as it is; the caller is told. `rebuild` gives the shingles of a whole history, late rows put in
their place, for scoring again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import BadRows
from scorer.parameters import check_whole
from scorer.rows import as_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Shingler:
    """Rolling windows by entity.

    Args:
        size: rows in a shingle, 1 to 128.

    Attributes:
        late: rows that were refused so far.
    """

    def __init__(self, size: int) -> None:
        self.size = check_whole("shingle", size)
        self.columns = 0
        self.late = 0
        self._windows: dict[str, Floats] = {}
        self._newest: dict[str, float] = {}

    def push(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None = None,
        order: ArrayLike | None = None,
    ) -> tuple[Floats, Ints]:
        """Take rows in as they arrive.

        Args:
            X: base rows, shape (n, d).
            entities: whose row each is, n values that differ as text; None is one entity for all.
            order: shape (n,), when each row belongs; None takes the order of arrival, and no row is late.

        Returns:
            (shingles, rows): shape (m, d * size), float64, and the m numbers of the rows that completed them, ascending.

        Raises:
            BadRows: not numbers, other columns than before, entities or order of another length, or an order value that is NaN.
        """
        shingles, at, _ = self.take(X, entities, order)
        return shingles, at

    def take(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None = None,
        order: ArrayLike | None = None,
    ) -> tuple[Floats, Ints, Ints]:
        """`push` that also gives the numbers of the rows that were late."""
        rows = as_rows(X, self.columns)
        names = _as_names(entities, len(rows))
        times = None if order is None else as_order(order, len(rows))
        self.columns = rows.shape[1]
        shingles, at, late = [], [], []
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            if times is not None:
                if times[i] <= self._newest.get(name, -np.inf):
                    late.append(i)
                    continue
                self._newest[name] = float(times[i])
            window = self._windows.get(name, np.empty((0, self.columns)))
            window = np.concatenate([window[max(0, len(window) + 1 - self.size) :], row[np.newaxis]])
            self._windows[name] = window
            if len(window) == self.size:
                shingles.append(window.ravel())
                at.append(i)
        self.late += len(late)
        made = np.array(shingles, np.float64).reshape(len(at), self.columns * self.size)
        return made, np.array(at, np.int64), np.array(late, np.int64)

    def newest(self, entity: Hashable = None) -> Floats | None:
        """The newest shingle of an entity, shape (d * size,); None where it is not complete."""
        window = self._windows.get("" if entity is None else str(entity))
        return None if window is None or len(window) < self.size else window.ravel().copy()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; NaN is None."""
        windows = {
            name: [[None if np.isnan(v) else float(v) for v in row] for row in rows] for name, rows in self._windows.items()
        }
        return {"size": self.size, "columns": self.columns, "late": self.late, "windows": windows, "newest": dict(self._newest)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Shingler:
        """The inverse of `to_dict`."""
        made = cls(values["size"])
        made.columns, made.late = values["columns"], values["late"]
        made._newest = dict(values["newest"])
        made._windows = {
            name: np.array(rows, np.float64).reshape(len(rows), made.columns) for name, rows in values["windows"].items()
        }
        return made


def rebuild(
    X: ArrayLike,  # noqa: N803
    size: int,
    entities: Sequence[Hashable] | None = None,
    order: ArrayLike | None = None,
) -> tuple[Floats, Ints]:
    """Shingles of a whole history, as if no row had been late: rows are put in order first (equal ones as they stand).

    Returns:
        (shingles, rows) as `Shingler.push`, rows ascending.
    """
    rows = as_rows(X)
    names = _as_names(entities, len(rows))
    times = np.arange(len(rows)) if order is None else as_order(order, len(rows))
    sequence = np.argsort(times, kind="stable")
    shingles, at = Shingler(size).push(rows[sequence], [names[i] for i in sequence])
    numbers = sequence[at]
    back = np.argsort(numbers)
    return shingles[back], numbers[back]


def fold(parts: ArrayLike, columns: int) -> Floats:
    """Sum of values by base column: attributions of shingles, shape (n, columns * size), to shape (n, columns)."""
    values = np.asarray(parts, np.float64)
    folded: Floats = values.reshape(len(values), -1, columns).sum(axis=1)
    return folded


def _as_names(entities: Sequence[Hashable] | None, rows: int) -> list[str]:
    if entities is None:
        return [""] * rows
    if len(entities) != rows:
        raise BadRows(f"There are {len(entities)} entities for {rows} rows.", hint="Give one entity per row.")
    return [str(entity) for entity in entities]


def as_order(order: ArrayLike, rows: int) -> Floats:
    """Order values, shape (rows,), float64.

    Raises:
        BadRows: they are not, or one is NaN.
    """
    try:
        times = np.asarray(order, np.float64)
    except (TypeError, ValueError) as error:
        raise BadRows("Order values must be numbers, one per row.", hint="Give seconds, cycles or numbers.") from error
    if times.shape != (rows,) or np.isnan(times).any():
        raise BadRows("Order values must be numbers, one per row.", hint="Give seconds, cycles or numbers.", shape=times.shape)
    return times
