"""The source's side of a comparison: the rows of one table, range by range, in the order of the source's own key.

Owns the connection that they are read on, and what a range of keys is. Compares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replicator.key_order import COMPARABLE, Key, KeyOrder
from replicator.key_range import RangeReader
from replicator.mirror import MirrorTable
from replicator.result import ResultReader
from replicator.rows import Rows
from replicator.source import Source, SourceTable

# More in one chunk would be too much memory, and more than Postgres sends in one message where rows are huge.
MOST_BYTES = 128 << 20
_ALL = 1 << 62


class ChunkTooLarge(Exception):
    """A range has more bytes than are compared at once."""


@dataclass(frozen=True)
class Span:
    """A range of keys, as the source and as the mirror take it.

    Attributes:
        after, upto: behind which key it begins and with which it ends, () at the table's ends.
        low, high: the same as COPY tuples with a number, 0 and 1; empty at the table's ends.
    """

    after: Key = ()
    upto: Key = ()
    low: bytes = b""
    high: bytes = b""


class SourceSide:
    """One table at the source.

    Args:
        source: for this object alone.
        found: the table as the source describes it.
        pause: called between blocks; raises where the work is to end.

    Attributes:
        is_key: (columns,) uint8, which columns are the key's.
        unreadable: how many rows the last read has left out, because no mirror can hold them.
    """

    def __init__(self, source: Source, found: SourceTable, pause: Callable[[], None]) -> None:
        self.source, self.found, self._pause = source, found, pause
        self.is_key = np.array([i in found.key for i in range(len(found.columns))], np.uint8)
        self.unreadable = 0
        self._order = KeyOrder.read(source, found)
        self._reader: RangeReader | None = None

    @property
    def is_paged(self) -> bool:
        """Whether the table can be read in ranges of the key."""
        return self._order is not None

    @property
    def key_order(self) -> list[str]:
        """The key's columns in the order of the index; none where the table is not read in ranges."""
        return [] if self._order is None else [column.name for column in self._order.columns]

    def is_ordered_as(self, table: MirrorTable) -> bool:
        """Whether the mirror orders the keys alike, so that a span holds the same ones on both sides."""
        if self._order is None:
            return True
        # The mirror's primary key has the columns in the table's order.
        names = [column.mirror_name for column in self._order.columns]
        return names == table.key_names and {column.kind for column in self._order.columns} <= COMPARABLE

    def read_next(self, before: Span, rows: int) -> tuple[Rows, Span]:
        """The source's next rows behind a span, and the span that they are; to the table's end where they are fewer.

        Raises:
            ChunkTooLarge: they are more than MOST_BYTES.
        """
        found, last = self._read(before.upto, (), rows)
        while not len(found) and self.unreadable == rows:
            # none of them has a key that the mirror could be asked for
            rows *= 2
            found, last = self._read(before.upto, (), rows)
        if len(found) + self.unreadable < rows or self._order is None:
            return found, Span(before.upto, (), _renumber(before.high), b"")
        end = np.array([len(found) - 1])
        return found, Span(before.upto, last, _renumber(before.high), found.keys(end, np.array([1])))

    def read_again(self, span: Span) -> Rows:
        """The source's rows of a span now.

        Raises:
            ChunkTooLarge: they are more than MOST_BYTES.
        """
        return self._read(span.after, span.upto, _ALL)[0]

    def _read(self, after: Key, upto: Key, limit: int) -> tuple[Rows, Key]:
        data, last = bytearray(), after
        self.unreadable = 0
        try:
            if self._order is None:
                reader = ResultReader(self.source, self.found, 0)
                try:
                    for _, tuples in reader.blocks():
                        self._add(data, tuples)
                    self.unreadable = len(reader.take_set_aside())
                finally:
                    reader.close()
            else:
                if self._reader is None:
                    self._reader = RangeReader(self.source, self.found, self._order, should_stop=self._interrupt)
                for block in self._reader.read(after, upto, limit):
                    self._add(data, block.tuples.data)
                    self.unreadable += len(block.set_aside)
                    last = block.last
        except BaseException:
            # the rest of the result is still on its way
            self.close()
            raise
        return Rows.parse(data, self.is_key), last

    def _interrupt(self) -> bool:
        """Asked while nothing comes; a range is read to its end, or not at all."""
        self._pause()
        return False

    def _add(self, data: bytearray, tuples: memoryview) -> None:
        data += tuples
        self._pause()
        if len(data) > MOST_BYTES:
            raise ChunkTooLarge

    def close(self) -> None:
        """Close the connection that the source's rows are read on."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _renumber(key: bytes) -> bytes:
    """A span's end as the beginning of the next one: the number is the tuple's last field."""
    return key[:-8] + bytes(8) if key else key
