"""The demo's stack: two private servers, users with few rights, a settings file, and the three commands as processes.

Owns: the demo's folder, what runs from it, the order of starting and stopping. Never: leaves a process behind, puts a
password on a command line or in a log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
from psycopg import sql

from demo.fleet import MEASUREMENTS
from demo.leash import write_leash
from demo.plant import DATABASE, TABLES, Plant
from demo.servers import MariaDBServer, MySQLServer, PostgresServer, Programs, ProgramsMissing, Server, cache_folder, provide
from warehouse.db import Connection, connect
from warehouse.errors import TailraceError
from warehouse.settings import Settings
from warehouse.settings_file import load_settings

ROOT = Path(__file__).parent.parent
USER = "tailrace"
WAREHOUSE = "warehouse"
STOP_S = 20.0

Say = Callable[[str], None]


class DemoFailed(TailraceError):
    """A step of the demo did not succeed; the hint shows the end of the log of who failed."""


class ServersMissing(TailraceError):
    """Server programs are neither on this machine nor to be fetched."""

    exit_code = 3


class Stack:
    """Servers and services of one folder; a context that stops everything at its end and keeps the data.

    Args:
        folder: made where it is missing.
        source: "mysql", "mariadb", or None: MySQL where it can be had, else MariaDB; a folder keeps the one it began with.
        say: gets one plain line per step that takes time.
    """

    def __init__(self, folder: Path, source: str | None, say: Say) -> None:
        self.folder = folder.absolute()
        self._wanted = source
        self._say = say
        self._stack = contextlib.ExitStack()
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start the servers and make users, database and settings file where they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._stack:
            self._lock_folder()
            kind, programs = self._provide()
            self.programs = programs
            self._say("starting the servers")
            make = MySQLServer if kind == "mysql" else MariaDBServer
            self.source: Server = self._stack.enter_context(make(programs, self.folder / kind))
            self.target: Server = self._stack.enter_context(PostgresServer(programs, self.folder / "postgres"))
            self.plant = Plant(self.source, self.folder)
            self.plant.grant(USER, self._read_password("source"))
            self._make_warehouse()
            self.settings_file = self._write_settings()
            self.settings: Settings = load_settings(self.settings_file, {})
            self._stack.callback(self.stop_services)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _lock_folder(self) -> None:
        lock = self._stack.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoFailed(
                "another demo runs from this folder", hint="Stop it first (Ctrl-C).", folder=str(self.folder)
            ) from error

    def _provide(self) -> tuple[str, Programs]:
        there = [kind for kind in ("mysql", "mariadb") if (self.folder / kind / "data").exists()]
        if there and self._wanted not in (None, there[0]):
            raise DemoFailed(
                f"the folder holds data of {there[0]}", hint="Run: make clean, which removes it.", folder=str(self.folder)
            )
        kinds = there or ([self._wanted] if self._wanted else ["mysql", "mariadb"])
        failures: list[str] = []
        for kind in kinds:
            try:
                return kind, provide([kind, "postgres"], cache_folder(), self._say)
            except ProgramsMissing as error:
                failures.append(str(error))
                if kind != kinds[-1]:
                    self._say(f"no {kind} here: trying MariaDB instead")
        raise ServersMissing("the demo's servers cannot be had", hint=failures[-1])

    def _read_password(self, name: str) -> str:
        path = self.folder / f"{name}.password"
        if not path.exists():
            self._write_private(path.name, secrets.token_urlsafe(18))
        return path.read_text()

    def _write_private(self, name: str, text: str) -> None:
        """Write a file that only its owner can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(text)

    def _make_warehouse(self) -> None:
        server = self.target
        password = self._read_password("warehouse")
        with psycopg.connect(
            host=server.host, port=server.port, user=server.user, password=server.password, dbname="postgres", autocommit=True
        ) as conn:
            role, database = sql.Identifier(USER), sql.Identifier(WAREHOUSE)
            verb = (
                "ALTER" if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (USER,)).fetchone() is not None else "CREATE"
            )
            conn.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(sql.SQL(verb), role, sql.Literal(password)))
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", (WAREHOUSE,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))

    def _write_settings(self) -> Path:
        path = self.folder / "pipeline.toml"
        features = ", ".join(f'"{name}"' for name in MEASUREMENTS)
        path.write_text(
            f"""\
[source]
name = "{DATABASE}"
host = "{self.source.host}"
port = {self.source.port}
user = "{USER}"
password_file = "{self.folder}/source.password"
tables = ["{DATABASE}.asset_readings_%"]

[warehouse]
host = "{self.target.host}"
port = {self.target.port}
dbname = "{WAREHOUSE}"
user = "{USER}"
password_file = "{self.folder}/warehouse.password"

[[model]]
name = "turbofan"
relation = "{DATABASE}.{TABLES[1]}, {DATABASE}.{TABLES[2]}"
training_query = "SELECT * FROM {DATABASE}.{TABLES[0]}"
entity = "unit"
order = "cycle"
# Several operating regimes share the samples of a tree, so there are more of them than the default.
samples = 512
features = [{features}]
"""
        )
        target, source = self.target, self.source
        self._write_private("pgpass", f"{target.host}:{target.port}:{WAREHOUSE}:{USER}:{self._read_password('warehouse')}\n")
        login = {"host": source.host, "port": source.port, "user": source.user, "password": source.password}
        self._write_private("my.cnf", "[client]\n" + "".join(f"{key}={value}\n" for key, value in login.items()))
        return path

    def connect(self) -> Connection:
        """A connection to the warehouse as its owner."""
        return connect(self.settings.warehouse, "demo")

    def connection_lines(self) -> dict[str, str]:
        """How a person connects: to the warehouse, and to the source."""
        target, source = self.target, self.source
        psql = self.programs.get("postgres").shell_line("psql")
        lines = {"warehouse": f"PGPASSFILE={self.folder}/pgpass {psql} -h {target.host} -p {target.port} -U {USER} {WAREHOUSE}"}
        program = self.programs.get(source.name)
        unpacked = [name for name in ("mysql", "mariadb") if (program.folder / "../bin" / name).exists()]
        client = next((name for name in ("mysql", "mariadb") if shutil.which(name)), None)
        if client is not None or unpacked:
            start = client or program.shell_line(f"../bin/{unpacked[0]}")
            lines["source"] = f"{start} --defaults-extra-file={self.folder}/my.cnf {DATABASE}"
        else:
            lines["source"] = f"{source.host}:{source.port}, user {source.user}, password in {source.folder}/password"
        return lines

    def run(self, *command: str) -> str:
        """Run one of the commands to its end; returns what it printed.

        Raises:
            DemoFailed: it ended with another status than 0.
        """
        done = subprocess.run(
            self._command(*command), cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise DemoFailed(f"{' '.join(command)} ended with status {done.returncode}", hint=end)
        return done.stdout

    def start_service(self, name: str) -> None:
        """Start `NAME run`; its log goes to NAME.log in the folder."""
        with self.log_of(name).open("wb") as log:
            self._services[name] = _spawn(self._command(name, "run"), log)

    def check_services(self) -> None:
        """See that every service that was started still runs.

        Raises:
            DemoFailed: one has ended.
        """
        for name, process in self._services.items():
            if process.poll() is not None:
                raise DemoFailed(f"{name} run ended with status {process.returncode}", hint=self._read_log_end(name))

    def stop_services(self) -> None:
        """Ask every service to finish its work, and wait for it; one that does not end in 20 s is killed.

        Signals are held back meanwhile: a second Ctrl-C must not leave a process behind.
        """
        if not self._services:
            return
        held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._end_services()
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)

    def _end_services(self) -> None:
        for process in self._services.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for name, process in self._services.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{name} did not end within {STOP_S:.0f} s and was killed; its log is {self.log_of(name)}")
                process.kill()
                process.wait()
        self._services.clear()

    def log_of(self, name: str) -> Path:
        """The log file of a service."""
        return self.folder / f"{name}.log"

    def _read_log_end(self, name: str) -> str:
        return "\n".join(self.log_of(name).read_text(errors="replace").splitlines()[-15:])

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", name, *arguments, "-c", str(self.settings_file)]


def _environment() -> dict[str, str]:
    """The environment of the commands: settings of the person who runs the demo must not reach them."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE__")}


def _spawn(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Should the demo itself be killed, its services end too.
        [*write_leash(), *command],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops them in order
    )
