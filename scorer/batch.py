"""One batch of scores: rows past the watermark in, scores, anomalies, incidents and the watermark out, in one transaction.

Owns that transaction. A scorer that dies at any moment leaves a batch whole or not there at all; the lock on the watermarks
keeps two scorers from writing the same batch. Never trains, never loops over ordinary rows in Python.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from scorer.arrays import Float8Array, Int4Array, Int8Array, parse_vectors
from scorer.forest import RandomCutForest
from scorer.incidents import Incident, Row, follow_rows
from scorer.models import QUERIES, Mirror, Model, as_number
from warehouse.db import Connection, wrap_errors

Floats = NDArray[np.float64]

PAYLOAD_BYTES = 7900  # Postgres takes less than 8000
BATCH_BYTES = 256 << 20


@dataclass
class Batch:
    """What one batch did.

    Attributes:
        more: whether it was cut off at its size, so that there may be more.
        rows, deletes, anomalies, cleared: how many.
        opened: incidents that were opened.
    """

    more: bool = False
    rows: int = 0
    deletes: int = 0
    anomalies: int = 0
    cleared: int = 0
    opened: list[Incident] = field(default_factory=list)


def score_batch(conn: Connection, model: Model, forest: RandomCutForest, mirrors: Sequence[Mirror], batch_rows: int) -> Batch:
    """Score the next rows of one source's tables in `_seq` order and commit the outcome.

    Deletions come first: the score of a row that the source deleted is removed, its open anomaly becomes source_deleted.
    Then rows: one that was scored before (it was updated) replaces its score; its open anomaly is brought up to date or
    becomes cleared.

    Args:
        conn: in autocommit mode, with the arrays registered and the temporary table of `prepare_batches`.
        model: READY.
        forest: its forest.
        mirrors: tables of one source that the model can score, each with a watermark.
        batch_rows: about how many rows at most; rows of one `_seq` are never torn apart.

    Raises:
        WarehouseBusy: the version was retired or another scorer was at work; nothing was written.
    """
    limit = max(1, min(batch_rows, BATCH_BYTES // (32 + 12 * len(model.features))))
    batch = Batch()
    names = [mirror.name for mirror in mirrors]
    values: dict[str, Any] = model.key | {"relations": names, "source": mirrors[0].source, "limit": limit}
    with wrap_errors(model=model.name), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if conn.execute(QUERIES["lock_model"], values).rowcount != 1:
            return batch
        watermarks = {row[0]: row[1:] for row in conn.execute(QUERIES["lock_watermarks"], values).fetchall()}
        if watermarks.keys() != set(names):
            return batch
        emptied = _follow_deletes(conn, batch, values, mirrors, min(seq for _, seq in watermarks.values()))
        if not batch.more:
            emptied |= _score_rows(conn, batch, values, model, forest, mirrors, {name: watermarks[name][0] for name in names})
        if emptied:
            conn.execute(QUERIES["close_emptied_incidents"], {"incidents": sorted(emptied)})
        if batch.anomalies or batch.cleared:
            conn.execute(QUERIES["notify"], {"payload": make_payload(model, batch)})
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


def _score_rows(
    conn: Connection,
    batch: Batch,
    values: dict[str, Any],
    model: Model,
    forest: RandomCutForest,
    mirrors: Sequence[Mirror],
    watermarks: dict[str, int],
) -> set[int]:
    """Score rows past the watermarks; returns incidents that may be empty now."""
    assert model.scaler is not None and model.threshold is not None and model.expected is not None, (
        "a READY version was trained"
    )
    seqs = {f"seq_{i}": watermarks[mirror.name] for i, mirror in enumerate(mirrors)}
    filled = conn.execute(compose_fill(model.features, model.entity, model.order, tuple(map(_freeze, mirrors))), values | seqs)
    batch.rows = filled.rowcount
    if not batch.rows:
        return set()
    batch.more = batch.rows >= values["limit"]
    row = conn.execute(QUERIES["read_batch"], binary=True).fetchone()
    assert row is not None, "an aggregate yields a row"
    _, newest, committed_at, packed = row
    rows = parse_vectors(packed, len(model.features))
    scaled = model.scaler.transform(rows)
    scores = forest.score_samples(scaled)
    values |= {"scores": Float8Array(scores), "threshold": model.threshold.value, "seq": newest}
    written = conn.execute(QUERIES["write_scores"], values).fetchone()
    assert written is not None, "an aggregate yields a row"
    _, cleared, emptied = written
    batch.cleared += cleared
    abnormal = np.flatnonzero(scores > model.threshold.value)
    incidents = _follow_incidents(conn, batch, values, model, scores, abnormal)
    if len(abnormal):
        _write_anomalies(conn, values, model, forest, rows[abnormal], scaled[abnormal], scores[abnormal], abnormal, incidents)
        batch.anomalies = len(abnormal)
    conn.execute(QUERIES["advance_watermarks"], values | {"deleted_seq": 0, "committed_at": committed_at})
    return set(emptied)


_Frozen = tuple[str, str, tuple[tuple[str, str], ...], tuple[str, ...]]


def _freeze(mirror: Mirror) -> _Frozen:
    return mirror.schema, mirror.table, tuple(sorted(mirror.columns.items())), mirror.key_columns


@lru_cache(maxsize=256)
def compose_fill(
    features: tuple[str, ...], entity: str | None, order: str | None, mirrors: tuple[_Frozen, ...]
) -> sql.Composed:
    """The statement that puts the next rows of all tables, merged by `_seq`, into the batch."""
    parts = []
    for i, (schema, table, column_types, key_columns) in enumerate(mirrors):
        types = dict(column_types)
        vector = sql.SQL(", ").join(
            sql.SQL("coalesce({}, 'NaN')").format(as_number(sql.Identifier("m", feature), types[feature]))
            for feature in features
        )
        key = sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(column), sql.Identifier("m", column)) for column in key_columns
        )
        parts.append(
            sql.SQL(
                "(SELECT {relation}::text AS relation, m._seq AS seq, jsonb_build_object({key}) AS row_key,"
                " {entity} AS entity, {order} AS order_value, {committed} AS committed_at,"
                " ARRAY[{vector}]::float8[] AS features"
                " FROM {table} AS m WHERE m._seq > {seq} ORDER BY m._seq FETCH FIRST %(limit)s ROWS WITH TIES)"
            ).format(
                relation=sql.Literal(f"{schema}.{table}"),
                key=key,
                entity=sql.SQL("''")
                if entity is None
                else sql.SQL("coalesce({}::text, '')").format(sql.Identifier("m", entity)),
                order=sql.SQL("NULL::float8") if order is None else as_number(sql.Identifier("m", order), types[order]),
                committed=sql.SQL("m._committed_at" if "_committed_at" in types else "NULL::timestamptz"),
                vector=vector,
                table=sql.Identifier(schema, table),
                seq=sql.Placeholder(f"seq_{i}"),
            )
        )
    return sql.SQL(
        "INSERT INTO pg_temp.batch (n, relation, seq, row_key, entity, order_value, committed_at, features)"
        " SELECT row_number() OVER (ORDER BY seq, relation, row_key), relation, seq, row_key, entity, order_value,"
        " committed_at, features"
        " FROM (SELECT * FROM ({}) AS candidates ORDER BY seq FETCH FIRST %(limit)s ROWS WITH TIES) AS next_rows"
    ).format(sql.SQL(" UNION ALL ").join(parts))


def _follow_incidents(
    conn: Connection, batch: Batch, values: dict[str, Any], model: Model, scores: Floats, abnormal: NDArray[np.intp]
) -> list[int]:
    """Open, continue and close incidents; returns the id of each abnormal row's incident."""
    known = {row[1]: Incident(*row) for row in conn.execute(QUERIES["read_open_incidents"], values).fetchall()}
    if not known and not len(abnormal):
        return []
    found = conn.execute(QUERIES["read_batch_rows"], {"entities": list(known), "abnormal": Int4Array(abnormal + 1)}).fetchall()
    assert model.threshold is not None, "a READY version was trained"
    rows = (Row(entity, seq, order_value, float(scores[n - 1])) for n, entity, seq, order_value in found)
    changed, of_anomalies = follow_rows(known, rows, model.threshold.value, model.parameters["close_after_rows"])
    batch.opened = [incident for incident in changed if incident.id is None]
    ids = conn.execute(QUERIES["reserve_incidents"], {"count": len(batch.opened)}).fetchall()
    for incident, (number,) in zip(batch.opened, ids, strict=True):
        incident.id = number
    if changed:
        conn.execute(QUERIES["write_incidents"], values | _as_columns(changed))
    return [incident.id for incident in of_anomalies if incident.id is not None]


