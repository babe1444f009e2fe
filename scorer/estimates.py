"""What a forest knows besides scores: other measures, expected values, neighbours, density, what comes next.

Owns these estimates; each reads the trees and changes nothing. Never learns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer import kernels
from scorer.blocks import Blocks, pack
from scorer.errors import BadParameter, BadRows

Floats = NDArray[np.float64]

MEASURES = {"depth": 0, "displacement": 1, "collusive_displacement": 2}
_MASS, _GAP = 3, 4
_SMALL = 1e-3  # keeps the density of a point that is there already finite


class Estimates(Blocks):
    """The part of the forest that estimates."""

    columns: int
    samples: int
    shingle: int
    with_directionality: bool

    def _measure(self, rows: Floats, measure: str) -> Floats:
        if measure not in MEASURES:
            known = ", ".join(["score", *MEASURES])
            raise BadParameter(f"Unknown measure {measure!r}.", hint=f"Give one of {known}.", parameter="measure")
        return self._measure_kind(rows, MEASURES[measure])

    def _measure_kind(self, rows: Floats, kind: int) -> Floats:
        values = np.empty(len(rows))
        for start in range(0, len(rows), self.block_rows):
            points = pack(rows[start : start + self.block_rows])
            partial = np.empty((self._chunks, len(points)))
            self._run(kernels.measure_rows, len(points), *self._arrays(), points, kind, partial)
            values[start : start + len(points)] = self._total(partial)
        return values

    def _candidates(self, rows: Floats) -> Floats:
        """For each tree and row the known point that the row leads to, by its known columns; shape (trees, n, d), float64."""
        points = pack(rows)
        leaves = np.full((self.trees, len(rows)), kernels.NONE, np.int32)
        self._run(kernels.find_nearest_leaves, len(points), *self._arrays(), points, leaves)
        found = self._corners[np.arange(self.trees)[:, np.newaxis], leaves + self.samples - 1, : self.columns].astype(
            np.float64
        )
        found[leaves == kernels.NONE] = np.nan
        return found

    def impute(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Fill in missing values: the median over the trees of the known points that the row's other values lead to.

        Args:
            X: rows, shape (n, d), NaN where a value is asked for.

        Returns:
            Shape (n, d), float64: the rows, with NaN only where no tree knows a value.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
        """
        rows = self._rows_to_score(X).copy()
        for start in range(0, len(rows), 64):
            block = rows[start : start + 64]
            missing = np.isnan(block)
            if missing.any():
                block[missing] = _nan_quantile(self._candidates(block), 0.5)[missing]
        return rows

    def expect(self, X: ArrayLike, most: int = 5, share: float = 0.1) -> Floats:  # noqa: N803
        """What the columns that make a row stand out would be expected to be, given its other columns.

        Args:
            X: rows, shape (n, d).
            most: at most so many columns of a row are questioned, the strongest first.
            share: and only those that hold at least this share of the score.

        Returns:
            Shape (n, d), float64: expected values of the columns that were questioned, else the row's own.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
        """
        rows = self._rows_to_score(X).copy()
        high, low = self.explain(rows)  # type: ignore[attr-defined]
        parts = high + low
        strongest = np.argsort(np.argsort(-parts, axis=1, kind="stable"), axis=1) < most
        rows[strongest & (parts >= share * parts.sum(axis=1, keepdims=True))] = np.nan
        return self.impute(rows)

    def neighbours(self, row: ArrayLike, distance: float = np.inf) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Known points near a row: those that it leads to in the trees.

        Args:
            row: shape (d,).
            distance: only points at most so far away (Euclidean, over the columns that have a value).

        Returns:
            (points, distances, trees): shape (m, d), (m,), (m,); nearest first, and in how many trees each was met.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
        """
        rows = self._rows_to_score(np.asarray(row, np.float64)[np.newaxis])
        points, counts = np.unique(self._candidates(rows)[:, 0], axis=0, return_counts=True, equal_nan=True)
        distances = np.sqrt(np.nansum((points - rows[0]) ** 2, axis=1))
        order = np.argsort(distances, kind="stable")
        order = order[distances[order] <= distance]
        return points[order], distances[order], counts[order]

    def density(self, X: ArrayLike, dimensions: int = 0) -> Floats:  # noqa: N803
        """How thick known points lie around each row, relative to other rows: share of the points that stay together when the
        row is split off, over the gap that splits it off to the power of `dimensions`.

        Args:
            X: rows, shape (n, d).
            dimensions: of the space that the points fill; default d.

        Returns:
            Shape (n,), float64, above 0.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
        """
        rows = self._rows_to_score(X)
        share, gap = self._measure_kind(rows, _MASS), self._measure_kind(rows, _GAP)
        with np.errstate(over="ignore", under="ignore"):
            found: Floats = (share + 1.0 / self.samples) / (_SMALL + gap ** (dimensions or self.columns))
        return found

    def extrapolate(self, shingle: ArrayLike, steps: int, coverage: float = 0.9) -> tuple[Floats, Floats, Floats]:
        """What is to follow a shingle: each next block of columns is filled in as missing, then the shingle moves on.

        Args:
            shingle: the newest point, shape (d,), d = base columns * `shingle`, oldest block first.
            steps: how many blocks, 1 or more.
            coverage: share of the trees' answers between `low` and `high`.

        Returns:
            (values, low, high), each of shape (steps, base columns), float64. The interval says how far the trees' answers lie
            apart on the way that the medians take; it does not grow by itself with the number of steps.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
            BadParameter: the forest has no shingle, or steps or coverage are out of range.
        """
        if self.shingle < 2 or self.columns % self.shingle:
            raise BadParameter(
                "The forest does not know of a shingle to extrapolate.", hint="Give shingle=...", parameter="shingle"
            )
        if steps < 1 or not 0.0 < coverage < 1.0:
            raise BadParameter("steps must be 1 or more, coverage between 0 and 1.", parameter="steps, coverage")
        base = self.columns // self.shingle
        window = self._rows_to_score(np.asarray(shingle, np.float64)[np.newaxis]).copy()
        answers = np.empty((3, steps, base))
        for step in range(steps):
            window[0, :-base] = window[0, base:].copy()
            window[0, -base:] = np.nan
            newest = self._candidates(window)[:, 0, -base:]
            for i, quantile in enumerate((0.5, (1.0 - coverage) / 2.0, (1.0 + coverage) / 2.0)):
                answers[i, step] = _nan_quantile(newest, quantile)
            window[0, -base:] = answers[0, step]
        return answers[0], answers[1], answers[2]

    def explanation(self, row: ArrayLike, names: list[str]) -> dict[str, dict[str, str]]:
        """The explanation of one row in the shape of Kinesis' RANDOM_CUT_FOREST_WITH_EXPLANATION.

        Args:
            row: shape (d,).
            names: of the columns; of the base columns, where the forest has a shingle.

        Returns:
            {"COLUMN": {"DIRECTION": "HIGH" or "LOW", "STRENGTH": "0.0922", "ATTRIBUTION_SCORE": "0.3792"}}; without DIRECTION
            and STRENGTH where `with_directionality` is off.

        Raises:
            ForestNotFitted: as `score_samples`.
            BadRows: as `score_samples`, or the names are not as many as the columns.
        """
        if len(names) * (self.columns // len(names) if names else 0) != self.columns:
            raise BadRows(f"{len(names)} names do not fit {self.columns} columns.", hint="Give one name per base column.")
        parts = self.explain(np.asarray(row, np.float64)[np.newaxis])  # type: ignore[attr-defined]
        high, low = (part.reshape(-1, len(names)).sum(axis=0) for part in parts)
        found: dict[str, dict[str, str]] = {}
        for name, above, below in zip(names, high, low, strict=True):
            found[name] = {"ATTRIBUTION_SCORE": f"{above + below:.4f}"}
            if self.with_directionality:
                found[name] = {
                    "DIRECTION": "HIGH" if above >= below else "LOW",
                    "STRENGTH": f"{abs(above - below):.4f}",
                } | found[name]
        return found

    def _rows_to_score(self, X: ArrayLike) -> Floats:  # noqa: N803
        raise NotImplementedError


def _nan_quantile(values: NDArray[Any], quantile: float) -> Floats:
    """Quantile along the first axis, linear between order statistics, without NaN; NaN where nothing is left."""
    ordered = np.sort(values, axis=0)
    count = np.isfinite(ordered).sum(axis=0)
    place = np.maximum(count - 1, 0) * quantile
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    first = np.take_along_axis(ordered, below[np.newaxis], 0)[0]
    second = np.take_along_axis(ordered, above[np.newaxis], 0)[0]
    found: Floats = first + (second - first) * (place - below)
    return found
