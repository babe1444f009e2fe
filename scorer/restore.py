"""From a checkpoint and the rows that came after it to what judges the next row.

Owns reading that state, and where the forests of single entities are parked. Never changes a watermark.
"""

from __future__ import annotations

import numpy as np

from scorer.decisions import DecisionForest
from scorer.detector import Detector
from scorer.entities import EntityJudge
from scorer.errors import ModelUnknown
from scorer.follow import Follower, FollowingJudge, take_in
from scorer.forest import RandomCutForest
from scorer.imports import DecisionJudge
from scorer.judge import PlainJudge, Rows, has_own_forests, is_plain, make_detector
from scorer.models import QUERIES, Model
from scorer.threshold import Threshold
from warehouse.db import Connection, wrap_errors

Judge = PlainJudge | Follower | DecisionJudge


def read_state(conn: Connection, model: Model) -> tuple[bytes, int, int]:
    """The checkpoint of a version, the last batch in it, and the last batch that was committed.

    Raises:
        ModelUnknown: it has none (any more).
    """
    with wrap_errors():
        row = conn.execute(QUERIES["read_checkpoint"], model.key, binary=True).fetchone()
    if row is None:
        raise ModelUnknown(f"model {model} has no checkpoint", hint=f"SELECT scorer.retrain('{model.name}')")
    return row[0], row[1], row[2]


class ForestStore:
    """The rows of scorer.entity_forests of one version, written inside whatever transaction is open.

    Args:
        conn: of the scorer that scores.
        model: with a forest for each entity.
    """

    statement = "write_entity_forest"

    def __init__(self, conn: Connection, model: Model) -> None:
        self.conn, self.model = conn, model

    def load(self, entity: str) -> tuple[bytes, int]:
        """The checkpoint of an entity's detector and the last batch that is in it.

        Raises:
            ModelUnknown: it is gone.
        """
        given = self.model.key | {"entity": entity}
        with wrap_errors(model=self.model.name):
            row = self.conn.execute(QUERIES["read_entity_forest"], given, binary=True).fetchone()
        if row is None:
            raise ModelUnknown(
                f"the forest of an entity of model {self.model} is gone", hint=f"SELECT scorer.retrain('{self.model.name}')"
            )
        return row[0], row[1]

    def keep(self, entity: str, detector: Detector, batch: int) -> None:
        """Write the checkpoint of an entity's detector."""
        threshold = detector.rule.threshold
        given = self.model.key | {
            "entity": entity,
            "state": detector.to_bytes(),
            "batch": batch,
            "rows_seen": detector.forest.rows_seen,
            "threshold": threshold.value if isinstance(threshold, Threshold) else None,
        }
        with wrap_errors(model=self.model.name):
            self.conn.execute(QUERIES[self.statement], given)


class TrainingStore(ForestStore):
    """The same while the version is trained: a version that was dropped meanwhile takes nothing."""

    statement = "train_entity_forest"


def read_judge(conn: Connection, model: Model, threads: int, forests_in_memory: int = 1) -> Judge:
    """What judges rows for a trained version; one that follows the rows as it was after the last batch that was committed.

    Args:
        conn: in autocommit mode.
        model: trained.
        threads: for the forest.
        forests_in_memory: where each entity has a forest, so many at most.

    Raises:
        ModelUnknown: the version has no checkpoint (any more), or batches are missing after it.
        CheckpointRefused: its bytes are damaged or of another format.
    """
    follows = model.kind != "imported" and not is_plain(model.parameters)
    with wrap_errors(), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        state, batch, last_batch = read_state(conn, model)
        learned = []
        if follows:
            learned = conn.execute(QUERIES["read_learned"], model.key | {"batch": batch}, binary=True).fetchall()
    if model.kind == "imported":
        return DecisionJudge(DecisionForest.from_json(state.decode()))
    if not follows:
        assert model.scaler is not None and model.threshold is not None and model.expected is not None, "it was trained"
        return PlainJudge(RandomCutForest.from_bytes(state, threads=threads), model.scaler, model.threshold, model.expected)
    if batch + len(learned) != last_batch:
        raise ModelUnknown(f"batches of model {model} are missing", hint=f"SELECT scorer.retrain('{model.name}')")
    batches = (
        Rows(
            np.frombuffer(features, "<f8").reshape(-1, len(model.features)),
            entities,
            None if order is None else np.frombuffer(order, "<f8"),
        )
        for features, entities, order in learned
    )
    if has_own_forests(model.parameters):
        store = ForestStore(conn, model)
        entities = EntityJudge.from_bytes(state, store, in_memory=forests_in_memory, threads=threads, batch=batch)
        for number, rows in enumerate(batches, batch + 1):
            entities.replay(number, rows)
        return entities
    if state:
        detector = Detector.from_bytes(state, threads=threads)
    else:
        detector = make_detector(model.parameters, len(model.features), threads)
    judge = FollowingJudge(detector, last_batch)
    for rows in batches:
        take_in(detector, rows)
        judge.rows_since += len(rows.features)
    return judge
