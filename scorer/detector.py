"""One model at work on a stream of rows of many entities: from raw values to scores, grades and explanations.

Owns the order of the stages and their common checkpoint. Never reads or writes a file or a database, never decides what an
incident is.

    raw rows -> baseline of the entity -> scale -> shingle -> forest (score, then learn) -> threshold -> dead bands, direction

How a service uses it:

    detector = Detector(parameters, columns=24)              # refuses what it does not know; PARAMETERS has all names
    training_scores = detector.fit(rows, entities, order)    # frozen: needed; streaming, gated: if there is a history
    found = detector.process(rows, entities, order)          # any number of rows, as they arrive
    checkpoint = detector.to_bytes()                         # commit with the rows and the watermark
    detector = Detector.from_bytes(checkpoint, threads=2)    # goes on bit for bit, after whichever row
    found = detector.rescore(rows, entities, order)          # updated or late rows, and those around them; learns nothing

What `process` finds does not depend on how rows are cut into calls, on threads, nor on checkpoints in between, to the bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer import state
from scorer.baseline import Baseline
from scorer.errors import BadParameter, BadRows, CheckpointRefused, ForestNotFitted
from scorer.features import RobustScaler
from scorer.findings import Findings, Points, Watch, gather
from scorer.forest import RandomCutForest
from scorer.learning import check_entities
from scorer.parameters import DETECTOR_NAMES, check_positive, check_whole, translate
from scorer.rows import as_rows, refuse_infinities
from scorer.rule import Rule
from scorer.shingle import Shingler, as_order, fold, rebuild
from scorer.suppress import Suppression

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Purpose = Literal["fit", "stream", "again"]  # the whole history, in any order; rows as they arrive; rows that were seen before

_BANDS = {
    "ignore_above": "above",
    "ignore_below": "below",
    "ignore_above_share": "above_share",
    "ignore_below_share": "below_share",
    "direction": "direction",
}
_LEAST_SHARE, _MOST_COLUMNS = 0.1, 5  # of the score, and so many, to be given an expected value


class Detector:
    """A forest with everything around it that turns raw rows into anomalies. Modified in place by `fit` and `process`.

    Args:
        parameters: names and values. Those of `RandomCutForest` (trees, samples, time_decay, seed, policy, gate_sigma, shingle,
            output_after, initial_accept_fraction, and their names in other systems), and
            scale: `robust` (needs `fit`) or `none`; default robust.
            baseline_rows: first rows of an entity that make the level which is taken off its rows, 0 (default) for none.
            threshold, threshold_value: of `scorer.rule`; default sigma with 3.
            anomaly_rate: of the adaptive threshold, default 0.01.
            ignore_above, ignore_below, ignore_above_share, ignore_below_share: dead bands, see `scorer.suppress`; default 0.
            direction: `both` (default), `high` or `low`: anomalies that are wanted.
        columns: base columns of the rows.
        threads: threads that share the trees, default 1; no part of the results.

    Attributes:
        forest, rule, scaler, baseline, shingler, suppression: the stages; None where there is none.

    Raises:
        BadParameter: a name is unknown, or a value out of range.
    """

    def __init__(self, parameters: Mapping[str, Any], columns: int, *, threads: int | None = None) -> None:
        given = translate(parameters, also=DETECTOR_NAMES)
        threads = given.pop("threads", 1) if threads is None else threads
        self.parameters = dict(given)
        self.columns = check_whole("columns", columns)
        own = {name: given.pop(name) for name in DETECTOR_NAMES if name in given}
        if given.pop("columns", columns) != columns:
            raise BadParameter(f"There are {columns} columns, and the parameters say otherwise.", parameter="columns")
        self.forest = RandomCutForest(**given, threads=threads)
        self.scale = own.pop("scale", "robust")
        if self.scale not in ("robust", "none"):
            raise BadParameter(f"Unknown scale {self.scale!r}.", hint="Give robust or none.", parameter="scale")
        self.scaler: RobustScaler | None = None
        baseline_rows = own.pop("baseline_rows", 0)
        self.baseline = Baseline(baseline_rows) if baseline_rows != 0 else None
        self.shingler = Shingler(self.forest.shingle) if self.forest.shingle > 1 else None
        value = own.pop("threshold_value", None)
        options = {"anomaly_rate": check_positive("anomaly_rate", own.pop("anomaly_rate", 0.01))}
        options |= {"time_decay": float(self.forest.time_decay), "shingle": self.forest.shingle}
        options |= {"output_after": self.forest.output_after}
        kind = own.pop("threshold", "sigma")
        self.rule = Rule(kind, value, **(options if kind == "adaptive" else {}))
        bands = {_BANDS[name]: own.pop(name) for name in _BANDS if name in own}
        self.suppression = Suppression(**bands) if bands else None

    # --- stages ------------------------------------------------------------------------------------

    def _prepare(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None,
        order: ArrayLike | None,
        purpose: Purpose,
    ) -> Points:
        """Base rows as points, with their entities; changes nothing before all that can be wrong was looked at."""
        rows = as_rows(X, self.columns)
        names = [""] * len(rows) if entities is None else check_entities(entities, len(rows))
        times = None if order is None else as_order(order, len(rows))
        if self.scale == "none":
            refuse_infinities(rows)
        elif self.scaler is None and purpose != "fit":
            raise ForestNotFitted(
                "Columns are scaled by training rows, and there were none.", hint='Call fit first, or give {"scale": "none"}.'
            )
        usable, levels = np.arange(len(rows)), np.zeros(rows.shape)
        if self.baseline is not None:
            if purpose == "fit":
                sequence = np.arange(len(rows)) if times is None else np.argsort(times, kind="stable")
                self.baseline.learn(rows[sequence], [names[i] for i in sequence])
            levels, known = self.baseline.subtract(rows, names, take_in=purpose == "stream")
            usable = np.flatnonzero(known)
        with np.errstate(invalid="ignore"):  # an infinite level leaves nothing known
            values = rows[usable] - levels[usable]
        if self.scale == "robust":
            if purpose == "fit":
                self.scaler = RobustScaler.fit(values)
            assert self.scaler is not None, "looked at above"
            values = self.scaler.transform(values)
        names = [names[i] for i in usable]
        late = np.zeros(len(rows), np.bool_)
        at = np.arange(len(usable))
        if self.shingler is not None:
            times = None if times is None else times[usable]
            if purpose == "stream":
                values, at, refused = self.shingler.take(values, names, times)
                late[usable[refused]] = True
            else:
                values, at = rebuild(values, self.shingler.size, names, times)
        return Points(rows, levels, values, usable[at], None if entities is None else [names[i] for i in at], late)

    def explain_points(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """(high, low, expected) of points, each of shape (k, base columns); expected still scaled, NaN where not asked for."""
        parts = self.forest.explain(points)
        high, low = (fold(part, self.columns) for part in parts)
        both = high + low
        strongest = np.argsort(np.argsort(-both, axis=1, kind="stable"), axis=1) < _MOST_COLUMNS
        asked = strongest & (both >= _LEAST_SHARE * both.sum(axis=1, keepdims=True))
        holes = points.copy()
        holes[:, -self.columns :][asked] = np.nan
        expected = self.forest.impute(holes)[:, -self.columns :]
        expected[~asked] = np.nan
        return high, low, expected

    # --- learning and scoring ----------------------------------------------------------------------

    def fit(self, X: ArrayLike, entities: Sequence[Hashable] | None = None, order: ArrayLike | None = None) -> Floats:  # noqa: N803
        """Forget everything and learn a history: baselines, scales, shingles in the order of `order`, forest, threshold.

        Args:
            X: base rows, shape (n, columns), n >= 1.
            entities: whose row each is; None is one entity for all.
            order: shape (n,), when each row belongs; None takes the rows as they stand.

        Returns:
            Honest scores of the training rows, shape (n,), float64, as of `RandomCutForest.fit_score`; NaN where a row makes no
            point.

        Raises:
            BadRows: not such rows, or not one of them makes a point.
        """
        fresh = Detector(self.parameters, self.columns, threads=self.forest.threads)
        found = fresh._prepare(X, entities, order, "fit")
        if not len(found.at):
            raise BadRows("No entity has rows enough to make a point.", hint="Give more rows, or a shorter shingle.")
        scores = np.full(len(found.rows), np.nan)
        scores[found.at] = fresh.forest.fit_score(found.points, found.names)
        fresh.rule.fit(scores[found.at])
        if fresh.shingler is not None:
            # The windows hold the newest rows of the history, so that the stream goes on where it ends.
            sequence = (
                np.arange(len(found.rows)) if order is None else np.argsort(as_order(order, len(found.rows)), kind="stable")
            )
            names = None if entities is None else [entities[i] for i in sequence.tolist()]
            fresh._prepare(found.rows[sequence], names, None if order is None else np.asarray(order)[sequence], "stream")
            fresh.shingler.late = 0
        self.__dict__.update(fresh.__dict__)
        return scores

    def process(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None = None,
        order: ArrayLike | None = None,
        *,
        explain_all: bool = False,
    ) -> Findings:
        """Score rows as they arrive, judge and explain them, and let the forest learn what its policy allows.

        Args:
            X: base rows, shape (n, columns), n >= 0.
            entities: whose row each is, one per row; None is one entity for all.
            order: shape (n,), when each row belongs; with a shingle, a row not after its entity's newest one is late.
            explain_all: explain every scored row, not the anomalies only.

        Raises:
            BadRows: not such rows. Nothing was taken in then.
            ForestNotFitted: the scale or the threshold needs `fit` first, or the policy is frozen.
        """
        if self.rule.threshold is None or (self.forest.policy == "frozen" and not self.forest.rows_seen):
            raise ForestNotFitted("This detector has learnt nothing yet.", hint="Call fit first.")
        found = self._prepare(X, entities, order, "stream")
        watch = Watch(self, found.points, explain_all)
        learned = np.zeros(len(found.rows), np.bool_)
        if len(found.at):
            learned[found.at] = self.forest.update_watched(found.points, watch, found.names)
        return gather(self, found, watch, learned)

    def rescore(
        self,
        X: ArrayLike,  # noqa: N803
        entities: Sequence[Hashable] | None = None,
        order: ArrayLike | None = None,
        *,
        explain_all: bool = False,
    ) -> Findings:
        """Score rows by what is known now, and change nothing: rows that were updated, or came late.

        With a shingle, give the `shingle - 1` rows of the entity before the row too; late rows are put in their place, and rows
        without a whole shingle have no score. Arguments, result and errors are those of `process`.
        """
        if self.rule.threshold is None or not self.forest.rows_seen:
            raise ForestNotFitted("This detector has learnt nothing yet.", hint="Call fit or process first.")
        found = self._prepare(X, entities, order, "again")
        watch = Watch(self, found.points, explain_all, take_in=False)
        if len(found.at):
            asked = np.flatnonzero(watch.judge(0, self.forest.score_samples(found.points)))
            if asked.size:
                watch.explain(asked)
        return gather(self, found, watch, np.zeros(len(found.rows), np.bool_))

    # --- checkpoint --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything as a checkpoint: whatever the detector does next, the restored one does the same, bit for bit.

        Raises:
            ForestNotFitted: the forest has seen no row.
        """
        values: dict[str, Any] = {
            "detector": 1,
            "parameters": self.parameters,
            "columns": self.columns,
            "rule": self.rule.to_dict(),
            "scaler": None if self.scaler is None else self.scaler.to_dict(),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "shingler": None if self.shingler is None else self.shingler.to_dict(),
        }
        return state.pack(values, {"forest": np.frombuffer(self.forest.to_bytes(), np.uint8)})

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int = 1) -> Self:
        """The detector that `to_bytes` saved.

        Raises:
            CheckpointRefused: no checkpoint of a detector, or a damaged one, or one of another version.
        """
        values, arrays = state.unpack(data)
        if values.get("detector") != 1 or arrays.keys() != {"forest"}:
            raise CheckpointRefused(
                "These bytes are not a checkpoint of a detector.", hint="Use one that Detector.to_bytes made."
            )
        made = cls(values["parameters"], values["columns"])
        made.forest = RandomCutForest.from_bytes(arrays["forest"].tobytes(), threads=threads)
        made.rule = Rule.from_dict(values["rule"])
        made.scaler = None if values["scaler"] is None else RobustScaler.from_dict(values["scaler"])
        made.baseline = None if values["baseline"] is None else Baseline.from_dict(values["baseline"])
        made.shingler = None if values["shingler"] is None else Shingler.from_dict(values["shingler"])
        return made
