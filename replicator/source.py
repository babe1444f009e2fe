"""The source's server, seen over an ordinary connection: who it is, where it stands, which tables it has.

The only file beside stream.py that opens MySQL; the border where PyMySQL's errors become ours.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pymysql
import pymysql.cursors

from replicator.charsets import Charsets
from replicator.errors import PositionLost, ServerIdTaken, SourceRefused, SourceUnavailable
from replicator.liveness import Connection, Liveness
from replicator.position import Flavor, GtidSet, Position, parse_gtids
from replicator.typemap import BINARY, INET_WIDTHS, KINDS, UUID_WIDTH, Column, Kind
from warehouse.errors import TailraceError
from warehouse.settings import SourceSettings

# Error numbers: MySQL manual, "Server Error Message Reference" and "Client Error Message Reference".
_REFUSED = frozenset({1044, 1045, 1049, 1129, 1130, 1142, 1143, 1227, 1370, 1698, 3118})
_LOST = frozenset({1236})
_PARSE_ERROR = 1064
# Without GTIDs nothing says what a read sees.
_SETTLED_S = 2.0

VERSIONED = "SYSTEM VERSIONED"
MIRRORED = ("BASE TABLE", VERSIONED)
_HIDDEN_PERIOD = tuple(
    Column(name, Kind.TIMESTAMP, scale=6, source_type="timestamp(6)", generated=True, row_end=name == "row_end")
    for name in ("row_start", "row_end")
)

LOST_HINT = "The mirror stays readable. SELECT resync_source(...) begins anew; first see operations.md, 'PositionLost'."
_OLD_LAYOUT = "/* mariadb-5.3 */"
_OLD_KINDS = {Kind.TIME: Kind.OLD_TIME, Kind.DATETIME: Kind.OLD_DATETIME, Kind.TIMESTAMP: Kind.OLD_TIMESTAMP}
_LABEL = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True)
class SourceTable:
    """A table as information_schema describes it now.

    Attributes:
        name: database.table.
        columns: all columns, invisible ones too, in the source's order.
        key: positions of the columns of the primary key, or else of a unique key without NULLs; empty without either.
        table_type: "BASE TABLE", or what else it is: a view, a sequence; "SYSTEM VERSIONED" of MariaDB.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    table_type: str = "BASE TABLE"


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Turn PyMySQL's and the socket's errors into ours."""
    try:
        yield
    except pymysql.err.MySQLError as error:
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        text = str(error.args[1] if len(error.args) > 1 else error).strip()
        raise error_for(number, text, what) from None
    except (OSError, EOFError) as error:
        raise SourceUnavailable(f"{what}: {error or type(error).__name__}") from None


def error_for(number: int, text: str, what: str) -> TailraceError:
    """The error for a number and text of the server."""
    if number in _LOST and "same server_uuid/server_id" in text:
        return ServerIdTaken(f"{what}: {text}", hint="Set source.server_id to a number that no other replica has.")
    if number in _LOST:
        return PositionLost(f"{what}: {text}", hint=LOST_HINT)
    if number in _REFUSED:
        return SourceRefused(f"{what}: {text}", hint="`replicator check` prints the grants that are needed.", error=number)
    return SourceUnavailable(f"{what}: {text}", error=number or None)


class Source:
    """A connection for questions, opened when first needed and again after it broke.

    Attributes:
        server: host and port of the server that is asked and read; one of settings.servers.
        reader: what this replica calls itself at the server; see `replica_uuid`.
        stopping: whether somebody asked to stop, for what may wait long.
        liveness: what the stream's connection shows while an answer is waited for; another thread's Source shares it.
    """

    def __init__(self, settings: SourceSettings, reader: str = "") -> None:
        self.settings, self.reader = settings, reader
        self.server = settings.servers[0]
        self.stopping: Callable[[], bool] = lambda: False
        self.liveness = Liveness()
        self._connection: pymysql.Connection[Any] | None = None
        # The stream's thread asks about tables that it meets, while the main one asks for copies.
        self._lock = threading.RLock()
        self._charsets: Charsets | None = None

    @property
    def server_name(self) -> str:
        """The server as people read it."""
        return f"{self.server[0]}:{self.server[1]}"

    def use(self, server: tuple[str, int]) -> None:
        """Ask and read this server from now on."""
        if server != self.server:
            self.close()
            self.server = server

    def another(self) -> Source:
        """The same server over a connection of its own, for another thread."""
        other = Source(self.settings, self.reader)
        other.server, other.liveness = self.server, self.liveness
        return other

    @property
    def replica_uuid(self) -> str:
        """The same for every run of one replicator, so that the server ends what is left of a former connection of it."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"tailrace {self.reader} {self.settings.name}"))

    @property
    def replica_name(self) -> str:
        """The host name under which the server lists this replica; MariaDB knows no uuids."""
        return f"tailrace-{self.replica_uuid[:8]}"

    def connection_arguments(self) -> dict[str, Any]:
        """PyMySQL's arguments; they hold the password."""
        settings = self.settings
        arguments: dict[str, Any] = {
            "host": self.server[0],
            "port": self.server[1],
            "user": settings.user,
            "password": settings.read_password(),
            "connect_timeout": max(1, round(settings.connect_timeout_s)),
            "charset": "utf8mb4",
            "autocommit": True,
        }
        if settings.tls == "off":
            return arguments | {"ssl_disabled": True}
        context = ssl.create_default_context(cafile=None if settings.tls_ca is None else str(settings.tls_ca))
        if settings.tls == "required":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return arguments | {"ssl": context}

    def open(self) -> Connection:
        """A new connection of its own, in UTC.

        Raises:
            SourceUnavailable, SourceRefused: it cannot be had.
        """
        with wrap_errors(f"cannot connect to {self.server_name}"):
            arguments = self.connection_arguments()
            # A server that takes a connection and stays silent is not worth as long a wait as a question.
            connection = Connection(**arguments, read_timeout=arguments["connect_timeout"], write_timeout=60)
            connection.liveness = self.liveness
            # What the server was told to do for everybody must not pad, cut or stop what is read here.
            connection.query(
                "SET SESSION time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES', sql_select_limit = 18446744073709551615"
                "/*!80000 , max_execution_time = 0 *//*M! , max_statement_time = 0 */"
            )
            connection._read_timeout = 60
            return connection

    def query(self, text: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement; threads that share the connection ask one after another."""
        with self._lock:
            if self._connection is None:
                self._connection = self.open()
            try:
                with wrap_errors("the source refused a question"), self._connection.cursor() as cursor:
                    cursor.execute(text, arguments or None)
                    return list(cursor.fetchall())
            except SourceUnavailable:
                self.close()
                raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None and connection.open:
            with wrap_errors("closing"):
                connection.close()

    def variables(self) -> Mapping[str, str]:
        """The server's global variables, by lower-case name."""
        return {name.lower(): value for name, value in self.query("SHOW GLOBAL VARIABLES")}

    @property
    def version(self) -> str:
        """The server's version as it says it."""
        return str(self.query("SELECT VERSION()")[0][0])

    @property
    def flavor(self) -> Flavor:
        """Which kind of GTIDs and of SHOW statements it has."""
        return "mariadb" if "mariadb" in self.version.lower() else "mysql"

    def identity(self) -> str:
        """What tells this server from another: the uuid, or MariaDB's domain and server id."""
        if self.flavor == "mysql":
            return str(self.query("SELECT @@server_uuid")[0][0])
        return "-".join(str(part) for part in self.query("SELECT @@gtid_domain_id, @@server_id")[0])

    def has_gtids(self) -> bool:
        """True where transactions have GTIDs; MariaDB always has them."""
        return self.flavor == "mariadb" or str(self.query("SELECT @@gtid_mode")[0][0]) == "ON"

    def position(self) -> Position:
        """The end of the last committed transaction.

        Raises:
            SourceRefused: the binlog is off, or the right REPLICATION CLIENT is missing.
        """
        flavor = self.flavor
        rows = self._binlog_status()
        if not rows:
            raise SourceRefused("the source writes no binlog", hint="Start it with log_bin.")
        file, pos = str(rows[0][0]), int(rows[0][1])
        if flavor == "mariadb":
            text = self.query("SELECT BINLOG_GTID_POS(%s, %s)", (file, pos))[0][0]
            return Position(file, pos, parse_gtids(str(text or ""), flavor))
        return Position(file, pos, GtidSet.parse(str(rows[0][4])) if self.has_gtids() else None)

    def _binlog_status(self) -> list[tuple[Any, ...]]:
        # MySQL 8.2 renamed the statement, MySQL 8.4 removed the old name; MariaDB only has the old one.
        if self.flavor == "mysql" and tuple(int(n) for n in re.findall(r"\d+", self.version)[:2]) >= (8, 2):
            return self.query("SHOW BINARY LOG STATUS")
        return self.query("SHOW MASTER STATUS")

    def shows(self, position: Position, noted_at: float) -> bool:
        """Whether what is read from now on has every transaction up to a position of this server's binlog.

        A transaction is in the binlog, and may come by the stream, before its rows can be read. MySQL takes it into
        gtid_executed after that; MariaDB says for a consistent snapshot where in the binlog it stands, and keeps the two
        together. A MySQL server without GTIDs says nothing: there the position must be a few seconds old.

        Args:
            noted_at: when the position was reached, or later, in time.monotonic() seconds.
        """
        if isinstance(position.gtids, GtidSet):
            return GtidSet.parse(str(self.query("SELECT @@global.gtid_executed")[0][0])).covers(position.gtids)
        if self.flavor != "mariadb":
            return time.monotonic() - noted_at > _SETTLED_S
        # MariaDB knowledge base, "START TRANSACTION WITH CONSISTENT SNAPSHOT": these two are the position of what is seen.
        with self._lock:
            self.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            try:
                status = {str(name).lower(): str(value) for name, value in self.query("SHOW STATUS LIKE 'binlog_snapshot%'")}
            finally:
                self.query("COMMIT")
        file, pos = status.get("binlog_snapshot_file", ""), int(status.get("binlog_snapshot_position") or 0)
        stands = self.query("SELECT BINLOG_GTID_POS(%s, %s)", (file, pos))[0][0] if file else None
        # NULL: the file was rotated away in this moment
        return stands is not None and Position(file, pos, parse_gtids(str(stands), "mariadb")).covers(position)

    def inline(self, text: str, value: str | float) -> str:
        """An expression with its parameter filled in by the driver, for statements that are prepared."""
        with self._lock:
            if self._connection is None:
                self._connection = self.open()
            return str(self._connection.cursor().mogrify(text, (value,)))

    def binlog_sizes(self) -> Mapping[str, int]:
        """The bytes of every binlog file that the server has."""
        return {str(row[0]): int(row[1]) for row in self.query("SHOW BINARY LOGS")}

    def charsets(self) -> Charsets:
        """The server's character sets."""
        if self._charsets is None:
            names = {int(row[0]): str(row[1]) for row in self.query(
                "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL"
                " AND CHARACTER_SET_NAME IS NOT NULL"
            )}  # fmt: skip
            if self.flavor == "mariadb":
                names |= self._shared_collations()
            single = self.query("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS WHERE MAXLEN = 1")
            wanted = {str(row[0]) for row in single} - {BINARY, "ascii"}
            self._charsets = Charsets(names, _CharacterTables(self, frozenset(wanted)))
        return self._charsets

    def _shared_collations(self) -> Mapping[int, str]:
        """MariaDB's collations that serve several character sets (uca1400) have a number with each, listed elsewhere."""
        known = "information_schema.COLUMNS WHERE TABLE_SCHEMA = 'information_schema'"
        table = "COLLATION_CHARACTER_SET_APPLICABILITY"
        if not self.query(f"SELECT 1 FROM {known} AND TABLE_NAME = %s AND COLUMN_NAME = 'ID'", (table,)):  # noqa: S608 - constants
            return {}
        rows = self.query(f"SELECT ID, CHARACTER_SET_NAME FROM information_schema.{table} WHERE ID IS NOT NULL")  # noqa: S608
        return {int(number): str(charset) for number, charset in rows}

    def table_names(self) -> list[str]:
        """All base tables, as database.table."""
        rows = self.query("SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE IN %s", (MIRRORED,))
        return [f"{database}.{table}" for database, table in rows]

    def describe(self, name: str) -> SourceTable | None:
        """A table's columns and key now; None where there is no such table (or no right to see it)."""
        database, _, table = name.partition(".")
        rows = self.query(
            "SELECT (SELECT TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s),"
            " COLUMN_NAME, LOWER(DATA_TYPE), COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_OCTET_LENGTH,"
            " NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, GENERATION_EXPRESSION > '',"
            " GENERATION_EXPRESSION = 'ROW END' FROM information_schema.COLUMNS"
            " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION",
            (database, table) * 2,
        )
        if not rows:
            return None
        columns = tuple(_column(*row[1:]) for row in rows)
        table_type, has_end = str(rows[0][0]), any(column.row_end for column in columns)
        if table_type == VERSIONED and not has_end:
            # the server's own, which it lists nowhere but in the binlog
            columns += _HIDDEN_PERIOD
        keys: dict[str, list[tuple[str, str]]] = {}
        for index, column, nullable in self.query(
            "SELECT INDEX_NAME, COLUMN_NAME, NULLABLE FROM information_schema.STATISTICS"
            " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0"
            " ORDER BY INDEX_NAME = 'PRIMARY' DESC, INDEX_NAME, SEQ_IN_INDEX",
            (database, table),
        ):
            keys.setdefault(index, []).append((column, nullable))
        names = [column.name for column in columns]
        for parts in keys.values():
            if all(column is not None and nullable != "YES" for column, nullable in parts):
                key = tuple(names.index(column) for column, _ in parts)
                if table_type == VERSIONED and not has_end:
                    key += (len(columns) - 1,)
                return SourceTable(name, columns, key, table_type)
        return SourceTable(name, columns, (), table_type)


def _column(
    name: str, data_type: str, column_type: str, charset: str | None, octets: int | None,
    precision: int | None, scale: int | None, fraction: int | None, generated: int | None, row_end: int | None,
) -> Column:  # fmt: skip
    kind = KINDS.get(data_type, Kind.UNSUPPORTED)
    # MariaDB marks the columns that still have the layout of its version 5.3.
    if _OLD_LAYOUT in column_type and kind in _OLD_KINDS:
        kind = _OLD_KINDS[kind] if not fraction else Kind.UNSUPPORTED
    # Labels in the character set "binary" are bytes, and only the column's values bring them unchanged.
    if kind in (Kind.ENUM, Kind.SET) and (charset or BINARY) == BINARY:
        kind = Kind.BYTES
    width = {Kind.BIT: precision, Kind.UUID: UUID_WIDTH, Kind.INET: INET_WIDTHS.get(data_type)}.get(kind)
    if data_type == "binary":
        width = octets
    return Column(
        name,
        kind,
        unsigned="unsigned" in column_type.lower(),
        charset=BINARY if kind is Kind.BYTES else str(charset or ""),
        width=int(width or 0),
        precision=int(precision or 0) if kind is Kind.DECIMAL else 0,
        scale=int((scale if kind is Kind.DECIMAL else fraction) or 0),
        length_bytes=(int(precision or 0) + 7) // 8 if kind is Kind.BIT else 0,
        labels=tuple(label.replace("''", "'") for label in _LABEL.findall(column_type))
        if kind in (Kind.ENUM, Kind.SET)
        else (),
        source_type=column_type,
        generated=bool(generated),
        row_end=bool(row_end),
    )


class _CharacterTables(Mapping[str, Sequence[str]]):
    """Tables of the single-byte character sets, asked of the server when first needed."""

    def __init__(self, source: Source, names: frozenset[str]) -> None:
        self._source, self._names = source, names
        self._known: dict[str, Sequence[str]] = {}

    def __contains__(self, charset: object) -> bool:
        return charset in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, charset: str) -> Sequence[str]:
        if charset not in self._names:
            raise KeyError(charset)
        if charset not in self._known:
            # The names come from information_schema and are plain words; an introducer cannot be a parameter.
            assert charset.isalnum()
            parts = ", ".join(f"CONVERT(_{charset} X'{byte:02X}' USING utf8mb4)" for byte in range(256))
            row = self._source.query(f"SELECT {parts}")[0]
            # The server answers "?" for a byte without a character.
            self._known[charset] = [
                "" if text is None or (text == "?" and byte != 0x3F) else text for byte, text in enumerate(row)
            ]
        return self._known[charset]
