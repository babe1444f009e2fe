"""Hotspots: regions of a window of rows that are much denser than the rest, as Kinesis' HOTSPOTS finds them.

Owns the search. Never keeps rows. Source: Ester, Kriegel, Sander, Xu, "A density-based algorithm for discovering clusters", KDD
1996 (DBSCAN), by the parameters of Amazon Kinesis' function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import BadParameter
from scorer.rows import as_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hotspot:
    """A dense region.

    Attributes:
        low, high: corners of the box around its points, shape (d,).
        points: how many.
        density: points per unit of volume; a side shorter than the scan radius counts as the radius.
        members: numbers of the rows, ascending.
    """

    low: Floats
    high: Floats
    points: int
    density: float
    members: NDArray[np.int64]


def find_hotspots(
    X: ArrayLike,  # noqa: N803
    *,
    window_size: int = 1000,
    scan_radius: float = 0.2,
    minimum_points: int = 17,
) -> list[Hotspot]:
    """Hotspots among the newest rows.

    Args:
        X: rows in order, shape (n, d), finite; columns of like scale.
        window_size: only so many of the last rows are looked at, 100 to 10,000 (Kinesis: windowSize, up to 1,000).
        scan_radius: how far apart neighbours in a hotspot may be (Euclidean; Kinesis: scanRadius).
        minimum_points: rows in a hotspot at least, and neighbours of a row inside one (minimumNumberOfPointsInAHotspot).

    Returns:
        Densest first.

    Raises:
        BadRows: not numbers of shape (n, d).
        BadParameter: a parameter is out of range, or a value is not finite.
    """
    if not (100 <= window_size <= 10_000 and scan_radius > 0.0 and minimum_points >= 2):
        raise BadParameter("window_size must be 100 to 10,000, scan_radius above 0, minimum_points 2 or more.")
    rows = as_rows(X)
    first = max(0, len(rows) - window_size)
    rows = rows[first:]
    if not np.isfinite(rows).all():
        raise BadParameter("Hotspots need values that are finite.", hint="Impute missing values first.")
    near = [np.flatnonzero(((rows - row) ** 2).sum(axis=1) <= scan_radius**2) for row in rows]
    dense = np.array([len(found) >= minimum_points for found in near], bool)
    label = np.full(len(rows), -1)
    spots: list[Hotspot] = []
    for start in np.flatnonzero(dense):
        if label[start] >= 0:
            continue
        number, queue = len(spots), [int(start)]
        label[start] = number
        while queue:
            at = queue.pop()
            if dense[at]:
                fresh = near[at][label[near[at]] < 0]
                label[fresh] = number
                queue += fresh.tolist()
        spots.append(_describe(rows, np.flatnonzero(label == number), first, scan_radius))
    return sorted(spots, key=lambda spot: -spot.density)


def _describe(rows: Floats, members: NDArray[np.int64], first: int, radius: float) -> Hotspot:
    low, high = rows[members].min(axis=0), rows[members].max(axis=0)
    density = len(members) / float(np.prod(np.maximum(high - low, radius)))
    return Hotspot(low, high, len(members), density, members + first)
