"""Private MySQL, MariaDB and Postgres servers on 127.0.0.1, for the demo, the tests and the benches.

Owns: each server's own options, making its data folder, asking whether it answers; the command `python -m demo.servers`.
Never: listens on another address, puts a password on a command line or in a log.

    programs = provide(["mysql", "postgres"], cache_folder(), print)
    with MySQLServer(programs, Path("source")) as source, PostgresServer(programs, Path("target")) as target: ...
"""

import argparse
import os
import signal
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import psycopg
import pymysql

from demo import folders
from demo.process import Server, ServerFailed
from demo.programs import NAMES, Programs, ProgramsMissing, cache_folder, provide

__all__ = [
    "MariaDBServer",
    "MySQLServer",
    "PostgresServer",
    "Programs",
    "ProgramsMissing",
    "Server",
    "ServerFailed",
    "cache_folder",
    "provide",
]


class _SourceServer(Server):
    """What MySQL and MariaDB have in common: binary log with whole rows and full metadata, root with a random password."""

    user: ClassVar[str] = "root"
    program_name: ClassVar[str]

    def _socket_name(self) -> str:
        return "server.sock"

    def _base_options(self) -> dict[str, str]:
        """Return the options that say where the programs' own files lie."""
        # A MariaDB that starts removes what it takes for leftovers in its folder for temporary files: never a shared one.
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        options = {"no_defaults": "", "tmpdir": str(temporary)}
        tree = self.program.tree
        if tree is not None:
            options |= {
                "basedir": str(tree / "usr"),
                "lc_messages_dir": str(tree / "usr/share/mysql"),
                "character_sets_dir": str(tree / "usr/share/mysql/charsets"),
                "plugin_dir": str(tree / "usr/lib/mysql/plugin"),
            }
        if os.geteuid() == 0:
            options["user"] = "root"
        return options

    def _server_options(self) -> dict[str, str]:
        return {
            "datadir": str(self.data),
            "bind_address": self.host,
            "port": str(self.port),
            "socket": str(self.socket),
            "pid_file": str(self.folder / "server.pid"),
            "log_bin": "binlog",
            # the same for a folder every time, and different between folders
            "server_id": str(zlib.crc32(os.fsencode(self.folder)) | 1),
            "binlog_format": "ROW",
            "binlog_row_image": "FULL",
            "binlog_row_metadata": "FULL",
            "sync_binlog": "1",
            "innodb_flush_log_at_trx_commit": "1",
            "innodb_buffer_pool_size": "128M",
            "max_connections": "200",
            "local_infile": "ON",
            "character_set_server": "utf8mb4",
            "default_time_zone": "+00:00",
        }

    def _command(self) -> list[str]:
        options = self._base_options() | self._server_options() | self.options
        if not self._owned.exists():
            options["init_file"] = str(self._write_init_file())
        return [*self.program.command(self.program_name), *_write_options(options)]

    @property
    def _owned(self) -> Path:
        """A file that says that root has its password."""
        return self.data / "root-has-password"

    def _write_init_file(self) -> Path:
        path = self.folder / "init.sql"
        lines = ["SET SESSION sql_log_bin = 0;"]
        for host in ("localhost", self.host):
            lines += [
                f"CREATE USER IF NOT EXISTS 'root'@'{host}';",
                f"ALTER USER 'root'@'{host}' IDENTIFIED BY '{self.password}';",
                f"GRANT ALL ON *.* TO 'root'@'{host}' WITH GRANT OPTION;",
            ]
        self._write_private(path, "\n".join(lines) + "\n")
        return path

    def _ask(self) -> None:
        connection = pymysql.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, connect_timeout=5, read_timeout=20
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def _after_start(self) -> None:
        self._owned.touch()
        (self.folder / "init.sql").unlink(missing_ok=True)


class MySQLServer(_SourceServer):
    """A private MySQL 9 with GTIDs; `options={"gtid_mode": "OFF"}` turns them off."""

    name: ClassVar[str] = "mysql"
    program_name: ClassVar[str] = "mysqld"

    def _base_options(self) -> dict[str, str]:
        return super()._base_options() | {"secure_file_priv": "NULL", "mysqlx": "OFF"}

    def _server_options(self) -> dict[str, str]:
        gtid_mode = self.options.get("gtid_mode", "ON").upper()
        return super()._server_options() | {
            "gtid_mode": gtid_mode,
            "enforce_gtid_consistency": "OFF" if gtid_mode == "OFF" else "ON",
        }

    def _initialise(self, data: Path) -> None:
        # root has no password until the first start sets it from the init file, before the server takes connections
        options = self._base_options() | {"initialize_insecure": "", "datadir": str(data)}
        options |= {key: value for key, value in self.options.items() if key == "lower_case_table_names"}
        self._run([*self.program.command(self.program_name), *_write_options(options)])


