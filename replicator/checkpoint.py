"""The checkpoint: where a source's mirror stands, how that is read and begun, and what happens where it is lost.

A lost position is never replaced in silence: its tables say ResyncRequired and keep their rows until somebody calls
warehouse.resync_source, or until the position is found again. Owns warehouse.checkpoint but for the applier's writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from replicator.errors import PositionLost
from replicator.mirror import QUERIES
from replicator.position import Flavor, Position, parse_gtids
from replicator.servers import Checkpoint, fetch_head
from replicator.source import Source
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()


def read_checkpoint(conn: Connection, name: str, flavor: Flavor) -> Checkpoint | None:
    """The saved position of a source; None before its first run."""
    with wrap_errors():
        row = conn.execute(QUERIES["read_checkpoint"], {"source": name}).fetchone()
    if row is None:
        return None
    identity, gtid_set, file, pos, seq, last, head = row
    gtids = None if gtid_set is None else parse_gtids(gtid_set, flavor)
    return Checkpoint(Position(file, int(pos), gtids, last), int(seq), identity, head)


def begin(conn: Connection, name: str, source: Source) -> Checkpoint:
    """Write the first checkpoint of a source: its present position."""
    checkpoint = Checkpoint(source.position(), 0, source.identity())
    with wrap_errors():
        conn.execute(QUERIES["create_checkpoint"], _facts(name, checkpoint))
    log.info("first run", source=name, position=str(checkpoint.position))
    return checkpoint


def read_restart(conn: Connection, name: str) -> Sequence[str] | None:
    """What resync_source asked for: the tables to be copied, none for all of them; None where nothing was asked."""
    with wrap_errors():
        row = conn.execute(QUERIES["read_restart"], {"source": name}).fetchone()
    return (row[1] or ()) if row is not None and row[0] else None


def begin_anew(conn: Connection, name: str, source: Source, seq: int, tables: Sequence[str]) -> Checkpoint:
    """Take the source's present position, and request the copies.

    What was held of the binlog until now belongs to a history that is given up: prepared transactions, and events that
    somebody skipped at places which mean others now.

    Args:
        seq: the last _seq given out. tables: to be copied; none: all.
    """
    checkpoint = Checkpoint(source.position(), seq, source.identity())
    copied = "the source was begun anew by resync_source; the table is copied afresh"
    left = f"changes up to {checkpoint.position.file}:{checkpoint.position.pos} were given up by resync_source: resync it"
    facts = {"source": name, "tables": list(tables) or None, "present": source.table_names()}
    with wrap_errors(), conn.transaction():
        conn.execute(QUERIES["move_checkpoint"], _facts(name, checkpoint))
        conn.execute(QUERIES["forget_events"], {"source": name})
        conn.execute(QUERIES["request_copies"], facts | {"reason": copied})
        conn.execute(QUERIES["leave_tables"], {"source": name, "reason": left})
        conn.execute(QUERIES["end_restart"], {"source": name})
    log.warning("source begun anew", source=name, tables=list(tables) or "all", position=str(checkpoint.position))
    return checkpoint


def _facts(name: str, checkpoint: Checkpoint) -> dict[str, object]:
    position = checkpoint.position
    return {
        "source": name, "identity": checkpoint.identity, "file": position.file, "pos": position.pos,
        "gtid_set": None if position.gtids is None else str(position.gtids),
    }  # fmt: skip


def hold_tables(conn: Connection, name: str, problem: PositionLost) -> None:
    """The position is lost: all tables say so and keep their rows."""
    reason = f"the source's position is lost: {problem.message}"
    with wrap_errors():
        conn.execute(QUERIES["hold_tables"], {"source": name, "reason": reason})


def release_tables(conn: Connection, name: str) -> None:
    """The position was found again, perhaps on another server: the tables are what they were."""
    with wrap_errors():
        conn.execute(QUERIES["release_tables"], {"source": name})


def write_head(conn: Connection, name: str, source: Source, identity: str, file: str) -> str | None:
    """Remember what tells the binlog file at hand from another of its name; None where it is not there any more."""
    try:
        head = fetch_head(source, file)
    except PositionLost:
        return None
    with wrap_errors():
        conn.execute(QUERIES["write_head"], {"source": name, "head": head, "identity": identity, "file": file})
    return head
