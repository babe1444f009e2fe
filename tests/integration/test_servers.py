"""The private servers themselves: what is committed survives a stop and a kill, and only those who may get in."""

import contextlib
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psycopg
import pymysql
import pytest

from demo import folders
from demo.servers import MySQLServer, PostgresServer, Programs, Server, ServerFailed, cache_folder
from tests.fixtures.servers import KINDS, Database, MakeServer, SourceDatabase, SourceServer
from tests.proxy import Proxy


def run(server: Server, *statements: str, password: str | None = None) -> list[tuple[object, ...]]:
    """Run statements over TCP, committed; return the rows of the last one."""
    secret = server.password if password is None else password
    login = {"host": server.host, "port": server.port, "user": server.user, "password": secret}
    if server.name == "postgres":
        with psycopg.connect(**login, dbname="postgres", autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    with pymysql.connect(**login, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


@pytest.mark.parametrize("kind", KINDS)
def test_committed_rows_survive(kind: str, make_server: MakeServer) -> None:
    """Rows are there after a restart and after SIGKILL, on the same port and with the same password."""
    server = make_server(kind)
    where = (server.port, server.password)
    schema = "CREATE SCHEMA plant" if kind == "postgres" else "CREATE DATABASE plant"
    run(server, schema, "CREATE TABLE plant.t (a int primary key)", "INSERT INTO plant.t VALUES (1)")
    server.restart()
    run(server, "INSERT INTO plant.t VALUES (2)")
    server.kill()
    assert not server.running
    with pytest.raises((OSError, pymysql.err.Error, psycopg.Error)):
        run(server, "SELECT 1")
    server.start()
    assert run(server, "SELECT a FROM plant.t ORDER BY a") == [(1,), (2,)]
    assert (server.port, server.password) == where
    server.stop()
    server.stop()
    again = KINDS[kind](Programs(**{kind: server.program}), server.folder)
    with again:
        assert run(again, "SELECT count(*) FROM plant.t") == [(2,)]
        assert (again.port, again.password) == where


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_password_opens(kind: str, request: pytest.FixtureRequest) -> None:
    """No way in without the password, which no other user can read and no command line shows."""
    server: Server = request.getfixturevalue(f"{kind}_server")
    for wrong in ("", "wrong"):
        with pytest.raises((pymysql.err.OperationalError, psycopg.OperationalError)):
            run(server, "SELECT 1", password=wrong)
    path = server.folder / "password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert server.password not in server.log.read_text()
    assert server.password not in repr(server)
    assert not (server.folder / "init.sql").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_listens_on_loopback_only(kind: str, request: pytest.FixtureRequest) -> None:
    """Every TCP socket of the server that listens is bound to 127.0.0.1."""
    server: Server = request.getfixturevalue(f"{kind}_server")
    assert server.pid is not None
    inodes = set()
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(link.readlink().name)
    bound = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                bound.append((table, fields[1]))
    loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
    assert bound == [("tcp", f"{loopback}:{server.port:04X}")]


@pytest.mark.parametrize("kind", KINDS)
def test_servers_end_with_their_parent(kind: str, make_server: MakeServer, tmp_path: Path) -> None:
    """A program that is killed leaves no server behind."""
    server = make_server(kind)
    server.stop()
    program = textwrap.dedent(
        f"""
        import os, sys, time
        from pathlib import Path
        from demo.servers import *
        server = {type(server).__name__}(provide(["{kind}"], cache_folder(), str), Path(sys.argv[1])).start()
        print(server.pid, flush=True)
        time.sleep(600)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program, server.folder], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.05)


def test_a_failed_start_shows_the_log(make_server: MakeServer) -> None:
    """An option that the server does not know ends in an error with what the server said."""
    for kind in KINDS:
        with pytest.raises(ServerFailed, match=r"no_such_option|no-such-option"):
            make_server(kind, options={"no_such_option": "1"})


def test_source_settings(source_server: SourceServer) -> None:
    """Both sources log whole rows with full metadata."""
    names = ("log_bin", "binlog_format", "binlog_row_image", "binlog_row_metadata", "sync_binlog")
    values = [run(source_server, f"SELECT @@GLOBAL.{name}")[0][0] for name in names]
    assert values == [1, "ROW", "FULL", "FULL", 1]


def test_gtids_can_be_turned_off(make_server: MakeServer, mysql_server: MySQLServer) -> None:
    """MySQL has GTIDs unless asked not to; two servers never share a server id."""
    without = make_server("mysql", options={"gtid_mode": "OFF"})
    question = "SELECT @@GLOBAL.gtid_mode, @@GLOBAL.enforce_gtid_consistency"
    assert run(without, question) == [("OFF", "OFF")]
    assert run(mysql_server, question) == [("ON", "ON")]
    assert run(without, "SELECT @@server_id") != run(mysql_server, "SELECT @@server_id")


def test_postgres_has_cube_and_takes_options(make_server: MakeServer) -> None:
    """The extension that scoring in SQL needs is there, and settings reach the server."""
    server = make_server("postgres", options={"work_mem": "7MB"})
    assert run(server, "CREATE EXTENSION cube", "SELECT '(0,0)'::cube <#> cube(ARRAY[3, 4]::float8[])") == [(7.0,)]
    assert run(server, "SHOW work_mem") == [("7MB",)]
    assert run(server, "SHOW fsync") == [("on",)]


def test_sockets_answer(mysql_server: MySQLServer, postgres_server: PostgresServer) -> None:
    """Both servers can be reached by their Unix sockets too."""
    with pymysql.connect(unix_socket=str(mysql_server.socket), user="root", password=mysql_server.password) as connection:
        assert connection.open
    folder = str(postgres_server.socket.parent)
    with psycopg.connect(
        host=folder, port=postgres_server.port, user="postgres", password=postgres_server.password, dbname="postgres"
    ) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_databases_of_a_test(database: Database, source_database: SourceDatabase) -> None:
    """The fixtures give an empty database on each side."""
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert source_database.execute("SHOW TABLES") == ()
    source_database.execute("CREATE TABLE t (a int)", "INSERT INTO t VALUES (1), (2)")
    assert source_database.execute("SELECT sum(a) FROM t") == ((3,),)
    assert database.password not in repr(database)


def test_proxy_before_a_server(source_server: SourceServer) -> None:
    """A connection through the proxy works until it is cut."""
    with Proxy(source_server.host, source_server.port) as proxy:
        login = {"host": proxy.host, "port": proxy.port, "user": source_server.user, "password": source_server.password}
        connection = pymysql.connect(**login)
        with connection.cursor() as cursor:
            cursor.execute("SELECT REPEAT('x', 1000000)")
            assert len(cursor.fetchone()[0]) == 1000000
            proxy.cut()
            with pytest.raises(pymysql.err.OperationalError):
                cursor.execute("SELECT 1")
        with pymysql.connect(**login) as again, again.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_command_tells_where_programs_are() -> None:
    """`python -m demo.servers provide` prints one line per server and fetches nothing twice."""
    command = [sys.executable, "-m", "demo.servers", "provide", "mysql", "postgres"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["mysql", "postgres"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fetching" not in again.stdout
    assert cache_folder().is_absolute()
    assert folders.shelter().is_absolute()


def test_temporary_files_are_a_servers_own(source_server: SourceServer) -> None:
    """Servers that start at the same time must not remove each other's temporary files."""
    with SourceDatabase(source_server, "mysql").connect() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT @@tmpdir")
        assert Path(cursor.fetchone()[0]).parent == source_server.folder
