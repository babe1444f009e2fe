"""Each entity's own level, taken off its rows, so that engines that differ from birth can share one forest.

Owns the first rows of each entity and their medians. Never scales (`scorer.features` does), never learns past those rows: a
level that moved on with the entity would hide its wear.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scorer.errors import BadParameter

Floats = NDArray[np.float64]


class Baseline:
    """Median by column of the first rows of each entity. Modified in place.

    Args:
        rows: how many first rows make an entity's level, 1 to 10,000.
    """

    def __init__(self, rows: int) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= 10_000:
            raise BadParameter(
                f"baseline_rows must be a whole number from 1 to 10,000, not {rows!r}.", parameter="baseline_rows"
            )
        self.rows = rows
        self._first: dict[str, list[list[float]]] = {}
        self._levels: dict[str, Floats] = {}

    def learn(self, rows: Floats, entities: list[str]) -> None:
        """Take the levels from training rows; an entity with fewer than `rows` of them has its level from what there is."""
        for name, row in zip(entities, rows, strict=True):
            self._note(name, row)
        for name in list(self._first):
            self._close(name)

    def subtract(self, rows: Floats, entities: list[str], *, take_in: bool = True) -> tuple[Floats, NDArray[np.bool_]]:
        """(levels, known), shapes (n, d) and (n,): the level that belongs to each row, NaN where it is not known yet.

        The row that completes a level is the last one without it. Without `take_in` no row counts towards a level.
        """
        levels, known = np.full(rows.shape, np.nan), np.zeros(len(rows), np.bool_)
        for i, name in enumerate(entities):
            level = self._levels.get(name)
            if level is not None:
                levels[i], known[i] = level, True
            elif take_in:
                self._note(name, rows[i])
                if len(self._first[name]) >= self.rows:
                    self._close(name)
        return levels, known

    def _note(self, name: str, row: Floats) -> None:
        if name not in self._levels and len(first := self._first.setdefault(name, [])) < self.rows:
            first.append(row.tolist())

    def _close(self, name: str) -> None:
        ordered = np.sort(np.array(self._first.pop(name), np.float64), axis=0)
        count = (~np.isnan(ordered)).sum(axis=0)
        columns = np.arange(ordered.shape[1])
        low, high = ordered[np.maximum(count - 1, 0) // 2, columns], ordered[count // 2, columns]
        self._levels[name] = np.where(count % 2 == 1, low, low / 2.0 + high / 2.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; NaN is None."""
        first = {name: [_plain(row) for row in rows] for name, rows in self._first.items()}
        return {"rows": self.rows, "first": first, "levels": {name: _plain(level) for name, level in self._levels.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        made = cls(values["rows"])
        made._first = {name: [_numbers(row).tolist() for row in rows] for name, rows in values["first"].items()}
        made._levels = {name: _numbers(level) for name, level in values["levels"].items()}
        return made


def _plain(row: Any) -> list[float | None]:
    return [None if value != value else float(value) for value in row]


def _numbers(row: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in row], np.float64)
