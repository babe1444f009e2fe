"""One batch of scores: rows past the watermark in, scores, anomalies, incidents and the watermark out, in one transaction.

Owns that transaction. A scorer that dies at any moment leaves a batch whole or not there at all; the lock on the watermarks
keeps two scorers from writing the same batch. Never trains, never loops over ordinary rows in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.arrays import Float8Array, Int4Array, parse_vectors
from scorer.entities import EntityJudge
from scorer.errors import StateBehind
from scorer.fill import compose_fill, compose_neighbours, freeze
from scorer.follow import Follower
from scorer.imports import DecisionJudge
from scorer.judge import REASONS, PlainJudge, Rows, Verdicts
from scorer.models import QUERIES, Mirror, Model
from scorer.restore import Judge
from scorer.results import Batch, follow_incidents, notify, write_anomalies, write_predictions
from warehouse.db import Connection, wrap_errors

Floats = NDArray[np.float64]

BATCH_BYTES = 256 << 20
_NEWEST = 2**63 - 1


def score_batch(
    conn: Connection,
    model: Model,
    judge: Judge,
    mirrors: Sequence[Mirror],
    batch_rows: int,
    checkpoint_rows: int,
    *,
    old: bool = False,
) -> Batch:
    """Score the next rows of one source's tables in `_seq` order and commit the outcome.

    Deletions come first: the score of a row that the source deleted is removed, its open anomaly becomes source_deleted.
    Then rows: one that was scored before (it was updated) replaces its score; its open anomaly is brought up to date or
    becomes cleared.

    Args:
        conn: in autocommit mode, with the arrays registered and the temporary table of `prepare_batches`.
        model: READY.
        judge: of this version. One that follows the rows has taken in those of this batch afterwards: where an error comes out
            of here, it is of no use any more and has to be read again.
        mirrors: tables of one source that the model can score, each with a watermark.
        batch_rows: about how many rows at most; rows of one `_seq` are never torn apart.
        checkpoint_rows: rows after which a judge that follows them is saved.
        old: take rows from before the version, which come behind the new ones. They open no incidents, because they come out of
            order.

    Raises:
        WarehouseBusy: the version was retired or another scorer was at work; nothing was written.
        StateBehind: another scorer has taken in rows that this judge does not know.
    """
    limit = max(1, min(batch_rows, BATCH_BYTES // (32 + 12 * len(model.features))))
    batch = Batch()
    names = [mirror.name for mirror in mirrors]
    values: dict[str, Any] = model.key | {"relations": names, "source": mirrors[0].source, "limit": limit}
    taken = False
    with wrap_errors(model=model.name), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if conn.execute(QUERIES["lock_model"], values).rowcount != 1:
            return batch
        watermarks = {row[0]: row[1:] for row in conn.execute(QUERIES["lock_watermarks"], values).fetchall()}
        if watermarks.keys() != set(names):
            return batch
        emptied: set[int] = set()
        if not old:
            emptied = _follow_deletes(conn, batch, values, mirrors, min(row[1] for row in watermarks.values()))
        if not batch.more:
            seqs = {}
            for i, mirror in enumerate(mirrors):
                seq, _, old_seq, old_until = watermarks[mirror.name]
                seqs[f"seq_{i}"], seqs[f"until_{i}"] = (old_seq or 0, old_until or 0) if old else (seq, _NEWEST)
            frozen = tuple(map(freeze, mirrors))
            fill = compose_fill(model.features, model.entity, model.order, frozen)
            batch.rows = conn.execute(fill, values | seqs).rowcount
            batch.more = batch.rows >= limit
        if batch.rows:
            row = conn.execute(QUERIES["read_batch"], binary=True).fetchone()
            assert row is not None, "an aggregate yields a row"
            _, newest, committed_at, packed = row
            values |= {"old": old}
            rows = Rows(parse_vectors(packed, len(model.features)))
            if isinstance(judge, DecisionJudge):
                write_predictions(conn, values, judge.forest, rows.features)
            elif isinstance(judge, PlainJudge):
                emptied |= _write(conn, batch, values, model, rows.features, judge.judge(rows), None)
            else:
                _read_company(conn, values, model, rows)
                kept = judge.taken(rows)
                verdicts = judge.judge(rows, lambda n: _read_neighbours(conn, model, mirrors, judge.shingle, n))
                taken = _keep_state(conn, values, judge, rows.take(np.flatnonzero(kept)), checkpoint_rows)
                emptied |= _write(conn, batch, values, model, rows.features, verdicts, rows.came_before)
            if not old:
                given = {"seq": newest, "deleted_seq": 0, "committed_at": committed_at}
                conn.execute(QUERIES["advance_watermarks"], values | given)
        if old:
            conn.execute(QUERIES["advance_old"], values | {"seq": newest if batch.more else _NEWEST})
        if emptied:
            closed = conn.execute(QUERIES["close_emptied_incidents"], {"incidents": sorted(emptied)}).fetchall()
            batch.closed += [number for (number,) in closed]
        if model.state == "READY":
            notify(conn, model, batch)
    if taken and isinstance(judge, Follower):
        judge.batch += 1
        if judge.rows_since >= checkpoint_rows:
            judge.rows_since = 0
    return batch


def prepare_batches(conn: Connection) -> None:
    """Create the session's temporary table for batches."""
    with wrap_errors():
        conn.execute(QUERIES["create_batch"])


