"""Connections that break, hang and come back, and servers that die under load: equal at the end, every row scored once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.servers import PostgresServer
from tests.fixtures.load import Load, assert_all_is_right, start_services, wait_until_scored
from tests.fixtures.pipeline import Pipeline, Service, make_pipeline
from tests.fixtures.servers import Database, MakeServer, make_source_database
from tests.proxy import Proxy

ROWS = 4000


@pytest.fixture
def source_proxy(pipeline: Pipeline) -> Iterator[Proxy]:
    """A proxy between the replicator and its source; the tests themselves go round it."""
    with Proxy(pipeline.source.server.host, pipeline.source.server.port) as proxy:
        pipeline.configure(source={"port": proxy.port})
        yield proxy


@pytest.fixture
def warehouse_proxy(mysql_pipeline: Pipeline) -> Iterator[Proxy]:
    """A proxy between the services and the warehouse."""
    with Proxy(mysql_pipeline.database.host, mysql_pipeline.database.port) as proxy:
        mysql_pipeline.configure(warehouse={"port": proxy.port})
        yield proxy


def start_load(pipeline: Pipeline, *, scored: bool = True) -> tuple[Load, dict[str, Service]]:
    """Start the services, the scorer only where it has a part in the fault, then the load."""
    load = Load(pipeline, seed=3, pause_s=0.05, rows=ROWS)
    if scored:
        load.configure()
        services = start_services(pipeline)
    else:
        services = {"replicator": pipeline.start("replicator", "run")}
        pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
    load.start()
    return load, services


def end_load(pipeline: Pipeline, load: Load, services: dict[str, Service]) -> None:
    """Wait for all of it, stop the services, compare."""
    load.finish()
    if "scorer" in services:
        wait_until_scored(pipeline)
    else:
        pipeline.sync()
    for name, service in services.items():
        assert service.stop() == 0, f"{name}: {service.read_log()}"
        assert "Traceback" not in service.read_log()
    if "scorer" in services:
        assert_all_is_right(pipeline)
    else:
        pipeline.assert_equal("history", "readings", order="id")


def test_source_connection_is_cut(pipeline: Pipeline, source_proxy: Proxy) -> None:
    """Reset and ended at once and in the middle of events, on a line that is fast, slow or a trickle, again and again."""
    load, services = start_load(pipeline, scored=False)
    for number, after_bytes in enumerate((0, 1, 40_000, 777, 200_000, 9_001)):
        before = source_proxy.connections
        source_proxy.slow(*((), (0.005, 1e6), (0.001, 30_000))[number % 3])
        source_proxy.cut(after_bytes, orderly=number % 2 == 1)
        pipeline.wait_until(lambda before=before: source_proxy.connections > before or not load.is_alive())  # type: ignore[misc]
        time.sleep(0.2)
    source_proxy.slow()
    end_load(pipeline, load, services)


def test_source_connection_hangs(pipeline: Pipeline, source_proxy: Proxy) -> None:
    """No byte comes through and no end either: noticed after three heartbeats, then everything is made up for."""
    load, services = start_load(pipeline, scored=False)
    service = services["replicator"]
    # from then on nothing but the stream is read
    pipeline.wait_until(lambda: '"Synced"' in service.read_log() and not pipeline.is_copying())
    source_proxy.stall()
    pipeline.wait_until(lambda: "SourceSilent" in service.read_log())
    assert pipeline.status("lag_ms") > 0
    # The half-open connections stay; new ones are let through.
    source_proxy.cut()
    source_proxy.resume()
    end_load(pipeline, load, services)


def test_question_while_the_source_hangs(pipeline: Pipeline, source_proxy: Proxy) -> None:
    """A copy is asked for while nothing comes through: the question ends as the stream would, and its lock shows life."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    # Long enough that the question is asked before the stream itself gives up.
    pipeline.configure(source={"heartbeat_s": 2.0})
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.has_table("t") and pipeline.state("t")[0] == "Synced")
    source_proxy.stall()
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
    beats = "SELECT beat_at FROM warehouse.pulses"
    before = pipeline.fetch(beats)
    pipeline.wait_until(lambda: "retry" in service.read_log())
    log = service.read_log()
    assert "SourceSilent" in log
    assert "SourceUnavailable" not in log
    assert pipeline.fetch(beats) > before
    assert pipeline.status("lag_ms") > 0
    source_proxy.cut()
    source_proxy.resume()
    pipeline.source.execute("INSERT INTO t VALUES (2)")
    pipeline.wait_until(lambda: pipeline.read_mirror("t", "count(*)", order="1") == [(2,)])
    assert service.stop() == 0


def test_copy_is_cut(pipeline: Pipeline, source_proxy: Proxy) -> None:
    """The connection breaks in the middle of a table's first copy: it begins again and is whole."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, pad VARCHAR(200))")
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(number, "x" * 150) for number in range(30_000)])
    source_proxy.cut(1_000_000)
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.has_table("t") and pipeline.state("t")[0] == "Synced")
    assert "retry" in service.read_log()
    pipeline.assert_equal("t")
    assert service.stop() == 0


def test_warehouse_connection_is_cut(mysql_pipeline: Pipeline, warehouse_proxy: Proxy) -> None:
    """Both services lose Postgres in the middle of transactions and of packets, on a line with delay, again and again."""
    load, services = start_load(mysql_pipeline)
    for number, after_bytes in enumerate((0, 1, 3000, 777, 9000)):
        before = warehouse_proxy.connections
        warehouse_proxy.slow(0.003 * number, 1e6)
        warehouse_proxy.cut(after_bytes, orderly=number % 2 == 1)
        mysql_pipeline.wait_until(lambda before=before: warehouse_proxy.connections > before + 1 or not load.is_alive())  # type: ignore[misc]
        time.sleep(0.2)
    warehouse_proxy.slow()
    end_load(mysql_pipeline, load, services)


def test_warehouse_connection_hangs(mysql_pipeline: Pipeline, warehouse_proxy: Proxy) -> None:
    """Postgres is not to be reached for longer than the source's heartbeats: what waited is applied afterwards."""
    load, services = start_load(mysql_pipeline)
    warehouse_proxy.stall()
    time.sleep(3)
    warehouse_proxy.resume()
    end_load(mysql_pipeline, load, services)


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_source_dies(kind: str, make_server: MakeServer, database: Database, tmp_path: Path) -> None:
    """Kill -9 of the source server under load, and its return."""
    server: Any = make_server(kind)
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        load, services = start_load(pipeline, scored=False)
        pipeline.wait_until(lambda: load.written > ROWS // 4)
        server.kill()
        pipeline.wait_until(lambda: "retry" in services["replicator"].read_log())
        server.start()
        # The writer lost its connection, as any client would; a second one goes on behind what was committed.
        load.join()
        load.resume()
        end_load(pipeline, load, services)


def test_warehouse_dies(make_server: MakeServer, mysql_server: Any, tmp_path: Path) -> None:
    """Kill -9 of Postgres under load, and its return."""
    server: Any = make_server("postgres")
    assert isinstance(server, PostgresServer)
    database = Database(server.host, server.port, server.user, server.password, "postgres")
    with make_source_database(mysql_server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        load, services = start_load(pipeline)
        for _ in range(2):
            time.sleep(1)
            server.kill()
            time.sleep(0.5)
            server.start()
            pipeline.reconnect()
        end_load(pipeline, load, services)
