"""The source's server, seen over an ordinary connection: who it is, where it stands, which tables it has.

The only file beside dump.py that opens MySQL; the border where PyMySQL's errors become ours.
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
from replicator.information_schema import COLUMNS_OF_TABLE, HIDDEN_PERIOD, INDEXES_OF_TABLE, parse_columns, parse_key
from replicator.liveness import Connection, Liveness
from replicator.position import Flavor, GtidSet, Position, parse_gtids
from replicator.source_charsets import read_charsets
from replicator.typemap import Column
from warehouse.errors import TailraceError
from warehouse.settings import SourceSettings

# Error numbers: MySQL manual, "Server Error Message Reference" and "Client Error Message Reference".
_REFUSED = frozenset({1044, 1045, 1049, 1129, 1130, 1142, 1143, 1227, 1370, 1698, 3118})
_LOST = frozenset({1236})
# MariaDB has a number of its own for it.
_SAME_ID = frozenset({1236, 4052})
_PARSE_ERROR = 1064
# Without GTIDs nothing says what a read sees.
_SETTLED_S = 2.0

VERSIONED = "SYSTEM VERSIONED"
MIRRORED = ("BASE TABLE", VERSIONED)
LOST_HINT = "The mirror stays readable. SELECT resync_source(...) begins anew; first see operations.md, 'PositionLost'."


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
    if number in _SAME_ID and "same server_uuid/server_id" in text:
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
        # What the server of this connection said; behind the next one there may be another server.
        self._version: str | None = None
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
            connection, self._connection, self._version = self._connection, None, None
        if connection is not None and connection.open:
            with wrap_errors("closing"):
                connection.close()

    def variables(self) -> Mapping[str, str]:
        """The server's global variables, by lower-case name."""
        return {name.lower(): value for name, value in self.query("SHOW GLOBAL VARIABLES")}

    @property
    def version(self) -> str:
        """The server's version as it says it; asked once over each connection."""
        with self._lock:
            if self._version is None:
                self._version = str(self.query("SELECT VERSION()")[0][0])
            return self._version

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
            self._charsets = read_charsets(self.query, self.flavor)
        return self._charsets

    def table_names(self) -> list[str]:
        """All base tables, as database.table."""
        rows = self.query("SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE IN %s", (MIRRORED,))
        return [f"{database}.{table}" for database, table in rows]

    def describe(self, name: str) -> SourceTable | None:
        """A table's columns and key now; None where there is no such table (or no right to see it)."""
        database, _, table = name.partition(".")
        rows = self.query(COLUMNS_OF_TABLE, (database, table) * 2)
        if not rows:
            return None
        table_type, columns = str(rows[0][0]), parse_columns(rows)
        # what the server lists nowhere but in the binlog
        hidden = HIDDEN_PERIOD if table_type == VERSIONED and not any(column.row_end for column in columns) else ()
        columns += hidden
        key = parse_key(self.query(INDEXES_OF_TABLE, (database, table)), columns)
        if hidden and key:
            key += (len(columns) - 1,)
        return SourceTable(name, columns, key, table_type)
