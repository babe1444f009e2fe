"""COPY BINARY into Postgres: the frame around tuples, and the statements that take them.

Source: PostgreSQL manual, "COPY", binary format.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from psycopg import sql

from warehouse.db import Connection

if TYPE_CHECKING:
    from replicator.mirror import MirrorTable

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)


def copy_statement(table: MirrorTable) -> sql.Composed:
    """COPY into a mirror, columns named, because a mirror may also have columns that the source has no longer."""
    return copy_into(table.identifier, row_columns(table))


def row_columns(table: MirrorTable) -> list[str]:
    """The mirror's columns in the order in which COPY tuples have them."""
    return [*(column["mirror_name"] for column in table.columns), *table.own_columns]


def copy_into(target: sql.Identifier, columns: list[str]) -> sql.Composed:
    """COPY into these columns of a table."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, names)


def copy_tuples(conn: Connection, statement: sql.Composed, *pieces: memoryview | bytes) -> None:
    """Run one COPY with these tuples, which may come in several pieces."""
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(COPY_HEADER)
        for piece in pieces:
            copy.write(piece)
        copy.write(COPY_TRAILER)
