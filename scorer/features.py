"""Scaling of columns before they reach a forest.

Owns the centre and scale of each column, learnt from training rows and then fixed. Never drops a column, never fills
in a value, never mixes rows.

Rules: NaN stays NaN ("no evidence"). A column that never varied keeps its place, so that its first change shows. An
infinity is a value beyond the largest: it becomes +clip or -clip. A column without a single finite training value
becomes NaN throughout: there is nothing to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import BadParameter, BadRows
from scorer.rows import as_rows

Floats = NDArray[np.float64]

# Spread below this share of the largest magnitude is rounding, not variation: twice the resolution of the float32
# that sensors send.
_RESOLUTION = 2.0**-22
# A constant column is given this share of its magnitude as scale: a change of one per cent counts like a change by
# one deviation.
_CONSTANT_SHARE = 0.01


@dataclass(frozen=True)
class RobustScaler:
    """(x - center) / scale, clipped: center is the median, scale a robust standard deviation.

    Attributes:
        center: shape (d,), float64, read-only; NaN for a column without training values.
        scale: shape (d,), float64, read-only, > 0.
        clip: bound on the magnitude of a scaled value.
    """

    center: Floats
    scale: Floats
    clip: float = 100.0

    def __post_init__(self) -> None:
        for name in ("center", "scale"):
            values = np.array(getattr(self, name), np.float64)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if self.center.ndim != 1 or self.center.shape != self.scale.shape:
            raise BadParameter("center and scale must have one value per column.", parameter="center, scale")
        if not (np.isfinite(self.scale) & (self.scale > 0.0)).all() or np.isinf(self.center).any():
            raise BadParameter("A scale must be finite and above 0, a center finite or NaN.", parameter="center, scale")
        if not 1.0 <= self.clip <= 1e30:
            raise BadParameter(f"clip is out of range: {self.clip!r}.", hint="Give 1 to 1e30.", parameter="clip")

    @classmethod
    def fit(cls, X: ArrayLike, *, clip: float = 100.0) -> RobustScaler:  # noqa: N803
        """Learn center and scale of each column.

        The scale is the first of these that exceeds the resolution of the column: 1.4826 MAD, IQR / 1.349 (both
        estimate the standard deviation of a normal distribution), the standard deviation; for a constant column 1 %
        of its magnitude, or 1 if it is 0.

        Args:
            X: training rows, shape (n, d), n >= 1. NaN and infinities are left out of the estimates.
            clip: bound on the magnitude of a scaled value, 1 to 1e30.

        Raises:
            BadRows: not an array of numbers of shape (n, d) with n, d >= 1.
        """
        rows = as_rows(X)
        if not len(rows):
            raise BadRows("There is nothing to fit: no rows.", hint="Give at least one row.")
        center, scale = np.full(rows.shape[1], np.nan), np.ones(rows.shape[1])
        for i, column in enumerate(rows.T):
            values = column[np.isfinite(column)]
            if values.size:
                center[i], scale[i] = _center_and_scale(values)
        return cls(center, scale, clip)

    def transform(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Scaled rows, shape (n, d), float64: NaN or within [-clip, clip].

        Raises:
            BadRows: not an array of numbers of shape (n, d), or another number of columns.
        """
        rows = as_rows(X, self.center.size)
        with np.errstate(over="ignore"):  # a difference or quotient beyond float64 is clipped like any other
            scaled = (rows - self.center) / self.scale
        return np.clip(scaled, -self.clip, self.clip)

    def inverse_transform(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Rows in the units of the columns again; what was clipped stays clipped."""
        rows = as_rows(X, self.center.size)
        return rows * self.scale + self.center

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: a center of NaN is None."""
        center = [None if np.isnan(value) else float(value) for value in self.center]
        return {"center": center, "scale": self.scale.tolist(), "clip": self.clip}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobustScaler:
        """The inverse of `to_dict`."""
        center = [np.nan if value is None else value for value in values["center"]]
        return cls(np.array(center, np.float64), np.array(values["scale"], np.float64), values["clip"])


def _center_and_scale(values: Floats) -> tuple[float, float]:
    """Median and robust standard deviation of finite values, shape (n,), n >= 1."""
    # Halved, so that differences of the largest float64 values stay finite.
    half = values / 2.0
    middle = float(np.median(half))
    magnitude = float(np.abs(half).max())
    low, high = np.quantile(half, [0.25, 0.75])
    unit = magnitude or 1.0
    spreads = (
        1.4826 * float(np.median(np.abs(half - middle))),
        float(high - low) / 1.349,
        float((half / unit).std()) * unit,
    )
    for spread in spreads:
        if spread > _RESOLUTION * magnitude:
            return 2.0 * middle, min(2.0 * spread, float(np.finfo(np.float64).max))
    return 2.0 * middle, _CONSTANT_SHARE * 2.0 * magnitude or 1.0
