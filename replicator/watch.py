"""What the replicator's loop and `verify` tell each other: where the stream is, what it touched, what is to be repaired.

The loop's thread notes the keys of each batch before the batch is written, so whoever looks at the mirror afterwards knows of
every key that may have changed since the watch began. Owns no connection and no thread; the loop never waits here for anything
but a few instructions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from replicator import compare
from replicator.changes import Batch
from replicator.mirror import MirrorTable
from replicator.position import Position, file_number
from replicator.rows import Hashes, Rows


@dataclass
class Repair:
    """Rows that the source and the mirror differ in, to be written by the loop.

    Attributes:
        table: whose rows.
        came: rows of the source, to be in the mirror as they are. gone: rows of the mirror, to be there no more.
        outcome: why Postgres refused; empty where it did not. Rows that the stream touched meanwhile are left as they are.
    """

    table: MirrorTable
    came: Rows
    gone: Rows
    outcome: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class Watch:
    """Shared by the loop's thread and that of `verify`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._position: Position | None = None
        self._is_open = False
        self._table = -1
        self._touched: list[Hashes] = []
        self._repairs: list[Repair] = []
        self._error: BaseException | None = None

    # ------------------------------------------------------------------------------------------------ the loop's side
    @contextmanager
    def applying(self, batch: Batch, is_open: Callable[[], bool]) -> Iterator[None]:
        """While a batch is written; its keys are noted first. is_open: whether a transaction is written in part."""
        with self._lock:
            if self._table >= 0:
                self._note(batch)
            yield
            self._is_open = is_open()

    def _note(self, batch: Batch) -> None:
        plans = np.array(batch.plans.tables, np.int64)
        rows = np.nonzero(plans[batch.changes["plan"]] == self._table)[0]
        hashes = np.empty(2 * len(rows), np.uint64)
        count = compare.hash_changes(batch.changes, rows, batch.keys, hashes)
        self._touched.append(hashes[:count])

    def moved(self, position: Position) -> None:
        """All up to here is committed, and nothing is written in part. Raises what ended the thread of `verify`."""
        if self._error is not None:
            raise self._error
        # A transaction that was written in part may also have been rolled back.
        self._is_open = False
        with self._moved:
            self._position = position
            self._moved.notify_all()

    @property
    def has_repairs(self) -> bool:
        """Whether something is to be repaired."""
        return bool(self._repairs)

    def take_repairs(self) -> list[Repair]:
        """What is to be repaired now."""
        repairs, self._repairs = self._repairs, []
        return repairs

    # ------------------------------------------------------------------------------------------------ the side of verify
    def begin(self, table: int, check_stop: Callable[[], None]) -> None:
        """Note from now on what the stream touches of a table, and forget what it touched before.

        Begins between two transactions, so that nothing is written and not yet committed that was not noted.

        Args:
            check_stop: called while a transaction is written in part; raises where the waiting is to end.
        """
        while True:
            with self._lock:
                if not self._is_open:
                    self._table, self._touched = table, []
                    return
            check_stop()
            time.sleep(0.01)

    def end(self) -> None:
        """Note nothing any more."""
        with self._lock:
            self._table, self._touched = -1, []

    def touched(self) -> Hashes:
        """The keys that were touched since begin(), hashed."""
        return np.concatenate([np.empty(0, np.uint64), *self._touched])

    def wait_applied(self, position: Position, timeout_s: float) -> bool:
        """Wait until everything up to a position is committed; False where it is not in time.

        By file and offset too: MySQL's GTID set lags behind what readers see for a moment.
        """
        place = (file_number(position.file), position.pos)

        def is_there() -> bool:
            at = self._position
            return at is not None and at.covers(position) and (file_number(at.file), at.pos) >= place

        with self._moved:
            return self._moved.wait_for(is_there, timeout_s)

    def submit(self, repair: Repair) -> None:
        """Ask the loop to repair; it does so between two batches."""
        self._repairs.append(repair)

    def fail(self, error: BaseException) -> None:
        """End the loop with an error that nobody foresaw."""
        self._error = error
