"""Runs one private server as a child process: the part that is the same for every kind of server.

Owns: a server's folder, password, port and process: starting, waiting for an answer, stopping, killing.
Never: knows a server's own options (see `demo.servers`), touches a server that it did not start.
"""

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

import psycopg
import pymysql

from demo import folders
from demo.leash import write_leash
from demo.programs import Program, Programs

START_TIMEOUT_S = 120.0  # crash recovery of a large data folder included
STOP_TIMEOUT_S = 60.0


class ServerFailed(Exception):
    """A server did not start or stop; the message ends with the last lines of its log."""


def choose_port() -> int:
    """Choose a free TCP port below the range that the system gives to outgoing connections.

    Within that range, a client that keeps trying to reach a stopped server can be given the very port and meet itself.
    """
    for port in random.sample(range(20000, 32768), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerFailed("no free port between 20000 and 32768 on 127.0.0.1")


class Server:
    """One private server. `folder` holds its data, log, password and socket; an existing one is used again.

    All processes of the server end with the thread that started it, so start it from a thread that lives on.
    `options` are the server's own settings and go over the ones chosen here.
    """

    name: ClassVar[str]
    user: ClassVar[str]
    host: ClassVar[str] = "127.0.0.1"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    account: pwd.struct_passwd | None = None

    def __init__(
        self, programs: Programs, folder: Path, port: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.program: Program = programs.get(self.name)
        self.options: dict[str, str] = {key.replace("-", "_"): value for key, value in (options or {}).items()}
        self.folder = folders.place_folder(Path(folder).absolute(), self.account)
        self._given = Path(folder).absolute()
        self.folder.chmod(0o711 if self.account else 0o700)
        self.port = port or self._keep_port()
        self.socket = folders.place_socket(self.folder, self._socket_name())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The file that gets everything the server prints."""
        return self.folder / "server.log"

    @property
    def version(self) -> str:
        """The version of the server's program."""
        return self.program.version

    @property
    def password(self) -> str:
        """The password of `user`: random, made once for a folder, kept there in a file that only its owner reads."""
        path = self.folder / "password"
        if not path.exists():
            self._write_private(path, secrets.token_urlsafe(18))
        return path.read_text()

    @property
    def running(self) -> bool:
        """Whether the process started by this object is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the running server, else None."""
        return self._process.pid if self._process is not None and self.running else None

    def start(self) -> Self:
        """Start the server, making its data folder first where there is none; return when it answers a query.

        Raises:
            ServerFailed: It ends, or gives no answer within two minutes.
        """
        if self.running:
            return self
        if not self.data.exists():
            self._make_data()
        self._process = self._spawn(self._command())
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"{self._title()} ended with status {self._process.returncode} at its start\n{self.log_tail()}"
                )
            try:
                self._ask()
            except (pymysql.err.Error, psycopg.Error, OSError) as error:
                if time.monotonic() > deadline:
                    self.kill()
                    raise ServerFailed(f"{self._title()} gave no answer: {error}\n{self.log_tail()}") from error
                time.sleep(0.05)
            else:
                break
        self._after_start()
        return self

    def stop(self) -> None:
        """Stop the server in an orderly way; nothing happens if it does not run.

        Raises:
            ServerFailed: It does not end within a minute; it is killed then.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                self.kill()
                raise ServerFailed(f"{self._title()} did not stop and was killed\n{self.log_tail()}") from error
        self._process = None

    def kill(self) -> None:
        """Kill the server and its children as a crash would (SIGKILL) and wait until they are gone."""
        if self._process is None:
            return
        children = _find_children(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(_is_alive(pid) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._process = None

    def restart(self) -> Self:
        """Stop the server if it runs, and start it on the same data and port."""
        self.stop()
        return self.start()

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop()
        if self.socket.parent != self.folder:
            shutil.rmtree(self.socket.parent, ignore_errors=True)
        folders.remove_folder(self._given)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{self._title()}>"

    def _title(self) -> str:
        return f"{type(self).__name__} {self.version} on port {self.port} in {self.folder}"

    def _keep_port(self) -> int:
        """Use the port of last time where it is free, so that a connection line stays valid."""
        path = self.folder / "port"
        if path.exists():
            port = int(path.read_text())
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, port))
                return port
        port = choose_port()
        path.write_text(str(port))
        return port

    def _write_private(self, path: Path, text: str) -> None:
        """Write a file that only the server's account (and root) can read."""
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text)
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _spawn(self, command: list[str], stdin: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start a process as the server's account, writing to the log, that gets the stop signal when this thread ends."""
        account = self.account
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*write_leash(self.stop_signal), *command],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.program.environment(),
                start_new_session=True,  # Ctrl-C is for the program in front, which then stops its servers in order
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
            )

    def _run(self, command: list[str], stdin: IO[bytes] | None = None) -> None:
        process = self._spawn(command, stdin)
        try:
            status = process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status != 0:
            raise ServerFailed(f"making the data folder of {self._title()} ended with status {status}\n{self.log_tail()}")

    def _make_data(self) -> None:
        """Make the data folder under another name first, so that a half-made one is never used."""
        part = self.folder / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self.account is not None:
            os.chown(part, self.account.pw_uid, self.account.pw_gid)
        try:
            self._initialise(part)
            part.rename(self.data)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _socket_name(self) -> str:
        raise NotImplementedError

    def _initialise(self, data: Path) -> None:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ask(self) -> None:
        raise NotImplementedError

    def _after_start(self) -> None:
        """Do what is left to do once the server answers."""


def _find_children(pid: int) -> list[int]:
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
    return children


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
