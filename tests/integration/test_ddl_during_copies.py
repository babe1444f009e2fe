"""Every kind of DDL in the middle of a copy beside the stream: exactly between two slices, and while the replicator is down."""

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from replicator import copies, copy_pace
from tests.fixtures.copies import SMALL
from tests.fixtures.pipeline import Pipeline

ROWS = 400
BEFORE = (
    "UPDATE {t} SET n = -n WHERE MOD(id, 7) = 0",
    "DELETE FROM {t} WHERE MOD(id, 11) = 0",
    "INSERT INTO {t} (id, n) VALUES (0, 9)",
)
AFTER = (
    "UPDATE {t} SET n = 5 WHERE MOD(id, 5) = 0",
    "DELETE FROM {t} WHERE MOD(id, 13) = 0",
    "INSERT INTO {t} (id, n) VALUES (999, 1)",
)
DDL = {
    "added": ("ALTER TABLE {t} ADD COLUMN m INT DEFAULT 9 FIRST",),
    "add_now": ("ALTER TABLE {t} ADD COLUMN m INT AS (id + 1) STORED",),
    "drop_column": ("ALTER TABLE {t} DROP COLUMN word",),
    "widen": ("ALTER TABLE {t} MODIFY n BIGINT, MODIFY word TEXT",),
    "widen_key": ("ALTER TABLE {t} MODIFY id BIGINT",),
    "retype": ("ALTER TABLE {t} MODIFY n VARCHAR(20)",),
    "retype_key": ("ALTER TABLE {t} MODIFY id VARCHAR(20)",),
    "reorder": ("ALTER TABLE {t} MODIFY word VARCHAR(20) FIRST",),
    "other_key": ("UPDATE {t} SET k = id", "ALTER TABLE {t} DROP PRIMARY KEY, ADD PRIMARY KEY (k, id)"),
    "no_key": ("ALTER TABLE {t} DROP PRIMARY KEY",),
    "twice": ("ALTER TABLE {t} ADD m INT DEFAULT 1", "UPDATE {t} SET m = 2 WHERE id < 9", "ALTER TABLE {t} DROP m"),
    "truncated": ("TRUNCATE {t}",),
    "anew": ("DROP TABLE {t}", "CREATE TABLE {t} (id INT PRIMARY KEY, n BIGINT)", "INSERT INTO {t} VALUES (5, 5), (7, 7)"),
    "swapped": ("CREATE TABLE {t}_new LIKE {t}", "ALTER TABLE {t}_new MODIFY id BIGINT",
                "INSERT INTO {t}_new SELECT * FROM {t}", "RENAME TABLE {t} TO {t}_old, {t}_new TO {t}", "DROP TABLE {t}_old"),
}  # fmt: skip
GONE = {"renamed": ("RENAME TABLE renamed TO another",), "dropped": ("DROP TABLE dropped",)}


DOWN = ("added", "retype", "other_key", "truncated", "swapped", *GONE)


def make_tables(pipeline: Pipeline, names: Iterable[str]) -> None:
    """A table for each of these statements, not copied yet, and read in small pages."""
    values = ", ".join(f"({i}, {i}, 'word {i}', 0)" for i in range(1, ROWS + 1))
    for name in names:
        pipeline.source.execute(
            f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT, word VARCHAR(20), k INT NOT NULL DEFAULT 0)",
            f"INSERT INTO {name} VALUES {values}",
        )
    pipeline.configure(replicator=SMALL | {"snapshot_max_rows_per_s": 100_000.0})


def disturb(pipeline: Pipeline, name: str) -> None:
    """Change rows, carry out the table's statement, and change rows again."""
    statements = (*BEFORE, *GONE[name]) if name in GONE else (*BEFORE, *DDL[name], *AFTER)
    pipeline.source.execute("SET SESSION sql_mode = ''", *(text.format(t=name) for text in statements))


def check(pipeline: Pipeline, names: Iterable[str]) -> None:
    """Both sides are equal, and what is gone at the source says so."""
    wrong = []
    for name in (*(name for name in names if name in DDL), "another"):
        try:
            pipeline.assert_equal(name)
        except AssertionError as error:
            wrong.append(f"{name}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)
    assert {pipeline.state(name)[0] for name in GONE} == {"DroppedSource"}


def test_between_two_slices(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each table a part is copied when its statement comes, and the copy goes on before the stream is there."""
    make_tables(pipeline, (*DDL, *GONE))
    waiting = {*DDL, *GONE}
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            disturb(pipeline, name)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)

    def reach(point: str) -> None:
        if point != "between_slices":
            return
        for name, done in pipeline.fetch("SELECT split_part(table_name, '.', 2), rows_done FROM warehouse.copy_status"):
            if name in waiting and 0 < done < ROWS:
                waiting.remove(name)
                threads.append(threading.Thread(target=work, args=(name,)))
                threads[-1].start()
                # MariaDB keeps a table from being altered while a page is read, whose rows wait for this thread
                threads[-1].join(0.3)

    monkeypatch.setattr(copies, "reach", reach)
    # a hundred rows a slice, however fast the machine is
    monkeypatch.setattr(copy_pace, "_IDLE_S", 0.0)
    with pipeline.following():
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        pipeline.sync()
        assert not waiting, "all were met in the middle of their copies"
        check(pipeline, DDL)


def test_while_the_replicator_is_down(pipeline: Pipeline) -> None:
    """Killed between two slices; everything happens before the next run, which finds copies that fit no longer."""
    make_tables(pipeline, DOWN)
    service = pipeline.start("replicator", "run", TAILRACE_CRASH_AT="between_slices:5")
    pipeline.wait_until(lambda: service.process.poll() is not None)
    assert service.process.returncode == -9, service.read_log()
    done: list[Any] = pipeline.fetch("SELECT table_name FROM warehouse.copy_status WHERE rows_done > 0")
    assert done, "a copy was in its middle"
    for name in DOWN:
        disturb(pipeline, name)
    pipeline.catch_up()
    check(pipeline, DOWN)
