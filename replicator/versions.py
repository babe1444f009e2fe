"""System-versioned tables of MariaDB: the binlog has the history of a table beside the rows that it has now.

A row that is there now ends, in its row_end, at the last moment that a TIMESTAMP can have. An update of such a row is logged as
that, and as the insertion of a row with the old values and an end; a deletion as an update that sets the end; DELETE HISTORY as
deletions. The mirror has the rows that are there now, with their period; its key has row_end in it, as the source's has.
Owns telling them apart. Pure.

Source: MariaDB knowledge base, "System-Versioned Tables"; binlogs of MariaDB 10.11.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.mirror import MirrorTable

# 2038-01-19 03:14:07.999999, and since MariaDB 11.5 2106-02-07 06:28:15.999999, as Postgres has them.
_NEVER = tuple((seconds - decode.POSTGRES_EPOCH_S) * 1_000_000 + 999_999 for seconds in (0x7FFFFFFF, 0xFFFFFFFF))
_NOTHING = 0

Rows = NDArray[np.int64]


def pass_over_history(
    changes: NDArray[np.void], keys: NDArray[np.uint8], out: NDArray[np.uint8], tables: Rows, known: Sequence[MirrorTable]
) -> None:
    """Leave of the changes of versioned tables what they do to the rows that are there now.

    Args:
        changes: (n,) decode.CHANGE, modified in place; what is passed over has op 0. keys, out: what they point into.
        tables: (n,) int64, the number of each change's table. known: all tables, by number.
    """
    for table in known:
        if table.row_end is None:
            continue
        rows = np.nonzero((tables == table.number) & (changes["op"] > 0))[0]
        if len(rows):
            _pass_over(changes, keys, out, rows, table)


def _pass_over(
    changes: NDArray[np.void], keys: NDArray[np.uint8], out: NDArray[np.uint8], rows: Rows, table: MirrorTable
) -> None:
    ops = changes["op"][rows]
    if not table.key:
        field = [column["name"] for column in table.columns].index(str(table.row_end))
        gone = rows[~_is_now(out, changes["image"][rows] + 2, field)]
        ended = rows[:0]
    else:
        in_key = [column["name"] for column in table.columns if column["name"] in table.key]
        field = in_key.index(str(table.row_end))
        was, now = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        before, after = ops != decode.INSERT, ops != decode.DELETE
        was[before] = _is_now(keys, changes["old_key"][rows[before]], field)
        now[after] = _is_now(keys, changes["key"][rows[after]], field)
        gone, ended = rows[~was & ~now], rows[was & ~now & after]
        changes["op"][rows[now & ~was]] = decode.INSERT
    changes["op"][ended] = decode.DELETE
    changes["op"][gone] = _NOTHING
    for each in (ended, gone):
        changes["image_bytes"][each] = changes["hard_bytes"][each] = 0


def _is_now(data: NDArray[np.uint8], at: Rows, field: int) -> NDArray[np.bool_]:
    """Whether the COPY field with this number, of fields that begin at `at`, is the end of a row that is there now."""
    at = at.copy()
    for _ in range(field):
        size = _read(data, at, 4)
        at += 4 + np.where(size < 1 << 31, size, 0)
    found: NDArray[np.bool_] = (_read(data, at, 4) == 8) & np.isin(_read(data, at + 4, 8), _NEVER)
    return found


def _read(data: NDArray[np.uint8], at: Rows, size: int) -> Rows:
    """Integers of so many bytes, the highest first."""
    value = np.zeros(len(at), np.int64)
    for k in range(size):
        value = (value << 8) | data[np.minimum(at + k, len(data) - 1)]
    return value
