"""Blocks of rows, chunks of trees, threads: how work on a forest is cut up without a trace in the result.

Owns the mapping of one call onto kernel calls. Never decides what is computed.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer import kernels

Floats = NDArray[np.float64]

_BLOCK_VALUES = 98_304  # values of a block of rows: with a tree's boxes it fits the second-level cache
_ROWS_WORTH_THREADS = 32  # starting threads takes about as long as scoring ten rows
_BYTES_WORTH_THREADS = 2**22
_PARTS_PER_THREAD = 12  # of the trees: few enough to cost nothing, and enough that no thread waits long for the last one


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
    def _hand_over_rows(self) -> int:
        """Rows that go to the threads at once: several blocks, but no more than their results by chunk are worth in memory."""
        return self.block_rows * (1 if self.threads == 1 else 16)

    @property
    def _chunks(self) -> int:
        return -(-self.trees // kernels.CHUNK_TREES)

    def _total(self, partial: Floats) -> Floats:
        """Mean over the trees of sums by chunk, always added in the same order; rows are shared by the threads."""
        total = np.empty(partial.shape[1:])

        def add(first: int, last: int) -> None:
            total[first:last] = partial[0, first:last]
            for part in partial[1:]:
                total[first:last] += part[first:last]
            total[first:last] /= self.trees

        threads = self.threads if partial.nbytes >= _BYTES_WORTH_THREADS else 1
        bounds = [i * len(total) // threads for i in range(threads + 1)]
        share([functools.partial(add, *pair) for pair in itertools.pairwise(bounds)], threads)
        return total

    def _run(self, kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
        """Call `kernel(*arguments, first_chunk, last_chunk)` so that every chunk of trees is done once."""
        self._run_blocks(kernel, rows, [arguments])

    def _run_blocks(self, kernel: Callable[..., None], rows: int, blocks: Sequence[tuple[Any, ...]]) -> None:
        """`_run` for the arguments of several blocks with so many rows in all; each chunk takes the blocks in order.

        With many rows, `threads` threads share the chunks. Threads and not processes, because the kernels release the
        interpreter lock and write to shared arrays. Own threads and not numba's, because those abort the process when two
        threads of Python use them at once.
        """
        threads = min(self.threads, self._chunks) if rows >= _ROWS_WORTH_THREADS else 1
        parts = 1 if threads == 1 else min(self._chunks, threads * _PARTS_PER_THREAD)
        bounds = [i * self._chunks // parts for i in range(parts + 1)]

        def work(first: int, last: int) -> None:
            # Without compilation numpy would warn of the wrap-around that the random numbers live on.
            with np.errstate(over="ignore"):
                for arguments in blocks:
                    kernel(*arguments, first, last)

        share([functools.partial(work, *pair) for pair in itertools.pairwise(bounds)], threads)


def share(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """Do every task once, on so many threads, the calling one among them.

    Each thread takes the next task when it is done with one, so that a thread whose core is taken away for a while keeps no
    other waiting. Raises what a task raises.
    """
    left = collections.deque(tasks)

    def work() -> None:
        while True:
            try:
                task = left.popleft()  # atomic
            except IndexError:
                return
            task()

    if threads == 1:
        work()
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()


def pack(rows: Floats) -> NDArray[np.float32]:
    """Rows as the kernels want them: float32, padded with zeros to a multiple of LANES, -0.0 as 0.0."""
    columns = rows.shape[1]
    points = np.zeros((len(rows), -(-columns // kernels.LANES) * kernels.LANES), np.float32)
    points[:, :columns] = rows
    points += np.float32(0.0)
    return points
