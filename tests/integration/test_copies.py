"""Copies that run beside the stream, slice by slice: exact under any load, resumed, throttled, and readable all the time."""

import psycopg
import pytest

from tests.fixtures.copies import ROWS, SMALL, Disturbance, make_tables
from tests.fixtures.pipeline import Pipeline


def rows_done(pipeline: Pipeline) -> int:
    """How many rows the copies that run have dealt with."""
    return int(pipeline.fetch("SELECT coalesce(sum(rows_done), 0) FROM warehouse.copy_status")[0][0])


def test_changes_of_every_kind_during_a_copy(pipeline: Pipeline) -> None:
    """Updates, deletions, insertions and moving keys while small slices are copied; then again into filled mirrors."""
    names = make_tables(pipeline)
    pipeline.configure(replicator=SMALL)
    disturbance = Disturbance(pipeline, names)
    service = pipeline.start("replicator", "run")
    for again in (False, True):
        if again:
            for name in names:
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{name}",))
            pipeline.wait_until(lambda: rows_done(pipeline) > 0)
        steps = 0
        while not pipeline.has_table("raws") or pipeline.is_copying():
            assert service.process.poll() is None, service.read_log()
            disturbance.step()
            steps += 1
        assert steps > 5
        pipeline.sync()
        pipeline.assert_equal(*names)
    disturbance.close()
    # all of them beside the stream, but for the table without a key once its mirror has rows
    assert service.read_log().count('"copy begins"') >= 2 * len(names) - 1
    assert service.stop() == 0


def test_a_killed_copy_goes_on(pipeline: Pipeline) -> None:
    """Kill -9 in the middle, changes meanwhile: the next run takes the copy up where it was, and the outcome is equal."""
    names = make_tables(pipeline, only="pairs")
    pipeline.configure(replicator=SMALL | {"snapshot_max_rows_per_s": 300.0})
    disturbance = Disturbance(pipeline, names)
    service = pipeline.start("replicator", "run")
    for done in (60, 200):
        pipeline.wait_until(lambda done=done: rows_done(pipeline) > done)  # type: ignore[misc]
        disturbance.step()
        service.kill()
        for _ in range(20):
            disturbance.step()
        service = pipeline.start("replicator", "run")
    pipeline.sync()
    pipeline.assert_equal(*names)
    assert "copy goes on" in service.read_log()
    assert "copy begins" not in service.read_log()
    # at most what was in flight was read twice
    assert pipeline.fetch("SELECT inserted < 2 * %s FROM warehouse.tables", ROWS) == [(True,)]
    disturbance.close()
    assert service.stop() == 0


@pytest.mark.parametrize("statement", ["ALTER TABLE ints ADD COLUMN m INT DEFAULT 9 FIRST", "TRUNCATE ints", "DROP TABLE ints"])
def test_statements_during_a_copy(mysql_pipeline: Pipeline, statement: str) -> None:
    """A table that is altered, emptied or dropped while it is copied ends as the source has it."""
    pipeline = mysql_pipeline
    make_tables(pipeline, only="ints")
    pipeline.configure(replicator=SMALL)
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: rows_done(pipeline) > 60)
    pipeline.source.execute("UPDATE ints SET n = -n WHERE MOD(id, 3) = 0", statement)
    if not statement.startswith("DROP"):
        pipeline.source.execute("INSERT INTO ints (id, n) VALUES (100000, 1), (-100000, 2)")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("ints")[0] == "Synced")
        columns = "id, n" if "ALTER" not in statement else "m, id, n"
        assert pipeline.read_mirror("ints", columns) == pipeline.read_source("ints", columns)
    else:
        pipeline.wait_until(lambda: pipeline.state("ints")[0] == "DroppedSource")
    assert service.stop() == 0


