"""The random cut forest as a class: parameters, input checks, blocks of rows, threads.

Owns the arrays that `scorer.kernels` works on and everything that must be right before compiled code runs. Never scales columns
(`scorer.features` does), never sets a threshold (`scorer.threshold`), never reads or writes a file or a database.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer import kernels, state
from scorer.errors import BadParameter, BadRows, CheckpointRefused, ForestNotFitted
from scorer.rows import as_rows, refuse_infinities

Floats = NDArray[np.float64]

_RANGES = {
    "trees": (1, 1000),
    "samples": (10, 2048),
    "time_decay": (1, 2**31 - 1),
    "seed": (0, 2**63 - 1),
    "threads": (1, 64),
}
_HEADER = {
    "trees": int,
    "samples": int,
    "time_decay": int,
    "seed": int,
    "columns": int,
    "rows_seen": int,
    "decay_offset": float,
}
_MAX_COLUMNS = 65_535  # cut_dim is 16 bits wide
_BLOCK_VALUES = 98_304  # values of a block of rows: with a tree's boxes it fits the second-level cache
_ROWS_WORTH_THREADS = 32  # starting threads takes about as long as scoring ten rows


class RandomCutForest:
    """Robust random cut forest: scores how much a row stands apart from the rows that the forest was fitted to.

    A **higher** score is more anomalous: about 1 is ordinary, and it never exceeds log2(1 + samples). (scikit-learn's
    IsolationForest has it the other way round.) Coordinates that are NaN count as no evidence. Values are kept as
    float32, so columns of very different magnitude, or far from zero, should be scaled first
    (`scorer.features.RobustScaler`).

    Results depend on the rows, their order and the seed only: not on how the rows are cut into calls, and not on
    `threads`. Several threads of a program may score with one forest at once, but not while it learns; `fit_score` learns.

    Args:
        trees: number of trees, 1 to 1,000.
        samples: rows that each tree keeps, 10 to 2,048.
        time_decay: rows after which a kept row's weight has fallen to 1/e in `update`, 1 to 2^31 - 1. `fit` weighs
        all rows alike.
        seed: 0 to 2^63 - 1.
        threads: threads that share the trees, 1 to 64.

    Raises:
        BadParameter: a parameter is of the wrong type or outside its range.

    Source: Guha, Mishra, Roy, Schrijvers, ICML 2016; ranges and defaults are those of Amazon SageMaker and Kinesis.
    """

    def __init__(
        self, *, trees: int = 100, samples: int = 256, time_decay: int = 100_000, seed: int = 0, threads: int = 1
    ) -> None:
        self.trees = _check_parameter("trees", trees)
        self.samples = _check_parameter("samples", samples)
        self.time_decay = _check_parameter("time_decay", time_decay)
        self.seed = _check_parameter("seed", seed)
        self.threads = _check_parameter("threads", threads)
        self.columns = 0
        self.rows_seen = 0
        self.decay_offset = 0.0

    # --- state -------------------------------------------------------------------------------------

    def _allocate(self, columns: int) -> None:
        """Make an empty forest for rows of this many columns."""
        if not 1 <= columns <= _MAX_COLUMNS:
            raise BadRows("The number of columns is out of range.", hint=f"Give 1 to {_MAX_COLUMNS} columns.", columns=columns)
        width = -(-columns // kernels.LANES) * kernels.LANES
        self.columns = columns
        self.rows_seen = 0
        self.decay_offset = 0.0
        self._tree_records = np.zeros(self.trees, kernels.TREE)
        self._nodes = np.zeros((self.trees, 2 * self.samples - 1), kernels.NODE)
        self._corners = np.zeros((self.trees, 3 * self.samples - 2, width), np.float32)
        self._slots = np.zeros((self.trees, self.samples), kernels.SLOT)
        kernels.clear_trees(self._tree_records, self._nodes)

    @property
    def state_bytes(self) -> int:
        """Memory that the forest's arrays take, in bytes; 0 before the first row."""
        if not self.columns:
            return 0
        return self._tree_records.nbytes + self._nodes.nbytes + self._corners.nbytes + self._slots.nbytes

    # --- learning ----------------------------------------------------------------------------------

    def fit(self, X: ArrayLike) -> RandomCutForest:  # noqa: N803
        """Forget everything and learn a batch: each tree gets a uniform sample of the rows without replacement.

        Args:
            X: rows, shape (n, d), n >= 1; anything that numpy turns into float64. NaN is allowed, infinities are not.

        Raises:
            BadRows: wrong shape or type, an infinity, or a value beyond float32.
        """
        rows = as_rows(X)
        refuse_infinities(rows)
        if not len(rows):
            raise BadRows("There is nothing to fit: no rows.", hint="Give at least one row.")
        points = _pack(rows)
        self._allocate(rows.shape[1])
        # One block: a tree samples from all rows at once. float32, so half the size of the input.
        self._run(kernels.fit_trees, len(points), *self._arrays(), self._slots, points, np.uint64(self.seed))
        self.rows_seen = len(rows)
        # Age counts from the end of the batch: row r has age (r - rows_seen) / time_decay.
        self.decay_offset = -self.rows_seen / self.time_decay
        return self

    def update(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Score rows one after the other and learn each after its score.

        The first rows of a forest that was never fitted score 0, until a quarter of `samples` has been seen.

        Args:
            X: rows in order, shape (n, d); d as before, or any for the first rows.

        Returns:
            Scores, shape (n,), float64: of each row by the forest that had seen all rows before it.

        Raises:
            BadRows: as `fit`.
        """
        return self._learn(X, with_scores=True)

    def partial_fit(self, X: ArrayLike) -> RandomCutForest:  # noqa: N803
        """Learn rows in order, as `update`, without scoring them."""
        self._learn(X, with_scores=False)
        return self

    def _learn(self, X: ArrayLike, *, with_scores: bool) -> Floats:  # noqa: N803
        rows = as_rows(X, self.columns)
        refuse_infinities(rows)  # before the first row is learnt, so that all are or none is
        if not self.columns:
            self._allocate(rows.shape[1])
        scores = np.zeros(len(rows))
        for start, points, partial in self._blocks(rows):
            self._run(
                kernels.learn_rows,
                len(points),
                *self._arrays(),
                self._slots,
                points,
                self.rows_seen + np.arange(len(points)),
                (self.rows_seen + np.arange(len(points))) / self.time_decay + self.decay_offset,
                np.uint64(self.seed),
                1.0,
                with_scores,
                partial,
            )
            if with_scores:
                scores[start : start + len(points)] = self._total(partial)
                silent = max(0, max(1, self.samples // 4) - self.rows_seen)
                scores[start : start + min(silent, len(points))] = 0.0
            self.rows_seen += len(points)
        return scores

    # --- scoring -----------------------------------------------------------------------------------

    def score_samples(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Score rows without learning them.

        A row that equals one that a tree sampled scores lower there than an unseen one would; see `fit_score` for
        training rows.

        Args:
            X: rows, shape (n, d).

        Returns:
            Scores, shape (n,), float64, higher is more anomalous, in [0, log2(1 + samples)].

        Raises:
            ForestNotFitted: the forest has seen no row.
            BadRows: as `fit`, or a number of columns that differs from the forest's.
        """
        rows = self._rows_to_score(X)
        scores = np.empty(len(rows))
        for start, points, partial in self._blocks(rows):
            self._run(kernels.score_rows, len(points), *self._arrays(), points, partial)
            scores[start : start + len(points)] = self._total(partial)
        return scores

    def fit_score(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Fit, and score the training rows as rows that the forest has not seen: the scores to set a threshold on.

        A tree that sampled a row would call it known and score it low, which would put the threshold too low. Such a
        tree scores the row as if exactly this row had been taken out of it first (leave one out); all other trees
        score it as it is.

        Args:
            X: rows, shape (n, d), n >= 1.

        Returns:
            Scores, shape (n,), float64. A single row scores 0: nothing is left to compare it with.

        Raises:
            BadRows: as `fit`.
        """
        rows = as_rows(X)
        self.fit(rows)
        scores = np.empty(len(rows))
        for start, points, partial in self._blocks(rows):
            self._run(kernels.score_training_rows, len(points), *self._arrays(), self._slots, points, start, partial)
            scores[start : start + len(points)] = self._total(partial)
        return scores

    def explain(self, X: ArrayLike) -> tuple[Floats, Floats]:  # noqa: N803
        """Split the score of each row over its columns and over the two directions.

        Args:
            X: rows, shape (n, d).

        Returns:
            (high, low), each of shape (n, d), float64 and not negative: the part of the score that is owed to the
            column being above, and below, what the forest knows. The sum over both is the score of the row to 1e-9.

        Raises:
            ForestNotFitted, BadRows: as `score_samples`.
        """
        rows = self._rows_to_score(X)
        high, low = np.empty(rows.shape), np.empty(rows.shape)
        width = self._corners.shape[2]
        for start, points, partial in self._blocks(rows, (2, width), shrink=8):
            self._run(kernels.explain_rows, len(points), *self._arrays(), points, self.columns, partial)
            total = self._total(partial)
            high[start : start + len(points)] = total[:, 0, : self.columns]
            low[start : start + len(points)] = total[:, 1, : self.columns]
        return high, low

    # --- checkpoint --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The forest as a checkpoint: whatever it does next, the restored one does the same, bit for bit.

        Boxes are left out, because they follow from the points. `threads` is no part of it.

        Raises:
            ForestNotFitted: the forest has seen no row.
        """
        if not self.columns:
            raise ForestNotFitted("An empty forest has no state to save.", hint="Call fit or update first.")
        header = {name: getattr(self, name) for name in _HEADER}
        first_point = 2 * self.samples - 2
        arrays = {
            "trees": self._tree_records,
            "nodes": self._nodes,
            "slots": self._slots,
            "points": self._corners[:, first_point:, : self.columns],
        }
        return state.pack(header, arrays)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int = 1) -> RandomCutForest:
        """The forest that `to_bytes` saved.

        Raises:
            CheckpointRefused: no checkpoint, a damaged one, one of another version, or one that does not hold a forest.
        """
        header, arrays = state.unpack(data)
        if header.keys() != _HEADER.keys() or any(type(header[name]) is not kind for name, kind in _HEADER.items()):
            raise CheckpointRefused("The header of the checkpoint is not that of a forest.", fields=sorted(header))
        try:
            forest = cls(**{name: header[name] for name in _RANGES if name != "threads"}, threads=threads)
            forest._allocate(header["columns"])
        except (BadParameter, BadRows) as error:
            raise CheckpointRefused(f"The checkpoint holds an impossible parameter: {error.message}") from error
        forest.rows_seen, forest.decay_offset = header["rows_seen"], header["decay_offset"]
        points = forest._corners[:, 2 * forest.samples - 2 :, : forest.columns]
        targets = {"trees": forest._tree_records, "nodes": forest._nodes, "slots": forest._slots, "points": points}
        found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        wanted = {name: (array.dtype, array.shape) for name, array in targets.items()}
        if found != wanted:
            raise CheckpointRefused("The arrays of the checkpoint do not fit its header.", found=found, wanted=wanted)
        for name, target in targets.items():
            target[...] = arrays[name]
        forest._check_links()
        kernels.rebuild_trees(*forest._arrays())
        return forest

    def _check_links(self) -> None:
        """Refuse numbers that would lead compiled code outside its arrays."""
        nodes, slots, trees, leaves = self._nodes, self._slots, self._tree_records, 2 * self.samples - 1
        links = [nodes[name] for name in ("left", "right", "parent")] + [trees["root"], trees["free_node"], trees["free_leaf"]]
        inside = all(((link >= kernels.NONE) & (link < leaves)).all() for link in [*links, slots["leaf"]])
        sizes = ((trees["size"] >= 0) & (trees["size"] <= self.samples)).all()
        if not (inside and sizes and (nodes["cut_dim"] < self.columns).all()):
            raise CheckpointRefused("The checkpoint holds links that lead outside the forest.")

    # --- blocks, chunks and threads ----------------------------------------------------------------

    def _arrays(self) -> tuple[Any, Any, Any]:
        return self._tree_records, self._nodes, self._corners

    def _rows_to_score(self, X: ArrayLike) -> Floats:  # noqa: N803
        if not self.rows_seen:
            raise ForestNotFitted("The forest has seen no rows yet.", hint="Call fit or update first.")
        rows = as_rows(X, self.columns)
        refuse_infinities(rows)
        return rows

    @property
    def _chunks(self) -> int:
        return -(-self.trees // kernels.CHUNK_TREES)

    def _blocks(
        self, rows: Floats, shape: tuple[int, ...] = (), shrink: int = 1
    ) -> Iterator[tuple[int, NDArray[np.float32], Floats]]:
        """Cut rows into blocks of (first row, packed points, output with one row per chunk)."""
        size = max(1, _BLOCK_VALUES // (self._corners.shape[2] * shrink))
        for start in range(0, len(rows), size):
            points = _pack(rows[start : start + size])
            yield start, points, np.empty((self._chunks, len(points), *shape))

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


def _check_parameter(name: str, value: object) -> int:
    low, high = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadParameter(f"{name} must be a whole number, not {value!r}.", hint=f"Give {low} to {high}.", parameter=name)
    if not low <= value <= high:
        raise BadParameter(f"{name} is out of range: {value}.", hint=f"Give {low} to {high}.", parameter=name)
    return int(value)


def _pack(rows: Floats) -> NDArray[np.float32]:
    """Rows as the kernels want them: float32, padded with zeros to a multiple of LANES, -0.0 as 0.0."""
    columns = rows.shape[1]
    points = np.zeros((len(rows), -(-columns // kernels.LANES) * kernels.LANES), np.float32)
    points[:, :columns] = rows
    points += np.float32(0.0)
    return points
