"""What the source dropped stays with the rows that it belonged to, whatever writes these again; or goes, if so wanted."""

from tests.fixtures.copies import SMALL
from tests.fixtures.pipeline import Pipeline
from tests.integration.test_verify import verify

ROWS = 40


def make_table(pipeline: Pipeline, key: str = "id INT PRIMARY KEY") -> None:
    """A table t whose column c, with c = 100 + id in every row and a zero date in d, was dropped at the source."""
    rows = ", ".join(f"({i}, {i}, {100 + i}, '0000-00-00')" for i in range(1, ROWS + 1))
    pipeline.source.execute(
        "SET SESSION sql_mode = ''", f"CREATE TABLE t ({key}, n INT, c INT, d DATE)", f"INSERT INTO t VALUES {rows}"
    )
    pipeline.catch_up()
    pipeline.source.execute("ALTER TABLE t DROP c, DROP d")
    pipeline.catch_up()


def history_of(pipeline: Pipeline) -> dict[int, int | None]:
    """What each row holds in the column c."""
    return dict(pipeline.read_mirror("t", "id, c"))  # type: ignore[arg-type]


def test_the_history_follows_its_row(pipeline: Pipeline) -> None:
    """Updates, keys that move and change places, rows that go and others that come under their keys: each in one batch."""
    make_table(pipeline)
    pipeline.source.execute(
        "UPDATE t SET n = -n WHERE id <= 10", "UPDATE t SET id = id + 1000 WHERE id = 11", "DELETE FROM t WHERE id = 12",
        "INSERT INTO t VALUES (12, 0), (50, 0)", "UPDATE t SET id = 999 WHERE id = 13", "UPDATE t SET id = 13 WHERE id = 14",
        "UPDATE t SET id = 14 WHERE id = 999", "UPDATE t SET id = 60, n = 1 WHERE id = 50", "DELETE FROM t WHERE id = 15",
        "UPDATE t SET id = 15 WHERE id = 16", "UPDATE t SET id = 16 WHERE id = 1011", "DELETE FROM t WHERE id = 17",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("t")
    expected: dict[int, int | None] = {i: 100 + i for i in range(1, ROWS + 1)}
    expected |= {12: None, 13: 114, 14: 113, 15: 116, 16: 111, 60: None}
    del expected[11], expected[17]
    assert history_of(pipeline) == expected
    # a zero date of the dropped column is where it was
    assert pipeline.read_mirror("t", "_raw ->> 'd'", order="id")[:12] == [("0000-00-00",)] * 10 + [(None,), ("0000-00-00",)]
    with pipeline.following():
        assert verify(pipeline, "t")["state"] == "Equal"
        pipeline.source.execute("UPDATE t SET id = id + 5000 ORDER BY id DESC")
        pipeline.sync()
        assert history_of(pipeline) == {i + 5000: value for i, value in expected.items()}
        schema = pipeline.source.name
        pipeline.conn.execute(f"UPDATE {schema}.t SET n = 7 WHERE id = 5001; DELETE FROM {schema}.t WHERE id = 5002")  # type: ignore[arg-type]
        found = verify(pipeline, "t", repair=True)
        assert (found["different"], found["missing"], found["repaired"]) == (1, 1, 2)
        assert history_of(pipeline) == {i + 5000: value for i, value in (expected | {2: None}).items()}
    pipeline.assert_equal("t")


def test_the_history_outlives_copies(pipeline: Pipeline) -> None:
    """A range, all slices with rows changing and keys moving meanwhile, a wider key, another type: nothing is lost."""
    make_table(pipeline)
    name = f"{pipeline.source.name}.t"
    pipeline.configure(replicator=SMALL | {"snapshot_slice_rows": 3, "snapshot_page_rows": 7})
    with pipeline.following():
        pipeline.conn.execute("""SELECT warehouse.resync(%s, '{"id": 3}', '{"id": 20}')""", (name,))
        for i in range(1, 11):
            pipeline.source.execute(f"UPDATE t SET id = id + 100, n = 0 WHERE id = {i}")
        pipeline.sync()
        expected = {i + 100 * (i <= 10): 100 + i for i in range(1, ROWS + 1)}
        pipeline.assert_equal("t")
        assert history_of(pipeline) == expected
        pipeline.conn.execute("SELECT warehouse.resync(%s)", (name,))
        for i in range(101, 111):
            pipeline.source.execute(f"UPDATE t SET id = id + 100 WHERE id = {i}", f"DELETE FROM t WHERE id = {i - 80}")
        pipeline.sync()
        expected = {i + 100 * (i > 100): value for i, value in expected.items() if not 21 <= i <= 30}
        pipeline.assert_equal("t")
        assert history_of(pipeline) == expected
    # what a copy brings, with a wider key and another type of n: the old values of n stay, too
    pipeline.source.execute("ALTER TABLE /*! t */ MODIFY id BIGINT, MODIFY n VARCHAR(9)", "UPDATE t SET n = 'x' WHERE id = 40")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert history_of(pipeline) == expected
    assert pipeline.read_mirror("t", "id, n, n__old") == [
        (i, "x" if i == 40 else "0" if i > 100 else str(i), 0 if i > 100 else i) for i in sorted(expected)
    ]
    # under another key the rows cannot be known again, and stay elsewhere
    pipeline.source.execute("ALTER TABLE /*! t */ MODIFY id VARCHAR(9)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    kept = pipeline.fetch("SELECT (row ->> 'id')::int, (row ->> 'c')::int FROM warehouse.kept_rows WHERE 'c' = ANY (columns)")
    assert dict(kept) == expected


def test_whole_copies_keep_it(pipeline: Pipeline) -> None:
    """Tables that are copied in one piece: with a key that is not paged, and without a key, where equal rows share it out."""
    pipeline.source.execute(
        "CREATE TABLE t (id ENUM('a','b','c') PRIMARY KEY, n INT, c INT)", "INSERT INTO t VALUES ('a', 1, 1), ('b', 2, 2)",
        "CREATE TABLE u (a INT, b INT, c INT)", "INSERT INTO u VALUES (1, 1, 10), (1, 1, 11), (2, 2, 20), (3, 3, NULL)",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.source.execute("ALTER TABLE t DROP c", "ALTER TABLE u DROP c", "INSERT INTO u VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t", "id, n, c") == [("a", 1, 1), ("b", 2, 2)]
    for _ in range(2):
        found = pipeline.read_mirror("u", "a, b, c", order="1, 2, 3")
        assert found == [(1, 1, 10), (1, 1, 11), (1, 1, None), (2, 2, 20), (3, 3, None)]
        assert pipeline.deleted_keys("u") == []
        pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.u",))
        pipeline.catch_up()


def test_a_crash_takes_none_of_it(mysql_pipeline: Pipeline) -> None:
    """Dead between the deletion and the new rows, between slices and before a copy's end; each next run goes on."""
    pipeline = mysql_pipeline
    make_table(pipeline)
    pipeline.configure(replicator=SMALL | {"snapshot_slice_rows": 3, "snapshot_page_rows": 7})
    expected = {i: 100 + i for i in range(1, ROWS + 1)}
    for round_, point in enumerate(("before_commit", "copy", "end_copy"), 1):
        if "copy" in point:
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
        pipeline.source.execute("UPDATE t SET n = n + 1", f"UPDATE t SET id = id + 100 WHERE id = {round_}")
        expected[round_ + 100] = expected.pop(round_)
        service = pipeline.start("replicator", "run", TAILRACE_CRASH_AT=point)
        pipeline.wait_until(lambda service=service: service.process.poll() is not None)  # type: ignore[misc]
        assert service.process.returncode == -9, service.read_log()
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert history_of(pipeline) == expected


def test_told_otherwise(pipeline: Pipeline) -> None:
    """With dropped_columns = "drop" the column goes, in place and with a copy; and what was kept before stays."""
    make_table(pipeline)
    pipeline.configure(replicator={"dropped_columns": "drop"})
    pipeline.source.execute("ALTER TABLE t ADD e INT DEFAULT 5, ADD f INT DEFAULT 6", "ALTER TABLE t DROP e")
    pipeline.catch_up()
    pipeline.source.execute("ALTER TABLE /*! t */ DROP f, MODIFY n VARCHAR(9)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    columns = pipeline.fetch("SELECT string_agg(column_name, ' ' ORDER BY column_name) FROM information_schema.columns"
                             " WHERE table_name = 't' AND column_name NOT LIKE '\\_%'")  # fmt: skip
    assert columns == [("c d id n",)]
    assert history_of(pipeline) == {i: 100 + i for i in range(1, ROWS + 1)}
