"""Advisory locks that are held for the length of a piece of work.

Owns taking and giving back. Locks that a service holds for its whole life are warehouse.db.take_lock's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from warehouse.db import Connection, lock_number, wrap_errors


@contextmanager
def hold_lock(conn: Connection, name: str, *, wait: bool, note_waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a session advisory lock while the block runs.

    Args:
        conn: in autocommit mode, outside a transaction.
        name: of the work.
        wait: wait for whoever has it; else the block gets False at once and must not do the work.
        note_waiting: called before a wait.
    """
    number = lock_number(name)
    with wrap_errors():
        row = conn.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone()
        held = row is not None and row[0]
        if not held and wait:
            if note_waiting is not None:
                note_waiting()
            conn.execute("SELECT pg_advisory_lock(%s)", (number,))
            held = True
    try:
        yield held
    finally:
        # A broken connection gave the lock back already.
        if held and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (number,))