def test_a_table_stays_readable_while_it_is_copied_again(mysql_pipeline: Pipeline) -> None:
    """Old rows are there until new ones take their place; rows that should not be there go, and are recorded."""
    pipeline = mysql_pipeline
    make_tables(pipeline, only="ints")
    pipeline.catch_up()
    name = f"{pipeline.source.name}.ints"
    pipeline.conn.execute(f"UPDATE {name} SET n = -5 WHERE n % 10 = 0; DELETE FROM {name} WHERE n = 7")
    pipeline.conn.execute(f"INSERT INTO {name} VALUES (1000000, 1, 1)")
    pipeline.configure(replicator=SMALL)
    seen = set()
    with pipeline.following():
        pipeline.conn.execute("SELECT warehouse.resync(%s)", (name,))
        while pipeline.is_copying():
            seen.add(pipeline.fetch(f"SELECT count(*) FROM {name}")[0][0])
        pipeline.assert_equal("ints")
    assert seen <= {ROWS, ROWS + 1}
    assert pipeline.deleted_keys("ints") == [{"id": 1000000}]


def test_a_range_is_copied_again(pipeline: Pipeline) -> None:
    """What was changed by hand between two keys is as at the source again, and nothing else was touched."""
    make_tables(pipeline, 400, only="pairs")
    pipeline.catch_up()
    name = f"{pipeline.source.name}.pairs"
    damage = f"UPDATE {name} SET n = -1 WHERE a IN (-20, 3, 4); DELETE FROM {name} WHERE a = 3 AND b LIKE '%3'"
    pipeline.conn.execute(f"{damage}; INSERT INTO {name} VALUES ('more', 0, 4, 1), ('more', 0, 9, 2)")
    before = pipeline.fetch(f"SELECT * FROM {name} WHERE a NOT IN (3, 4) ORDER BY a, b")
    pipeline.configure(replicator=SMALL)
    with pipeline.following():
        pipeline.conn.execute("""SELECT warehouse.resync(%s, '{"a": 3}', '{"a": 4}')""", (name,))
        pipeline.wait_until(lambda: not pipeline.is_copying())
        assert pipeline.fetch(f"SELECT * FROM {name} WHERE a NOT IN (3, 4) ORDER BY a, b") == before
        order = "a, b"
        found = pipeline.fetch(f"SELECT a, b, n FROM {name} WHERE a IN (3, 4)")
        assert set(found) == set(pipeline.source.execute(f"SELECT a, b, n FROM {name} WHERE a IN (3, 4) ORDER BY {order}"))
        assert pipeline.deleted_keys("pairs") == [{"a": 4, "b": "more"}]
        asked = pipeline.run("replicator", "snapshot", name, "--from", '{"a": 9}')
        assert asked.returncode == 0, asked.stderr
        pipeline.wait_until(lambda: not pipeline.is_copying())
        assert pipeline.fetch(f"SELECT count(*) FROM {name} WHERE b = 'more'") == [(0,)]
        for low in ('{"b": "x"}', '{"a": "x"}', "{}", "[1]", '{"a": 1, "b": "x"}'):
            with pytest.raises(psycopg.errors.RaiseException):
                pipeline.conn.execute("SELECT warehouse.resync(%s, %s, NULL)", (name, low))


def test_a_copy_waits_while_the_source_is_busy(mysql_pipeline: Pipeline) -> None:
    """Above the limit of running threads nothing is read and the status says so; below it the copy comes to its end."""
    pipeline = mysql_pipeline
    make_tables(pipeline, only="ints")
    sleepers = [pipeline.source.connect() for _ in range(12)]
    for each in sleepers:
        each._execute_command(3, "SELECT SLEEP(600)")
    pipeline.configure(replicator=SMALL | {"snapshot_max_threads_running": 10})
    service = pipeline.start("replicator", "run")
    waits = "SELECT waits_for, rows_done < %s, time_left FROM warehouse.copy_status WHERE waits_for IS NOT NULL"
    pipeline.wait_until(lambda: pipeline.fetch(waits, ROWS) != [])
    reason, is_part, _ = pipeline.fetch(waits, ROWS)[0]
    assert "threads running" in reason
    assert is_part
    for command in ("warehouse", "replicator"):
        shown = pipeline.run(command, "status")
        assert shown.returncode == 0, shown.stderr
        assert "Copies" in shown.stdout
        assert "threads running" in shown.stdout
    for each in sleepers:
        pipeline.source.execute(f"KILL {each.thread_id()}")
        each._force_close()
    pipeline.sync()
    pipeline.assert_equal("ints")
    assert "Copies" not in pipeline.run("replicator", "status").stdout
    assert service.stop() == 0
