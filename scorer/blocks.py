"""Blocks of rows, chunks of trees, threads: how work on a forest is cut up without a trace in the result.

Owns the mapping of one call onto kernel calls. Never decides what is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer import kernels

Floats = NDArray[np.float64]

_BLOCK_VALUES = 98_304  # values of a block of rows: with a tree's boxes it fits the second-level cache
_ROWS_WORTH_THREADS = 32  # starting threads takes about as long as scoring ten rows


class Blocks:
    """The part of the forest that calls kernels."""

    trees: int
    threads: int
    _tree_records: NDArray[Any]
    _nodes: NDArray[Any]
    _corners: NDArray[np.float32]

    def _arrays(self) -> tuple[Any, Any, Any]:
        return self._tree_records, self._nodes, self._corners

    @property
    def block_rows(self) -> int:
        """Rows that go to the kernels in one call."""
        return max(1, _BLOCK_VALUES // int(self._corners.shape[2]))

    @property
    def _chunks(self) -> int:
        return -(-self.trees // kernels.CHUNK_TREES)

    def _total(self, partial: Floats) -> Floats:
        """Mean over the trees of sums by chunk, always added in the same order."""
        total = partial[0].copy()
        for part in partial[1:]:
            total += part
        mean: Floats = total / self.trees
        return mean

    def _run(self, kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
        """Call `kernel(*arguments, first_chunk, last_chunk)` so that every chunk of trees is done once.

        With many rows, `threads` threads share the chunks. Threads and not processes, because the kernels release the
        interpreter lock and write to shared arrays. Own threads and not numba's, because those abort the process when two
        threads of Python use them at once.
        """
        threads = min(self.threads, self._chunks) if rows >= _ROWS_WORTH_THREADS else 1
        bounds = [i * self._chunks // threads for i in range(threads + 1)]

        def work(first: int, last: int) -> None:
            # Without compilation numpy would warn of the wrap-around that the random numbers live on.
            with np.errstate(over="ignore"):
                kernel(*arguments, first, last)

        if threads == 1:
            work(0, self._chunks)
            return
        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(work, *pair) for pair in itertools.pairwise(bounds)]:
                future.result()


def pack(rows: Floats) -> NDArray[np.float32]:
    """Rows as the kernels want them: float32, padded with zeros to a multiple of LANES, -0.0 as 0.0."""
    columns = rows.shape[1]
    points = np.zeros((len(rows), -(-columns // kernels.LANES) * kernels.LANES), np.float32)
    points[:, :columns] = rows
    points += np.float32(0.0)
    return points
