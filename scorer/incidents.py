"""Episodes: which anomaly opens an incident, which belongs to one, and when an incident is over.

Owns the rule. Never reads or writes the database.

An entity's first anomaly opens an incident. It stays open until `close_after` rows of the entity in a row are ordinary, which
takes a score below the closing level, a share (the hysteresis) under the threshold: a row between the two is neither an anomaly
nor ordinary and starts the count afresh. The next anomaly then opens another incident. Rows count in the order in which they
arrive (`_seq`), so the outcome does not depend on how they are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass
class Incident:
    """One episode of one entity; modified in place while rows go by.

    Attributes:
        id: the row's id, None where it is not in the database yet.
        entity: whose episode it is.
        first_seq, last_seq: _seq of the first and of the last anomaly.
        first_order_value, last_order_value: their order values.
        anomalies: abnormal rows so far.
        ordinary_rows: ordinary rows since the last anomaly.
        peak_score, peak_seq, peak_order_value: the highest score, and of which row.
        first_committed_at, last_committed_at: commit times of the first and of the last anomaly, where they are known.
        closed: whether the run of ordinary rows was long enough.
    """

    id: int | None
    entity: str
    first_seq: int
    last_seq: int
    first_order_value: float | None
    last_order_value: float | None
    anomalies: int
    ordinary_rows: int
    peak_score: float
    peak_seq: int | None = None
    peak_order_value: float | None = None
    first_committed_at: datetime | None = None
    last_committed_at: datetime | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What the rule needs to know of a scored row; it may be neither abnormal nor ordinary."""

    entity: str
    seq: int
    order_value: float | None
    score: float
    abnormal: bool
    ordinary: bool
    committed_at: datetime | None = None


def follow_rows(
    open_incidents: Mapping[str, Incident], rows: Iterable[Row], close_after: int
) -> tuple[Sequence[Incident], Sequence[Incident]]:
    """Let rows go by.

    Args:
        open_incidents: by entity, at most one each; modified in place.
        rows: in the order of arrival.
        close_after: ordinary rows in a row that end an incident, >= 1.

    Returns:
        (changed, of_anomalies): every incident that is new or was modified, each once, and the incident of each
        abnormal row in order.
    """
    current = dict(open_incidents)
    changed: dict[int, Incident] = {}
    of_anomalies: list[Incident] = []
    for row in rows:
        incident = current.get(row.entity)
        if row.abnormal:
            if incident is None:
                incident = Incident(None, row.entity, row.seq, row.seq, row.order_value, row.order_value, 0, 0, row.score)
                incident.first_committed_at = row.committed_at
                current[row.entity] = incident
            if row.score > incident.peak_score or incident.peak_seq is None:
                incident.peak_score, incident.peak_seq, incident.peak_order_value = row.score, row.seq, row.order_value
            incident.last_seq, incident.last_order_value = row.seq, row.order_value
            incident.last_committed_at = row.committed_at
            incident.anomalies += 1
            incident.ordinary_rows = 0
            of_anomalies.append(incident)
        elif incident is None:
            continue
        elif row.ordinary:
            incident.ordinary_rows += 1
            if incident.ordinary_rows >= close_after:
                incident.closed = True
                del current[row.entity]
        else:
            incident.ordinary_rows = 0
        changed[id(incident)] = incident
    return list(changed.values()), of_anomalies
