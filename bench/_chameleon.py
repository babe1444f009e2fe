"""pg_chameleon as a peer: another replicator from MySQL's binlog to Postgres in Python.

Owns its installation in a virtual environment of its own and its configuration. pg_chameleon asks with SHOW MASTER STATUS,
which MySQL no longer knows since 8.4, so its source is a MariaDB.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from demo.servers import Server

VERSION = "2.0.21"
SOURCE = "mysql"


class NotAvailable(Exception):
    """pg_chameleon cannot be installed or run here."""


class Chameleon:
    """An installation and its folder.

    Args:
        cache: where the virtual environment is kept. folder: for configuration and logs.

    Raises:
        NotAvailable: it cannot be installed.
    """

    def __init__(self, cache: Path, folder: Path) -> None:
        self._environment = cache / f"pg_chameleon-{VERSION}"
        self._home = folder
        if not (self._environment / "bin" / "chameleon").exists():
            run([sys.executable, "-m", "venv", str(self._environment)])
            run([str(self._environment / "bin" / "pip"), "install", "--quiet", f"pg_chameleon=={VERSION}"])

    def prepare(self, mysql: Server, postgres: Server, database: str, table: str) -> None:
        """Register a source with one table of the schema plant, and copy the table."""
        configuration = self._home / ".pg_chameleon" / "configuration"
        for name in ("configuration", "pid", "logs", "out"):
            (self._home / ".pg_chameleon" / name).mkdir(parents=True, exist_ok=True)
        connection = {"host": mysql.host, "port": str(mysql.port), "user": mysql.user, "password": mysql.password}
        target = {"host": postgres.host, "port": str(postgres.port), "user": postgres.user, "password": postgres.password}
        settings = {
            "pid_dir": str(self._home / ".pg_chameleon" / "pid"),
            "log_dir": str(self._home / ".pg_chameleon" / "logs"),
            "log_dest": "file", "log_level": "info", "log_days_keep": 1, "rollbar_key": "", "rollbar_env": "",
            "type_override": {},
            "pg_conn": {**target, "database": database, "charset": "utf8"},
            "sources": {
                SOURCE: {
                    "db_conn": {**connection, "charset": "utf8", "connect_timeout": 10},
                    "schema_mappings": {"plant": "chameleon"}, "limit_tables": [table], "skip_tables": [],
                    "grant_select_to": [], "lock_timeout": "120s", "my_server_id": 9004, "replica_batch_size": 10000,
                    "replay_max_rows": 10000, "batch_retention": "1 day", "copy_max_memory": "300M", "copy_mode": "file",
                    "out_dir": str(self._home / ".pg_chameleon" / "out"), "sleep_loop": 1, "on_error_replay": "exit",
                    "on_error_read": "exit", "auto_maintenance": "disabled", "gtid_enable": False, "type": "mysql",
                    "keep_existing_schema": False, "net_read_timeout": 600,
                }
            },
        }  # fmt: skip
        # JSON is YAML
        (configuration / "default.yml").write_text(json.dumps(settings))
        for command in ("create_replica_schema", "add_source", "init_replica"):
            self._call(command)

    def replicate(self, is_done: Callable[[], bool], patience_s: float) -> float:
        """Seconds from starting the replica until is_done.

        Raises:
            NotAvailable: it ended or did not get there.
        """
        log = (self._home / "replica.log").open("wb")
        began = time.perf_counter()
        with (
            log,
            subprocess.Popen(
                self._command("start_replica", "--debug"), env=self._variables(), stdout=log, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                while not is_done():
                    if process.poll() is not None or time.perf_counter() - began > patience_s:
                        raise NotAvailable(f"it did not catch up: {(self._home / 'replica.log').read_text()[-500:]}")
                    time.sleep(0.05)
                return time.perf_counter() - began
            finally:
                # its readers are processes of their own
                os.killpg(process.pid, signal.SIGKILL)

    def _command(self, *words: str) -> list[str]:
        chameleon = str(self._environment / "bin" / "chameleon")
        # It refuses root; in a user namespace of its own root has another number, and may still read its files.
        first = ["unshare", "--user"] if os.geteuid() == 0 else []
        return [
            *first,
            chameleon,
            *words,
            "--config",
            "default",
            *([] if "create_replica_schema" in words else ["--source", SOURCE]),
        ]

    def _variables(self) -> dict[str, str]:
        return os.environ | {"HOME": str(self._home)}

    def _call(self, command: str) -> None:
        # without --debug the copy would go on in the background
        words = self._command(command, *(("--debug",) if command == "init_replica" else ()))
        run(words, self._variables())


def run(command: list[str], variables: dict[str, str] | None = None) -> None:
    """Run a command.

    Raises:
        NotAvailable: it failed.
    """
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAvailable(f"{' '.join(command[:3])}: {(done.stdout + done.stderr)[-500:]}")
