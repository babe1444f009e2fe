"""Locks on mirrors that are to be altered: asked for briefly, and again later, so that no reader waits behind them for long.

ALTER TABLE in Postgres waits for every query that reads the table, and every query that comes later waits behind it. Owns how
long one attempt waits, and finding out who is in the way. Whoever meets MirrorLocked tries again later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from replicator.errors import TableProblem
from replicator.items import Statement
from replicator.mirror import QUERIES, MirrorTable
from warehouse.db import Connection

# Readers may wait so long behind one attempt.
ATTEMPT_MS = 100
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0


class MirrorLocked(TableProblem):
    """A mirror is to be altered, and somebody reads it.

    Attributes:
        table: whose mirror. holder: who is in the way, in words; empty where that is not known.
    """

    def __init__(self, table: MirrorTable, holder: str) -> None:
        super().__init__(f"waits for a lock on {table.mirror}, to alter it" + (f": {holder} has it" if holder else ""))
        self.table, self.holder = table, holder


@dataclass
class LockWait:
    """A statement of the stream that waits for a mirror, and everything behind it; times in time.monotonic() seconds.

    Attributes:
        refusal: of the last attempt. since: the first one. next_at: when to try again.
    """

    statement: Statement
    refusal: MirrorLocked
    since: float = field(default_factory=time.monotonic)
    next_at: float = 0.0
    wait_s: float = FIRST_WAIT_S

    def refuse(self, refusal: MirrorLocked) -> None:
        """One more attempt was in vain; the next one comes later, so that readers pass."""
        self.refusal = refusal
        self.next_at = time.monotonic() + self.wait_s
        self.wait_s = min(2 * self.wait_s, LONGEST_WAIT_S)

    @property
    def waited_s(self) -> float:
        """Since the first attempt."""
        return time.monotonic() - self.since


@contextmanager
def transaction_with_short_waits(conn: Connection, *tables: MirrorTable, lock: bool = False) -> Iterator[None]:
    """A transaction in which no lock is waited for any longer than ATTEMPT_MS.

    Args:
        tables: those that may be altered in it. lock: lock their mirrors at the beginning, before there is work to be lost.

    Raises:
        MirrorLocked: a lock was not to be had; the transaction is rolled back.
    """
    current = tables[0]
    try:
        with conn.transaction():
            conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(ATTEMPT_MS)))
            for current in tables if lock else ():
                conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(current.identifier))
            current = tables[0]
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise MirrorLocked(current, find_holder(conn, current)) from error


def wait_as_usual(conn: Connection) -> None:
    """From here on the transaction at hand waits for locks as others do: there is work in it that must not be done twice."""
    conn.execute("SET LOCAL lock_timeout = 0")


def find_holder(conn: Connection, table: MirrorTable) -> str:
    """The process that has a lock on a mirror, and of several the one with the oldest transaction, in words; empty for none."""
    row: Any = conn.execute(QUERIES["find_lock_holder"], {"mirror": table.mirror}).fetchone()
    if row is None:
        return ""
    pid, user, application, since = row
    program = f", {application}" if application else ""
    return f"process {pid} ({user}{program})" + (f", in a transaction since {since}," if since else "")