def _as_columns(incidents: Sequence[Incident]) -> dict[str, Any]:
    def whole(name: str) -> Int8Array:
        return Int8Array(np.array([getattr(incident, name) for incident in incidents], np.int64))

    def real(name: str) -> Float8Array:
        return Float8Array(np.array([getattr(incident, name) for incident in incidents], np.float64))

    return {
        "ids": whole("id"),
        "entities": [incident.entity for incident in incidents],
        "first_seqs": whole("first_seq"),
        "last_seqs": whole("last_seq"),
        "first_orders": real("first_order_value"),
        "last_orders": real("last_order_value"),
        "anomalies": whole("anomalies"),
        "ordinary_rows": whole("ordinary_rows"),
        "peaks": real("peak_score"),
        "closed": whole("closed"),
    }


def _write_anomalies(
    conn: Connection,
    values: dict[str, Any],
    model: Model,
    forest: RandomCutForest,
    rows: Floats,
    scaled: Floats,
    scores: Floats,
    abnormal: NDArray[np.intp],
    incidents: Sequence[int],
) -> None:
    """Write the anomalies and, for each, what every feature contributed."""
    assert model.threshold is not None and model.expected is not None, "a READY version was trained"
    high, low = forest.explain(scaled)
    directions = np.where(high.sum(axis=1) >= low.sum(axis=1), "high", "low").tolist()
    placed = conn.execute(
        QUERIES["write_anomalies"],
        values
        | {
            "rows": Int4Array(abnormal + 1),
            "scores": Float8Array(scores),
            "grades": Float8Array(model.threshold.grade(scores)),
            "directions": directions,
            "incidents": Int8Array(np.array(incidents, np.int64)),
        },
    ).fetchall()
    ids = np.array([anomaly for _, anomaly in placed], np.int64)
    attribution = high + low
    # Ties go to the column that the model names first.
    ranks = np.argsort(np.argsort(-attribution, axis=1, kind="stable"), axis=1) + 1
    at, feature = np.nonzero(attribution > 0)
    conn.execute(QUERIES["clear_features"], {"anomalies": Int8Array(ids)})
    conn.execute(
        QUERIES["write_features"],
        {
            "names": list(model.features),
            "anomalies": Int8Array(ids[at]),
            "features": Int4Array(feature + 1),
            "ranks": Int4Array(ranks[at, feature]),
            "attributions": Float8Array(attribution[at, feature]),
            "highs": Int4Array((high >= low)[at, feature]),
            "values": Float8Array(rows[at, feature]),
            "expected": Float8Array(model.expected[feature]),
        },
    )


def make_payload(model: Model, batch: Batch) -> str:
    """The JSON text of NOTIFY anomalies: counts, and the incidents that were opened, worst first, as many as fit."""
    body: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "anomalies": batch.anomalies,
        "cleared": batch.cleared,
        "incidents_opened": len(batch.opened),
        "incidents": [],
    }
    room = PAYLOAD_BYTES - len(json.dumps(body))
    for incident in sorted(batch.opened, key=lambda incident: -incident.peak_score):
        item = {
            "id": incident.id,
            "entity": incident.entity,
            "score": incident.peak_score,
            "order_value": incident.first_order_value,
        }
        room -= len(json.dumps(item)) + 2
        if room < 0:
            break
        body["incidents"].append(item)
    return json.dumps(body)
