"""Rows as the scorer takes them in.

Owns the check that turns what a caller gives into float64 of shape (n, d), and the error that says what is wrong with it. Never
changes a value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import BadRows

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def as_rows(X: ArrayLike, columns: int = 0) -> NDArray[np.float64]:  # noqa: N803
    """Rows of shape (n, d), n >= 0, d >= 1, float64; not copied where they are that already.

    Args:
        X: anything that numpy turns into float64.
        columns: d that is asked for; 0 takes any.

    Raises:
        BadRows: not numbers, not two dimensions, or another number of columns.
    """
    try:
        rows = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadRows("The rows are not numbers.", hint="Give an array of shape (n, d); encode text as numbers.") from error
    if rows.ndim != 2:
        raise BadRows(
            "Rows must come as an array of two dimensions.",
            hint="Give shape (n, d); one row is X.reshape(1, -1), one column X.reshape(-1, 1).",
            shape=rows.shape,
        )
    if rows.shape[1] == 0:
        raise BadRows("The rows have no columns.", hint="Give at least one column.", shape=rows.shape)
    if columns and rows.shape[1] != columns:
        raise BadRows(
            f"The rows have {rows.shape[1]} columns where {columns} were fitted.",
            hint="Give the same columns in the same order.",
        )
    return rows


def refuse_infinities(rows: NDArray[np.float64]) -> None:
    """Raise BadRows for the first value that float32 cannot hold; NaN passes."""
    too_large = np.abs(rows) > _FLOAT32_MAX
    if too_large.any():
        row, column = (int(i) for i in np.argwhere(too_large)[0])
        raise BadRows(
            "A value is infinite or does not fit float32.",
            hint="Leave such rows out, put NaN for unknown, or scale the columns first.",
            row=row,
            column=column,
        )
