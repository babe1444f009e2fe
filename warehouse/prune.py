"""Retention of records: deletions that everybody has seen, changes of state, comparisons, anomalies and incidents.

Owns the deletion of such rows, in small transactions. Never touches mirrors, no deletion that a model still has to see, and
nothing that belongs to an open incident.
"""

from __future__ import annotations

import structlog

from warehouse.db import Connection, read_queries, wrap_errors
from warehouse.settings import RetentionSettings

log = structlog.get_logger()

QUERIES = read_queries("warehouse")
MOST_ROWS = 10_000


def prune_records(conn: Connection, settings: RetentionSettings, source: str) -> int:
    """Delete what is older than the settings allow of one source, at most MOST_ROWS of each kind; how many rows.

    Args:
        conn: in autocommit mode, outside a transaction.
    """
    total = 0
    for query, days in (
        ("prune_deleted_rows", settings.deleted_rows_days),
        ("prune_state_changes", settings.state_changes_days),
        ("prune_verifications", settings.verifications_days),
        ("prune_incidents", settings.incidents_days),
        ("prune_anomalies", settings.anomalies_days),
    ):
        if days is None:
            continue
        with wrap_errors():
            facts = {"source": source, "seconds": days * 86_400, "limit": MOST_ROWS}
            total += conn.execute(QUERIES[query], facts).rowcount
    if total:
        log.info("pruned", source=source, rows=total)
    return total