def _follow_deletes(
    conn: Connection, batch: Batch, values: dict[str, Any], mirrors: Sequence[Mirror], watermark: int
) -> set[int]:
    """Take deletions past the watermark; returns incidents that may be empty now."""
    newest_delete = conn.execute(QUERIES["newest_delete"], values).fetchone()
    if newest_delete is None or newest_delete[0] <= watermark:
        # A statement that changes no anomaly still tells the derived views that anomalies changed.
        return set()
    given = values | {"deleted_seq": watermark, "table_names": [mirror.source_table for mirror in mirrors]}
    row = conn.execute(QUERIES["follow_deletes"], given).fetchone()
    assert row is not None, "an aggregate yields a row"
    batch.deletes, newest, marked, incidents = row
    if batch.deletes:
        conn.execute(QUERIES["advance_deletes"], values | {"deleted_seq": newest})
    batch.cleared += marked
    batch.more = batch.deletes >= values["limit"]
    return set(incidents)


def _read_company(conn: Connection, values: dict[str, Any], model: Model, rows: Rows) -> None:
    """Fill in whose the batch's rows are, their order, and which were scored before."""
    found = conn.execute(QUERIES["read_company"], values).fetchone()
    assert found is not None, "an aggregate yields a row"
    entities, order, numbers = found
    rows.again = np.zeros(len(rows.features), np.bool_)
    rows.again[np.array(numbers, np.int64) - 1] = True
    if model.entity is not None:
        rows.entities = entities
    if model.order is not None:
        # A row without an order value comes before all others: it is late.
        rows.order = np.array([-np.inf if value is None else value for value in order], np.float64)


def _read_neighbours(conn: Connection, model: Model, mirrors: Sequence[Mirror], shingle: int, number: int) -> Rows:
    """The rows of the entity before a row of the batch that make its shingle whole."""
    row = conn.execute(QUERIES["read_place"], {"n": number + 1}).fetchone()
    assert row is not None, "the row is in the batch"
    entity, order_value, seq = row
    before = seq if model.order is None else order_value
    statement = compose_neighbours(model.features, model.entity, model.order, tuple(map(freeze, mirrors)))
    given = {"entity": entity, "before": before, "count": shingle - 1}
    found = conn.execute(statement, given).fetchall()
    return Rows(np.array([features for (features,) in found], np.float64).reshape(-1, len(model.features)))


def _keep_state(conn: Connection, values: dict[str, Any], judge: Follower, taken: Rows, checkpoint_rows: int) -> bool:
    """Write what a restart needs to bring the judge to where it is, after it took in these rows; whether there were any."""
    count = len(taken.features)
    given = values | {"batch": judge.batch + 1}
    if count and conn.execute(QUERIES["advance_state"], given).rowcount != 1:
        raise StateBehind("another scorer has gone on with this model", **{key: values[key] for key in ("model", "version")})
    if count and judge.rows_since >= checkpoint_rows:
        conn.execute(QUERIES["write_state"], given | {"state": judge.checkpoint()})
        conn.execute(QUERIES["forget_learned"], given)
    elif count:
        conn.execute(
            QUERIES["write_learned"],
            given
            | {
                "rows": count,
                "features": taken.features.astype("<f8").tobytes(),
                "entities": None if taken.entities is None else list(taken.entities),
                "order_values": None if taken.order is None else taken.order.astype("<f8").tobytes(),
            },
        )
    if isinstance(judge, EntityJudge):
        counts = {"in_memory": judge.residents, "bound": judge.in_memory, "waiting": len(judge.waiting)}
        conn.execute(QUERIES["note_forests"], values | counts)
    return count > 0


def _write(
    conn: Connection,
    batch: Batch,
    values: dict[str, Any],
    model: Model,
    rows: Floats,
    verdicts: Verdicts,
    again: NDArray[np.bool_] | None,
) -> set[int]:
    """Write scores, incidents and anomalies; returns incidents that may be empty now."""
    given = values | {"scores": Float8Array(verdicts.scores), "reasons": None, "names": list(REASONS[1:])}
    if verdicts.reasons.any():
        given["reasons"] = Int4Array(verdicts.reasons)
    # Of a plain forest, the statement itself sees which rows were there before and are ordinary now.
    given["threshold"] = verdicts.thresholds[0] if again is None else float("-inf")
    written = conn.execute(QUERIES["write_scores"], given).fetchone()
    assert written is not None, "an aggregate yields a row"
    cleared, emptied = written
    if again is not None:
        ordinary = again.copy()
        ordinary[verdicts.abnormal] = False
        if ordinary.any():
            found = conn.execute(QUERIES["clear_rows"], values | {"rows": Int4Array(np.flatnonzero(ordinary) + 1)}).fetchone()
            assert found is not None, "an aggregate yields a row"
            cleared, emptied = found
    batch.cleared += cleared
    incidents: list[int | None] = [None] * len(verdicts.abnormal)
    if not values["old"]:
        incidents = list(follow_incidents(conn, batch, values, model, verdicts))
    if len(verdicts.abnormal):
        write_anomalies(conn, values, model, rows, verdicts, incidents)
        batch.anomalies = len(verdicts.abnormal)
    return set(emptied)
