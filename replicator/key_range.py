"""Ranges of a source table's keys, read page by page without locks: rows as COPY tuples, with their keys.

Owns the paging and the waiting until a read cannot miss what the stream has brought already. Writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.changes import ChangeBuffer
from replicator.errors import SchemaChanged, SourceUnavailable
from replicator.key_order import Key, KeyOrder
from replicator.multiset import pack
from replicator.plan import Plans
from replicator.position import Position
from replicator.quarantine import Poison
from replicator.read_view import ReadView
from replicator.result import PreparedSelect, ResultReader, as_selected, limit_parameter, quote_table, select_list
from replicator.source import Source, SourceTable, wrap_errors

_LOOK_S = 0.01
# of the field that a row's hash is
_HASH_BYTES = 12
_LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Block:
    """Some rows of a range, in key order.

    Attributes:
        tuples: uint8, their COPY tuples one after another. starts: (n + 1,) int64, where each begins, and the end.
        seq_at: (n,) int64, where in tuples the value of _seq is; see decode.number_tuples.
        keys: uint8, their key fields as COPY has them. key_starts: (n + 1,) int64. hashes: (n,) int64, of the key fields.
        raw_rows: how many have a _raw.
        last: the last row's key; reading goes on behind it. (): a part of a block, whose rest has it, or a table without an
            order.
        set_aside: rows that cannot be represented, which are not among the others.
    """

    tuples: NDArray[np.uint8]
    starts: NDArray[np.int64]
    seq_at: NDArray[np.int64]
    keys: NDArray[np.uint8]
    key_starts: NDArray[np.int64]
    hashes: NDArray[np.int64]
    raw_rows: int
    last: Key
    set_aside: tuple[Poison, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows there are to write."""
        return len(self.seq_at)

    @property
    def rows_read(self) -> int:
        """How many rows were read."""
        return len(self.seq_at) + len(self.set_aside)

    def cut(self, rows: int) -> tuple[Block, Block]:
        """The first so many rows, and the others; raw_rows and set_aside are the others'."""
        at, key_at = self.starts[rows], self.key_starts[rows]
        head = Block(
            self.tuples[:at], self.starts[: rows + 1], self.seq_at[:rows], self.keys[:key_at], self.key_starts[: rows + 1],
            self.hashes[:rows], 0, (),
        )  # fmt: skip
        tail = Block(
            self.tuples[at:], self.starts[rows:] - at, self.seq_at[rows:] - at, self.keys[key_at:],
            self.key_starts[rows:] - key_at, self.hashes[rows:], self.raw_rows, self.last, self.set_aside,
        )  # fmt: skip
        return head, tail


