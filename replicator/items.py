"""What a stream yields, and what it asks of its owner: batches, statements and ticks; which tables are wanted.

Pure: no database, no logging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from replicator.changes import Batch
from replicator.errors import TableProblem
from replicator.events import Query
from replicator.position import Position
from replicator.tablemap import TableMap
from replicator.typemap import Column


@dataclass(frozen=True)
class Choice:
    """A wanted table: a number that its changes carry, and the positions of its key's columns.

    Attributes:
        columns: of the table map, those made plain that it cannot tell apart; None where it said all.
    """

    table: int
    key: tuple[int, ...]
    columns: tuple[Column, ...] | None = None


class Chooser(Protocol):
    """Decides about tables; the mirror's side of the stream."""

    def choose(self, table_map: TableMap, at: Position) -> Choice | None:
        """What to do with the rows of a table as its table map describes it; None: pass over them.

        Args:
            at: a place in the transaction that they belong to, with that transaction.
        """

    def reject(self, table: int, problem: TableProblem) -> None:
        """The rows of a chosen table cannot be read; they are passed over from here on."""

    def distrust(self, problem: TableProblem) -> None:
        """Rows of tables that nobody knows are missing: every table must be copied afresh."""


@dataclass(frozen=True)
class Statement:
    """A statement that was committed between batches, with the position behind it."""

    query: Query
    position: Position
    commit_us: int


@dataclass(frozen=True)
class Idle:
    """Nothing came for a moment; the position behind what was read so far."""

    position: Position


Item = Batch | Statement | Idle
