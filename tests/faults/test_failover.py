"""A replica takes over from the server that is read: nothing lost or twice; a server with another history is passed over."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.pipeline import Pipeline, Service, make_pipeline
from tests.fixtures.servers import Database, MakeServer, SourceDatabase

USER, PASSWORD = "tailrace", "t"
BATCH = 40


class Writer(threading.Thread):
    """Inserts rows one by one, and changes older ones, into a table with and one without a key."""

    def __init__(self, source: SourceDatabase, first: int, count: int) -> None:
        super().__init__(name="writer", daemon=True)
        self.source, self.numbers = source, range(first, first + count)

    def run(self) -> None:
        """Write everything."""
        with self.source.connect() as conn, conn.cursor() as cursor:
            for number in self.numbers:
                cursor.execute("INSERT INTO t VALUES (%s, 0)", (number,))
                cursor.execute("UPDATE t SET n = n + 1 WHERE id = %s", (number // 2,))
                cursor.execute("INSERT INTO keyless VALUES (%s, 'x')", (number % 7,))


def replicate(replica: Any, primary: Any) -> None:
    """Let one server follow the other by GTID."""
    with SourceDatabase(replica, "mysql").connect() as conn, conn.cursor() as cursor:
        if replica.name == "mariadb":
            cursor.execute(
                f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {primary.port}, MASTER_USER = '{USER}',"
                f" MASTER_PASSWORD = '{PASSWORD}', MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"
            )
            cursor.execute("START SLAVE")
        else:
            cursor.execute(
                f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {primary.port}, SOURCE_USER = '{USER}',"
                f" SOURCE_PASSWORD = '{PASSWORD}', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1,"
                " SOURCE_CONNECT_RETRY = 1"
            )
            cursor.execute("START REPLICA")


def promote(replica: Any) -> None:
    """Let a replica be a server of its own."""
    statements = ("STOP SLAVE", "RESET SLAVE ALL") if replica.name == "mariadb" else ("STOP REPLICA", "RESET REPLICA ALL")
    SourceDatabase(replica, "mysql").execute(*statements)


def read_gtids(server: Any) -> str:
    """What the server has."""
    variable = "gtid_current_pos" if server.name == "mariadb" else "gtid_executed"
    return str(SourceDatabase(server, "mysql").execute(f"SELECT @@global.{variable}")[0][0])


def wait_until_equal(pipeline: Pipeline, replica: Any, primary: Any) -> None:
    """Return once the replica has all of the primary; the writer has paused."""
    wanted = read_gtids(primary)

    def has_all() -> bool:
        (row,) = pipeline.fetch("SELECT warehouse.gtid_subset(%s, %s)", wanted, read_gtids(replica))
        return bool(row[0])

    pipeline.wait_until(has_all)


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_replica_takes_over(kind: str, make_server: MakeServer, database: Database, tmp_path: Path) -> None:
    """Kill -9 of the primary under load, its replica promoted; the former primary comes back with strays and is passed over."""
    primary: Any = make_server(kind)
    options = {"log_slave_updates": "ON"} if kind == "mariadb" else {}
    replica: Any = make_server(kind, options=options)
    source = SourceDatabase(primary, "plant")
    root = SourceDatabase(primary, "mysql")
    plugin = "" if kind == "mariadb" else "WITH caching_sha2_password "
    root.execute(
        f"CREATE USER {USER}@'%' IDENTIFIED {plugin}BY '{PASSWORD}'", f"GRANT ALL ON *.* TO {USER}@'%'", "CREATE DATABASE plant"
    )
    source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "CREATE TABLE keyless (a INT, b VARCHAR(9))")
    replicate(replica, primary)
    with make_pipeline(source, database, tmp_path) as pipeline:
        secret = tmp_path / "secret"
        secret.write_text(PASSWORD)
        hosts = [f"127.0.0.1:{server.port}" for server in (primary, replica)]
        pipeline.configure(
            source={"hosts": hosts, "user": USER, "password_file": str(secret), "connect_timeout_s": 2.0},
            retry={"budget_s": 120.0},
        )
        service = pipeline.start("replicator", "run")
        pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
        writer = Writer(source, 1, BATCH)
        writer.start()
        writer.join()
        wait_until_equal(pipeline, replica, primary)
        primary.kill()
        promote(replica)
        pipeline.source = SourceDatabase(replica, "plant")
        writer = Writer(pipeline.source, BATCH + 1, BATCH)
        writer.start()
        writer.join()
        wait_until_applied(pipeline, service)
        pipeline.assert_equal("t", "keyless")
        assert pipeline.fetch("SELECT server FROM warehouse.sources") == [(hosts[1],)]
        assert "server changed" in service.read_log()

        # The former primary is back and knows nothing of what came since; it is the first of the list all the same.
        primary.start()
        assert service.stop() == 0, service.read_log()
        pipeline.conn.execute("UPDATE warehouse.sources SET server = NULL")
        pipeline.source.execute("INSERT INTO t VALUES (9001, 0)")
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "server passed over" in done.stdout + done.stderr
        assert "lacks transactions" in done.stdout + done.stderr
        pipeline.assert_equal("t", "keyless")
        if kind == "mysql":
            refuse_strays(pipeline, primary, replica, hosts)


def wait_until_applied(pipeline: Pipeline, service: Service) -> None:
    """As pipeline.sync(), which would ask the first of the hosts."""
    wanted = read_gtids(pipeline.source.server)
    deadline = time.monotonic() + 120
    while pipeline.fetch("SELECT warehouse.wait_for('shop', %s, '1 s')", wanted) != [(True,)]:
        assert service.process.poll() is None, service.read_log()
        assert time.monotonic() < deadline, service.read_log()
    # the primary may have been killed in the middle of the first copies
    pipeline.wait_until(lambda: not pipeline.is_copying())


def refuse_strays(pipeline: Pipeline, primary: Any, replica: Any, hosts: list[str]) -> None:
    """The former primary wrote something by itself before it followed the other: its log has it in a place too early."""
    SourceDatabase(primary, "plant").execute("UPDATE t SET n = -1 WHERE id = 1")
    replicate(primary, replica)
    wait_until_equal(pipeline, primary, replica)
    pipeline.configure(source={"hosts": hosts[:1]})
    done = pipeline.run("replicator", "run", "--until-caught-up")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "wrong order" in done.stderr
    assert pipeline.state("t")[0] == "ResyncRequired"
    pipeline.configure(source={"hosts": hosts[::-1]})
    pipeline.catch_up()
    pipeline.assert_equal("t", "keyless")
