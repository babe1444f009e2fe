"""Read views: a connection that sees some tables as they were at one known position of the binlog.

Locks the tables against writes for as long as it takes to note the position and to begin a transaction with a consistent
snapshot, usually a few milliseconds; tables of an engine without transactions until they are read. Owns its connections;
reads no rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pymysql
import structlog

from replicator.errors import LockRefused, SourceRefused, SourceUnavailable
from replicator.position import Position
from replicator.source import Source, wrap_errors

log = structlog.get_logger()

# While a lock is waited for, writers wait behind it; so the wait is short, and comes again.
_WAIT_S = 5
_TRIES = 6
_LOCK_WAIT_TIMEOUT = 1205
# Only these show a transaction the rows of its beginning.
_VERSIONED = frozenset({"INNODB", "ROCKSDB"})


class ReadView:
    """The tables as they were at `position`, for as long as the view is open.

    Args:
        source: where to connect; two connections of its own are opened.
        tables: names, database.table.
        hold: called with the position while the tables are still locked; what it raises ends the view.

    Attributes:
        connection: for reading the tables. position: every change of these tables up to here is in the view, no later one.

    Raises:
        LockRefused: the right is missing, or others hold the tables for too long.
        SourceUnavailable: a connection broke.
    """

    def __init__(self, source: Source, tables: Sequence[str], hold: Callable[[Position], None] | None = None) -> None:
        self._locks = source.open()
        try:
            started = time.monotonic()
            _lock(self._locks, tables, source.stopping)
            self.position: Position = source.position()
            # Where the lock must be held while the rows are read, another reader would wait behind the writers that wait.
            is_versioned = are_versioned(source, tables)
            self.connection = source.open() if is_versioned else self._locks
        except BaseException:
            self._locks._force_close()
            raise
        try:
            if is_versioned:
                self._begin()
            if hold is not None:
                hold(self.position)
            if is_versioned:
                self._unlock()
        except BaseException:
            self.close()
            raise
        log.info(
            "tables locked",
            for_a_moment=is_versioned,
            tables=list(tables),
            duration_ms=round(1000 * (time.monotonic() - started), 1),
            position=str(self.position),
        )

    def _begin(self) -> None:
        with wrap_errors("cannot begin a consistent snapshot"):
            self.connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self.connection.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")

    def _unlock(self) -> None:
        with wrap_errors("cannot unlock tables"):
            self._locks.query("UNLOCK TABLES")

    def close(self) -> None:
        """Close both connections, which ends the snapshot and whatever is still locked."""
        self.connection._force_close()
        self._locks._force_close()


def _lock(connection: pymysql.Connection[Any], tables: Sequence[str], stopping: Callable[[], bool]) -> None:
    """Lock tables against writes, each alone where that is allowed, else all tables of the server."""
    parts = ", ".join(f"{_quote(name)} READ" for name in tables)
    try:
        _wait(connection, f"LOCK TABLES {parts}", tables, stopping)
    except SourceRefused:
        try:
            _wait(connection, "FLUSH TABLES WITH READ LOCK", tables, stopping)
        except SourceRefused:
            raise LockRefused(
                "its copy must be read at one position, which needs the right LOCK TABLES (or RELOAD)",
                hint="`replicator check` prints the grant; then resync the table.",
            ) from None


def _wait(connection: pymysql.Connection[Any], statement: str, tables: Sequence[str], stopping: Callable[[], bool]) -> None:
    with wrap_errors("cannot lock tables"):
        connection.query(f"SET SESSION lock_wait_timeout = {_WAIT_S}")
        for _ in range(_TRIES):
            try:
                connection.query(statement)
                return
            except pymysql.err.OperationalError as error:
                if error.args[0] != _LOCK_WAIT_TIMEOUT:
                    raise
                if stopping():
                    raise SourceUnavailable(
                        "a lock that did not come is no longer waited for, because a stop was asked for"
                    ) from None
                log.info("waiting for a lock", tables=list(tables))
                time.sleep(1)
    raise LockRefused(
        f"a long transaction kept the copy from locking {', '.join(tables)} for a moment",
        hint="Let it end (SHOW PROCESSLIST; XA RECOVER), then resync the table.",
    )


def _quote(name: str) -> str:
    return ".".join("`" + part.replace("`", "``") + "`" for part in name.split(".", 1))


def are_versioned(source: Source, tables: Sequence[str]) -> bool:
    """Whether a transaction sees the rows of its beginning, of all of these tables."""
    for name in tables:
        rows = source.query(
            "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", name.split(".", 1)
        )
        if not rows or str(rows[0][0]).upper() not in _VERSIONED:
            return False
    return True
