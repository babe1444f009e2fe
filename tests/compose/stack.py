"""The compose stack of a clean clone: its own project name, passwords and ports, and the connections into it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pymysql

CHECKOUT = Path(__file__).resolve().parents[2]
SERVICES = ("mysql", "postgres", "replicator", "scorer")


class CommandFailed(Exception):
    """A command ended with another exit code than 0; the message holds what it wrote."""


def run(command: list[str], *, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command to its end; its standard output.

    Raises:
        CommandFailed: its exit code is not 0.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"{shlex.join(command)} gave {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def find_compose() -> list[str]:
    """The command for compose on this machine: v2 where it is there, else v1.

    Raises:
        CommandFailed: there is none, or no Docker answers.
    """
    run(["docker", "info"], cwd=CHECKOUT)
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            run([*command, "version"], cwd=CHECKOUT)
        except (CommandFailed, FileNotFoundError):
            continue
        return command
    raise CommandFailed("neither 'docker compose' nor 'docker-compose' is there")


def find_free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """A clone of HEAD in `folder` and the containers that its docker-compose.yml describes."""

    def __init__(self, folder: Path, compose: list[str]) -> None:
        self.folder = folder / "clone"
        self.compose = compose
        self.project = f"tailrace-proof-{os.getpid()}"
        self.mysql_port, self.postgres_port = find_free_port(), find_free_port()
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TAILRACE__", "MYSQL", "POSTGRES"))}
        self.env = clean | {
            "COMPOSE_PROJECT_NAME": self.project,
            "MYSQL_PORT": str(self.mysql_port),
            "POSTGRES_PORT": str(self.postgres_port),
            # One tag for every run: the layers are built once.
            "TAILRACE_IMAGE": "tailrace:proof",
        }
        run(["git", "clone", "--quiet", str(CHECKOUT), str(self.folder)], cwd=folder)

    def call(self, *arguments: str) -> str:
        """Run a compose command."""
        return run([*self.compose, *arguments], cwd=self.folder, env=self.env)

    def make_secrets(self) -> None:
        """Write .env with the project's own script."""
        run(["tools/make-secrets"], cwd=self.folder)

    def read_secrets(self) -> dict[str, str]:
        """The variables of .env."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def inspect(self, service: str) -> dict[str, Any]:
        """What Docker knows of a service's container."""
        number = self.call("ps", "-q", service).strip()
        (facts,) = json.loads(run(["docker", "inspect", number], cwd=self.folder))
        return dict(facts)

    def read_user(self, service: str) -> int:
        """The user id that a service's first process runs as."""
        status = self.call("exec", "-T", service, "cat", "/proc/1/status")
        (line,) = (line for line in status.splitlines() if line.startswith("Uid:"))
        return int(line.split()[1])

    def remove(self) -> None:
        """Remove the containers, their volumes and the clone; the images stay."""
        self.call("down", "--volumes", "--timeout", "30")
        shutil.rmtree(self.folder.parent)

    def leftovers(self) -> str:
        """Containers and volumes of this project that are still there."""
        label = f"label=com.docker.compose.project={self.project}"
        containers = run(["docker", "ps", "-aq", "--filter", label], cwd=CHECKOUT)
        return containers + run(["docker", "volume", "ls", "-q", "--filter", label], cwd=CHECKOUT)

    def open_mysql(self, password: str) -> Any:
        """A connection as root to the source, in UTC."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.mysql_port,
            user="root",
            password=password,
            database="plant",
            init_command="SET time_zone = '+00:00'",
        )

    def open_postgres(self, password: str) -> psycopg.Connection[Any]:
        """A connection as the owner to the warehouse, in UTC."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.postgres_port,
            user="tailrace",
            password=password,
            dbname="warehouse",
            options="-c timezone=UTC",
            autocommit=True,
        )