class MariaDBServer(_SourceServer):
    """A private MariaDB 10.11 or later (its GTIDs cannot be turned off)."""

    name: ClassVar[str] = "mariadb"
    program_name: ClassVar[str] = "mariadbd"

    def _initialise(self, data: Path) -> None:
        # What mariadb-install-db does, without its search for programs in the system's folders.
        share = (self.program.tree or Path("/")) / "usr/share/mysql"
        scripts = [
            "mysql_system_tables.sql",
            "mysql_performance_tables.sql",
            "mysql_system_tables_data.sql",
            "mysql_sys_schema.sql",
        ]
        options = self._base_options() | {
            "bootstrap": "",
            "datadir": str(data),
            "log_warnings": "0",
            "max_allowed_packet": "8M",
        }
        options |= {key: value for key, value in self.options.items() if key == "lower_case_table_names"}
        with tempfile.TemporaryFile() as script:
            script.write(b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL, @skip_auth_anonymous = 1;\n")
            for name in scripts:
                try:
                    script.write((share / name).read_bytes() + b"\n")
                except OSError as error:
                    raise ServerFailed(f"{error.filename}: {error.strerror}; MariaDB's files are not whole") from error
            # the script also makes root accounts without a password for other names of the machine
            script.write(b"DELETE FROM global_priv WHERE User = 'root' AND Host <> 'localhost';\n")
            script.seek(0)
            self._run([*self.program.command(self.program_name), *_write_options(options)], script)


class PostgresServer(Server):
    """A private Postgres; `options` are settings of postgresql.conf.

    When the caller is root it runs as the account "postgres" (else "nobody"), since Postgres refuses root. A folder that this
    account cannot enter becomes a link to one below /var/tmp; see `demo.folders`.
    """

    name: ClassVar[str] = "postgres"
    user: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": open transactions are rolled back

    def __init__(
        self, programs: Programs, folder: Path, port: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.account = folders.find_account()
        super().__init__(programs, folder, port, options)
        if self.account is not None:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
            os.chown(self.socket.parent, self.account.pw_uid, self.account.pw_gid)

    def _socket_name(self) -> str:
        return f".s.PGSQL.{self.port}"

    def _initialise(self, data: Path) -> None:
        self.password  # noqa: B018 - makes the file that initdb reads
        self._run(
            [
                *self.program.command("initdb"), "--pgdata", str(data), "--username", self.user, "--auth", "scram-sha-256",
                "--pwfile", str(self.folder / "password"), "--encoding", "UTF8", "--locale", "C.UTF-8",
            ]
        )  # fmt: skip

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket.parent),
            "fsync": "on",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "max_connections": "100",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
        } | self.options
        settings = [f"--{key}={value}" for key, value in options.items()]
        return [*self.program.command("postgres"), "-D", str(self.data), *settings]

    def _ask(self) -> None:
        with psycopg.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, dbname="postgres", connect_timeout=5
        ) as connection:
            connection.execute("SELECT 1")


def _write_options(options: Mapping[str, str]) -> list[str]:
    """Write server options as arguments; an empty value means the bare option."""
    return [f"--{key.replace('_', '-')}={value}" if value else f"--{key.replace('_', '-')}" for key, value in options.items()]


def _provide_and_tell(names: list[str]) -> int:
    try:
        programs = provide(names, cache_folder(), lambda line: print(line, flush=True))
    except ProgramsMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for name in dict.fromkeys(names):
        program = programs.get(name)
        print(f"{name} {program.version} in {program.tree or program.folder}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m demo.servers provide NAME...`: find server programs or fetch them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.servers", description="Private servers for the demo and the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("provide", help="find server programs on this machine or fetch them")
    command.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    return _provide_and_tell(parser.parse_args(arguments).names)


if __name__ == "__main__":
    sys.exit(main())
