"""The random cut forest as a class: parameters, input checks, blocks of rows, threads.

Owns the arrays that `scorer.kernels` works on and everything that must be right before compiled code runs. Never scales columns
(`scorer.features` does), never sets a threshold (`scorer.threshold`), never reads or writes a file or a database.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer import kernels
from scorer.blocks import Blocks, pack
from scorer.checkpoint import Checkpoint
from scorer.errors import BadParameter, BadRows, ForestNotFitted
from scorer.estimates import Estimates
from scorer.gate import Gate
from scorer.learning import Learning, Watcher, check_entities
from scorer.parameters import POLICIES, check_positive, check_share, check_whole, translate
from scorer.rows import as_rows, refuse_infinities

Floats = NDArray[np.float64]

_PRIMING_ROWS = 4096  # training rows whose scores close the gate of a fitted forest


class RandomCutForest(Estimates, Learning, Checkpoint, Blocks):
    """Robust random cut forest: scores how much a row stands apart from the rows that the forest has learnt.

    A **higher** score is more anomalous: about 1 is ordinary, and it never exceeds log2(1 + samples). (scikit-learn's
    IsolationForest has it the other way round; `scorer.outlier` is an estimator in scikit-learn's sense.) Coordinates that are
    NaN count as no evidence. Values are kept as float32, so columns of very different magnitude, or far from zero, should be
    scaled first (`scorer.features.RobustScaler`).

    Results depend on the rows, their order and the seed only: not on how the rows are cut into calls, not on `threads`, and
    not on whether the forest was saved and restored in between. Several threads of a program may score with one forest at
    once, but not while it learns.

    Args:
        trees: number of trees, 1 to 1,000.
        samples: rows that each tree keeps, 10 to 2,048.
        time_decay: rows of an entity after which a kept row's weight has fallen to 1/e in `update`, 1 to 2^31 - 1. `fit`
            weighs all rows alike. May be changed at any time.
        seed: 0 to 2^63 - 1.
        threads: threads that share the trees, 1 to 64.
        policy: what `update` learns: `gated` (rows that look ordinary, see `scorer.gate`), `streaming` (every row), `frozen`
        (none). gate_sigma: deviations above the mean of ordinary scores from which on a gated forest refuses a row.
        initial_accept_fraction: share of `samples` that fills with every row of a new stream; the rest fills more and more
            slowly, so that the first rows are not all that the forest knows. Above 0 and up to 1.
        output_after: rows of a new stream that score 0, because too little is known; default samples / 4.
        shingle: rows of an entity that make one point, 1 to 128; only told to whoever asks (`scorer.shingle` makes the points).
        columns: columns of the rows; default: as many as the first rows have.
        with_directionality: whether `explanation` says HIGH or LOW.
        aliases: the same under the names of Kinesis (numberOfTrees, subSampleSize, timeDecay, shingleSize, withDirectionality),
            SageMaker (num_trees, num_samples_per_tree, feature_dim) and the AWS library (sampleSize, outputAfter, ...).

    Raises:
        BadParameter: a parameter is unknown, of the wrong type or outside its range.

    Source: Guha, Mishra, Roy, Schrijvers, ICML 2016; ranges and defaults are those of Amazon SageMaker and Kinesis.
    """

    def __init__(self, **parameters: Any) -> None:
        given = translate(parameters)
        whole = {"trees": 100, "samples": 256, "time_decay": 100_000, "seed": 0, "threads": 1, "shingle": 1}
        numbers = {name: check_whole(name, given.get(name, default)) for name, default in whole.items()}
        self.trees, self.samples, self._time_decay = numbers["trees"], numbers["samples"], numbers["time_decay"]
        self.seed, self.threads, self.shingle = numbers["seed"], numbers["threads"], numbers["shingle"]
        self.output_after = check_whole("output_after", given.get("output_after") or max(1, self.samples // 4))
        self.initial_accept_fraction = check_share("initial_accept_fraction", given.get("initial_accept_fraction", 1.0))
        self.with_directionality = bool(given.get("with_directionality", True))
        self.policy = given.get("policy", "gated")
        if self.policy not in POLICIES:
            raise BadParameter(
                f"Unknown policy {self.policy!r}.", hint=f"Give one of {', '.join(POLICIES)}.", parameter="policy"
            )
        self.gate = Gate(check_positive("gate_sigma", given.get("gate_sigma", 2.0)), 8 * self.samples, 4 * self.samples)
        self._wanted_columns = check_whole("columns", given["columns"]) if "columns" in given else 0
        self._clear()

    @property
    def time_decay(self) -> int:
        """Rows of an entity after which a row's weight has fallen to 1/e; a new value counts from the next row on."""
        return self._time_decay

    @time_decay.setter
    def time_decay(self, value: int) -> None:
        self._time_decay = check_whole("time_decay", value)

    # --- state -------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self.columns = 0
        self.rows_seen = 0
        self.age = 0.0
        self._entities: dict[str, None] = {}
        # Rows that passed the gate and wait for the end of their window: packed points, their numbers and ages.
        self._waiting: list[tuple[NDArray[np.float32], int, float]] = []

    def _allocate(self, columns: int) -> None:
        """Make an empty forest for rows of this many columns."""
        if not 1 <= columns <= 65_535:
            raise BadRows("The number of columns is out of range.", hint="Give 1 to 65,535 columns.", columns=columns)
        if self._wanted_columns and columns != self._wanted_columns:
            raise BadRows(f"The rows have {columns} columns where {self._wanted_columns} were announced.")
        self._clear()
        width = -(-columns // kernels.LANES) * kernels.LANES
        self.columns = columns
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

    def fit(self, X: ArrayLike, entities: Sequence[Hashable] | None = None) -> RandomCutForest:  # noqa: N803
        """Forget everything and learn a batch: each tree gets a uniform sample of the rows without replacement.

        Args:
            X: rows, shape (n, d), n >= 1; anything that numpy turns into float64. NaN is allowed, infinities are not.
            entities: whose row each is, n values that differ as text; they set the pace of `time_decay` later.

        Raises:
            BadRows: wrong shape or type, an infinity, or a value beyond float32.
        """
        points = self._fit(X, entities)
        if self.policy == "gated":
            step = -(-len(points) // _PRIMING_ROWS)
            self.gate.prime(self._score_training(points[::step], np.arange(0, len(points), step)))
        return self

    def _fit(self, X: ArrayLike, entities: Sequence[Hashable] | None) -> NDArray[np.float32]:  # noqa: N803
        rows = as_rows(X)
        refuse_infinities(rows)
        if not len(rows):
            raise BadRows("There is nothing to fit: no rows.", hint="Give at least one row.")
        points = pack(rows)
        counts = None if entities is None else check_entities(entities, len(rows))
        self._allocate(rows.shape[1])
        if counts is not None:
            self._entities = dict.fromkeys(counts)
        # One block: a tree samples from all rows at once. float32, so half the size of the input.
        self._run(kernels.fit_trees, len(points), *self._arrays(), self._slots, points, np.uint64(self.seed))
        self.rows_seen = len(rows)
        return points

    def fit_score(self, X: ArrayLike, entities: Sequence[Hashable] | None = None) -> Floats:  # noqa: N803
        """Fit, and score the training rows as rows that the forest has not seen: the scores to set a threshold on.

        A tree that sampled a row would call it known and score it low, which would put the threshold too low. Such a
        tree scores the row as if exactly this row had been taken out of it first (leave one out); all other trees
        score it as it is.

        Args:
            X: rows, shape (n, d), n >= 1.
            entities: as `fit`.

        Returns:
            Scores, shape (n,), float64. A single row scores 0: nothing is left to compare it with.

        Raises:
            BadRows: as `fit`.
        """
        points = self._fit(X, entities)
        scores = self._score_training(points, np.arange(len(points)))
        if self.policy == "gated":
            self.gate.prime(scores[:: -(-len(points) // _PRIMING_ROWS)])
        return scores

    def update(self, X: ArrayLike, entities: Sequence[Hashable] | None = None) -> Floats:  # noqa: N803
        """Score rows one after the other, and learn after its score each row that the policy lets the forest learn.

        The first rows of a forest that was never fitted score 0, until `output_after` have been seen. `streaming`: each row is
        scored by the forest that learnt all rows before it. `gated`: rows come in windows of 64, counted from the first row
        ever; the rows of a window are scored by the forest as it was before the window, and those that pass are learnt at its
        end.

        Args:
            X: rows in order, shape (n, d); d as before, or any for the first rows.
            entities: whose row each is; a row ages all others by 1 / (time_decay * entities seen so far).

        Returns:
            Scores, shape (n,), float64.

        Raises:
            BadRows: as `fit`.
        """
        return self._learn(X, entities, self.policy, with_scores=True)[0]

    def update_watched(self, X: ArrayLike, watcher: Watcher, entities: Sequence[Hashable] | None = None) -> NDArray[np.bool_]:  # noqa: N803
        """`update` that shows each row's score to `watcher` before the row is learnt.

        What the watcher sees does not depend on how rows are cut into calls. Where a streaming forest has learnt many rows at
        once and one of them is to be explained, it goes back and learns them again up to there.

        Returns:
            Which rows the policy lets the forest learn, shape (n,), bool; a gated forest learns them when their window ends.

        Raises:
            BadRows: as `fit`.
        """
        return self._learn(X, entities, self.policy, with_scores=True, watcher=watcher)[1]

    def partial_fit(self, X: ArrayLike, entities: Sequence[Hashable] | None = None) -> RandomCutForest:  # noqa: N803
        """Learn every row, in order, whatever the policy, without scoring."""
        self._learn(X, entities, "streaming", with_scores=False)
        return self

    def learn_one(self, row: ArrayLike) -> float:
        """`update` with one row, shape (d,); returns its score."""
        return float(self.update(np.asarray(row, np.float64)[np.newaxis])[0])

    # --- scoring -----------------------------------------------------------------------------------

    def score_samples(self, X: ArrayLike, measure: str = "score") -> Floats:  # noqa: N803
        """Score rows without learning them.

        A row that equals one that a tree sampled scores lower there than an unseen one would; see `fit_score` for
        training rows.

        Args:
            X: rows, shape (n, d).
            measure: `score`, or one of `scorer.estimates.MEASURES`.

        Returns:
            Scores, shape (n,), float64, higher is more anomalous (of `depth`: lower), in [0, log2(1 + samples)].

        Raises:
            ForestNotFitted: the forest has seen no row.
            BadRows: as `fit`, or a number of columns that differs from the forest's.
            BadParameter: no such measure.
        """
        rows = self._rows_to_score(X)
        if measure != "score":
            return self._measure(rows, measure)
        scores = np.empty(len(rows))
        for start in range(0, len(rows), self._hand_over_rows):
            points = pack(rows[start : start + self._hand_over_rows])
            scores[start : start + len(points)] = self._score(points)
        return scores

    def _score(self, points: NDArray[np.float32]) -> Floats:
        blocks = [points[first : first + self.block_rows] for first in range(0, len(points), self.block_rows)]
        partials = [np.empty((self._chunks, len(block))) for block in blocks]
        given = [(*self._arrays(), *pair) for pair in zip(blocks, partials, strict=True)]
        self._run_blocks(kernels.score_rows, len(points), given)
        return np.concatenate([self._total(partial) for partial in partials]) if partials else np.empty(0)

    def _score_training(self, points: NDArray[np.float32], numbers: NDArray[np.int64]) -> Floats:
        scores = np.empty(len(points))
        for start in range(0, len(points), self.block_rows):
            block = np.ascontiguousarray(points[start : start + self.block_rows])
            partial = np.empty((self._chunks, len(block)))
            given = *self._arrays(), self._slots, block, numbers[start : start + len(block)]
            self._run(kernels.score_training_rows, len(block), *given, partial)
            scores[start : start + len(block)] = self._total(partial)
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
        size = max(1, self.block_rows // 4)
        for start in range(0, len(rows), size):
            points = pack(rows[start : start + size])
            partial = np.empty((self._chunks, len(points), 2, points.shape[1]))
            scores = np.empty((self._chunks, len(points)))
            self._run(kernels.explain_rows, len(points), *self._arrays(), points, self.columns, partial, scores)
            total = self._total(partial)
            # Gaps are added up in float32 for the score, one by one in float64 for its parts: what rounding leaves is spread.
            total *= _share_out(self._total(scores), total.sum(axis=(1, 2)))[:, np.newaxis, np.newaxis]
            high[start : start + len(points)] = total[:, 0, : self.columns]
            low[start : start + len(points)] = total[:, 1, : self.columns]
        return high, low

    def _rows_to_score(self, X: ArrayLike) -> Floats:  # noqa: N803
        if not self.rows_seen and not (self.columns and self._tree_records["size"].any()):
            raise ForestNotFitted("The forest has seen no rows yet.", hint="Call fit or update first.")
        rows = as_rows(X, self.columns)
        refuse_infinities(rows)
        return rows


def _share_out(scores: Floats, sums: Floats) -> Floats:
    """What the parts are to be multiplied by to add up to the scores; 1 where there are none."""
    return np.divide(scores, sums, out=np.ones(len(scores)), where=sums > 0.0)