class RangeReader(ResultReader):
    """Reads ranges of one table.

    Args:
        source: for questions; a connection of its own is opened for the rows.
        table: as the source describes it now.
        order: of its key; None: it has none that can be followed, so a read takes the whole table in one SELECT.
        block_rows: how many rows a block has at most; it also ends after about a megabyte.
        should_stop: asked while nothing comes; reading ends early where it is true.
        view: what to read as of its position, on its connection, once.

    Raises:
        SourceUnavailable: the connection broke.
        SchemaChanged: the table is no longer as described.
        TableProblem: a row cannot be represented.
    """

    def __init__(
        self, source: Source, table: SourceTable, order: KeyOrder | None, block_rows: int = 1 << 30,
        should_stop: Callable[[], bool] = lambda: False, view: ReadView | None = None,
    ) -> None:  # fmt: skip
        self._source, self._table, self._order = source, table, order
        self._block_rows, self._should_stop = block_rows, should_stop
        self._columns = tuple(map(as_selected, table.columns))
        self._is_key = np.array([i in table.key for i in range(len(table.columns))], np.uint8)
        self._plans = Plans(source.charsets())
        self._plan = self._plans.add(self._columns, table.key, wanted=True, table=0)
        self._changes = ChangeBuffer(0)
        self.raw_rows, self._set_aside = 0, []
        self._selects: dict[tuple[int, int, str], PreparedSelect] = {}
        self._is_described = False
        self._connection = source.open() if view is None else view.connection
        if view is None:
            with wrap_errors("cannot prepare to read"):
                self._connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def read(self, after: Key, upto: Key, limit: int, *, inclusive: bool = False) -> Iterator[Block]:
        """Up to `limit` rows of the keys behind `after` and not behind `upto`, in one SELECT.

        Args:
            after, upto: a key, its first values, or () for the table's beginning and end.
            inclusive: rows with the key `after` belong to it.
        """
        if self._order is not None and not self._order.is_faithful(self._source, after):
            raise SourceUnavailable(f"a key of {self._table.name} does not come back from the server as it was handed over")
        sign = ">=" if inclusive else ">"
        select = self._selects.get((len(after), len(upto), sign))
        if select is None:
            text = self._whole_text() if self._order is None else self._text(self._order, len(after), len(upto), sign)
            select = PreparedSelect(self._connection, text, self._table.name)
            self._selects[len(after), len(upto), sign] = select
        parameters = []
        if self._order is not None:
            parameters = [*self._order.parameters(after), *self._order.parameters(upto), limit_parameter(limit)]
        packets = select.execute(parameters)
        self._check_described()
        for found in self._walk(packets, self._block_rows):
            if found is not None:
                yield self._block(*found)
            if self._should_stop():
                return
        # A transaction that stays open would keep the table from being altered.
        with wrap_errors("cannot end a read"):
            self._connection.query("COMMIT")

    def _text(self, order: KeyOrder, after: int, upto: int, sign: str) -> str:
        conditions = [order.condition(after, sign)] if after else []
        if upto:
            conditions.append(order.condition(upto, "<="))
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        force = " FORCE INDEX (PRIMARY)" if order.is_primary else ""
        return (
            f"SELECT {select_list(self._table)} FROM {quote_table(self._table.name)}{force}{where}"  # noqa: S608 - quoted
            f" ORDER BY {order.order_by} LIMIT ?"
        )

    def _check_described(self) -> None:
        """The result's columns are those of the description, or were altered in between and this time it is seen."""
        if not self._is_described:
            if self._source.describe(self._table.name) != self._table:
                raise SchemaChanged("the source's table was altered while its copy began")
            self._is_described = True

    def _block(self, rows: NDArray[np.void], out: NDArray[np.uint8], raw: NDArray[np.bool_]) -> Block:
        count, size = len(rows), int(rows["image_bytes"].sum())
        tuples, keys = np.empty(size, np.uint8), np.empty(size, np.uint8)
        starts, key_starts = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
        seq_at, hashes = np.empty(count, np.int64), np.empty(count, np.int64)
        decode.index_tuples(rows, out, self._is_key, tuples, starts, seq_at, keys, key_starts, hashes)
        if not self._table.key:
            # the row's hash is behind every row
            tuples = np.frombuffer(pack(np.arange(count), rows, out, len(self._columns)), np.uint8)
            starts += _HASH_BYTES * np.arange(count + 1)
            seq_at += _HASH_BYTES * np.arange(count)
        last = () if self._order is None else self._order.take(self._last_row, self._columns)
        aside = tuple(self.take_set_aside())
        return Block(tuples, starts, seq_at, keys[: key_starts[-1]].copy(), key_starts, hashes, int(raw.sum()), last, aside)

    # ------------------------------------------------------------------------------------------------ what a read sees
    def wait_until_visible(self, position: Position, noted_at: float) -> None:
        """Return once the next read sees every transaction up to a position; see Source.shows.

        Args:
            noted_at: when the position was reached, in time.monotonic() seconds.

        Raises:
            SourceUnavailable: it takes too long.
        """
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not self._source.shows(position, noted_at) and not self._should_stop():
            if time.monotonic() > deadline:
                raise SourceUnavailable("the source does not show what is in its binlog", position=position)
            time.sleep(_LOOK_S)
