"""Derived views on a real Postgres, with mirror tables made by hand as the replicator would."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from warehouse.db import Connection, connect, lock_number
from warehouse.errors import SettingsError, WarehouseUnavailable
from warehouse.refresh import LOCK, Refreshed, refresh_views
from warehouse.settings import RefreshSettings, WarehouseSettings

START = datetime(2026, 1, 1, tzinfo=UTC)

COUNTS = """CREATE MATERIALIZED VIEW analytics.counts AS
SELECT unit, count(*) AS rows, sum(value) AS total FROM plant.readings GROUP BY unit;
CREATE UNIQUE INDEX ON analytics.counts (unit);
"""
TOTAL = """CREATE MATERIALIZED VIEW analytics.a_total AS
SELECT 1 AS id, sum(rows)::bigint AS rows FROM analytics.counts;
CREATE UNIQUE INDEX ON analytics.a_total (id);
"""


class Mirror:
    """A mirror table and its control rows, written in one transaction per change, as the replicator does."""

    def __init__(self, conn: Connection, name: str = "plant.readings") -> None:
        self.conn = conn
        self.name = name
        conn.execute("CREATE SCHEMA IF NOT EXISTS plant")
        conn.execute(
            f"CREATE TABLE {name} (id bigint PRIMARY KEY, unit int, value double precision, "
            "_seq bigint NOT NULL, _committed_at timestamptz, _raw jsonb)"
        )
        conn.execute(
            "INSERT INTO warehouse.sources (source, flavor, server_version) VALUES ('plant', 'mysql', '9.7') "
            "ON CONFLICT DO NOTHING"
        )
        conn.execute(
            "INSERT INTO warehouse.tables (source, table_name, mirror, state) VALUES ('plant', %s, %s, 'Synced')", (name, name)
        )
        conn.execute(
            "INSERT INTO warehouse.checkpoint (source, server_identity, file, pos) VALUES ('plant', 'x', 'binlog.1', 4) "
            "ON CONFLICT DO NOTHING"
        )

    def insert(self, unit: int, value: float = 1.0) -> datetime:
        """Insert a row as the next source transaction; returns its commit time."""
        with self.conn.transaction():
            at = self.advance()
            self.conn.execute(
                f"INSERT INTO {self.name} SELECT c.seq, %s, %s, c.seq, c.committed_at FROM warehouse.checkpoint c",
                (unit, value),
            )
            self.conn.execute(
                "UPDATE warehouse.tables t SET seq = c.seq, rows = rows + 1, inserted = inserted + 1 "
                "FROM warehouse.checkpoint c WHERE mirror = %s",
                (self.name,),
            )
        return at

    def advance(self) -> datetime:
        """Let the source commit a transaction that touches no table of ours; returns its commit time."""
        row = self.conn.execute(
            "UPDATE warehouse.checkpoint SET seq = seq + 1, pos = pos + 100, committed_at = %s + (seq + 1) * interval '1 s' "
            "RETURNING committed_at",
            (START,),
        ).fetchone()
        assert row is not None
        at: datetime = row[0]
        return at


@pytest.fixture
def mirror(warehouse: Connection) -> Mirror:
    """An empty mirror table plant.readings."""
    return Mirror(warehouse)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Write a view file into the user's folder."""

    def write_file(name: str, text: str) -> None:
        (tmp_path / f"{name}.sql").write_text(text)

    return write_file


@pytest.fixture
def refresh(warehouse: Connection, tmp_path: Path) -> Callable[..., list[Refreshed]]:
    """Run a round over the user's folder alone, without waiting for views whose time has not come."""
    settings = RefreshSettings(directory=tmp_path, shipped=False)

    def run(*names: str, **options: Any) -> list[Refreshed]:
        return refresh_views(warehouse, settings, names, **{"force": True, **options})

    return run


Refresh = Callable[..., list[Refreshed]]
Write = Callable[[str, str], None]


def summarize(done: list[Refreshed]) -> list[tuple[str, str]]:
    """View name without schema, and what was done."""
    return [(entry.view.removeprefix("analytics."), entry.action) for entry in done]


def read_mark(conn: Connection, name: str) -> dict[str, Any]:
    """A view's watermark row."""
    row = conn.execute("SELECT to_jsonb(w) FROM warehouse.view_watermarks w WHERE view = %s", (f"analytics.{name}",)).fetchone()
    assert row is not None
    mark: dict[str, Any] = row[0]
    return mark


def read_rows(conn: Connection, name: str) -> list[tuple[Any, ...]]:
    """A view's rows, in order."""
    return conn.execute(f"SELECT * FROM analytics.{name} ORDER BY 1").fetchall()


def complete_to(conn: Connection, name: str) -> datetime | None:
    """A view's completeness as an instant."""
    row = conn.execute("SELECT complete_to FROM warehouse.view_watermarks WHERE view = %s", (f"analytics.{name}",)).fetchone()
    assert row is not None
    at: datetime | None = row[0]
    return at


def test_creates_in_dependency_order_and_refreshes_only_what_changed(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A view on a view is made after it whatever the names say; without a change nothing runs, with one both do, in order."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    mirror.insert(1)
    assert summarize(refresh()) == [("counts", "created"), ("a_total", "created")]
    assert refresh() == []
    mirror.insert(1)
    mirror.insert(2)
    assert summarize(refresh()) == [("counts", "refreshed"), ("a_total", "refreshed")]
    assert read_rows(warehouse, "counts") == [(1, 2, 2.0), (2, 1, 1.0)]
    assert read_rows(warehouse, "a_total") == [(1, 3)]


def test_watermark_says_the_last_source_commit_and_moves_on_without_changes(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A refresh is complete to the checkpoint; a source transaction elsewhere moves the watermark and runs no refresh."""
    write("counts", COUNTS)
    at = mirror.insert(1)
    (done,) = refresh()
    assert done.complete_to == at == complete_to(warehouse, "counts")
    later = mirror.advance()
    assert refresh() == []
    assert complete_to(warehouse, "counts") == later
    mark = read_mark(warehouse, "counts")
    assert mark["refreshes"] == 1
    assert mark["positions"]["plant"]["seq"] == 2


def test_content_and_watermark_agree_while_rows_stream_in(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh, warehouse_settings: WarehouseSettings
) -> None:
    """With a writer at work, a view, a view on it and their watermark always tell of the same number of source transactions."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    mirror.insert(1)
    stop = threading.Event()

    def stream() -> None:
        with connect(warehouse_settings, "writer") as conn:
            writer = object.__new__(Mirror)
            writer.conn, writer.name = conn, mirror.name
            while not stop.is_set():
                writer.insert(1)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for _ in range(15):
            refresh()
            # One query, one snapshot: it can fall between rounds only.
            row = warehouse.execute(
                "SELECT (SELECT rows FROM analytics.counts), (SELECT rows FROM analytics.a_total), "
                "(positions -> 'plant' ->> 'seq')::bigint FROM warehouse.view_watermarks WHERE view = 'analytics.a_total'"
            ).fetchone()
            assert row is not None
            assert row[0] == row[1] == row[2]
    finally:
        stop.set()
        thread.join()
    assert row[2] > 1


def test_missing_input_is_pending_and_made_once_it_appears(warehouse: Connection, write: Write, refresh: Refresh) -> None:
    """A view whose table is not there waits with the reason, is not tried again before the catalog changes, then appears."""
    write("counts", COUNTS)
    assert summarize(refresh(force=False)) == [("counts", "pending")]
    mark = read_mark(warehouse, "counts")
    assert mark["state"] == "Pending"
    assert "plant.readings" in mark["reason"]
    assert refresh(force=False) == []
    Mirror(warehouse)
    assert summarize(refresh(force=False)) == [("counts", "created")]
    assert read_mark(warehouse, "counts")["state"] == "Ready"


def test_inputs_are_found_through_plain_views_and_partitions(warehouse: Connection, write: Write, refresh: Refresh) -> None:
    """A change of a partition below a plain view is seen, though no file names it."""
    warehouse.execute("CREATE TABLE public.parted (id int, v int) PARTITION BY LIST (id)")
    warehouse.execute("CREATE TABLE public.part_1 PARTITION OF public.parted FOR VALUES IN (1)")
    warehouse.execute("CREATE VIEW public.outer_view AS SELECT * FROM public.parted")
    write(
        "through",
        "CREATE MATERIALIZED VIEW analytics.through AS SELECT id, sum(v) AS v FROM public.outer_view GROUP BY id;"
        "CREATE UNIQUE INDEX ON analytics.through (id);",
    )
    refresh()
    refresh()
    assert set(read_mark(warehouse, "through")["inputs"]) == {"public.parted", "public.part_1"}
    assert refresh() == []
    warehouse.execute("INSERT INTO public.part_1 VALUES (1, 5)")
    assert summarize(refresh()) == [("through", "refreshed")]
    assert read_rows(warehouse, "through") == [(1, 5)]


def test_change_of_a_watched_table_that_commits_after_the_round_is_not_missed(
    warehouse: Connection, write: Write, refresh: Refresh, warehouse_settings: WarehouseSettings
) -> None:
    """A writer that began before a round and commits after it is seen by the next; writers do not wait for each other."""
    warehouse.execute("CREATE TABLE public.notes (id int)")
    write(
        "noted",
        "CREATE MATERIALIZED VIEW analytics.noted AS SELECT 1 AS one, count(*) AS notes FROM public.notes;"
        "CREATE UNIQUE INDEX ON analytics.noted (one);",
    )
    refresh()
    refresh()
    with connect(warehouse_settings, "first") as first, connect(warehouse_settings, "second") as second:
        second.execute("SET lock_timeout = '2s'")
        with first.transaction():
            first.execute("INSERT INTO public.notes VALUES (1)")
            second.execute("INSERT INTO public.notes VALUES (2)")
            assert summarize(refresh()) == [("noted", "refreshed")]
            assert read_rows(warehouse, "noted") == [(1, 1)]
        assert summarize(refresh()) == [("noted", "refreshed")]
    assert read_rows(warehouse, "noted") == [(1, 2)]
    assert refresh() == []
    assert warehouse.execute("SELECT count(*) FROM warehouse.relation_changes").fetchone() == (0,)


def test_changed_file_recreates_the_view_and_its_dependents(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A changed file takes effect, the view that reads it comes back, and rights that others had on both are kept."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    mirror.insert(3)
    refresh()
    warehouse.execute("GRANT SELECT ON analytics.counts, analytics.a_total TO PUBLIC")
    write("counts", COUNTS.replace("GROUP BY unit", "WHERE unit <> 3 GROUP BY unit"))
    assert summarize(refresh()) == [("counts", "recreated"), ("a_total", "recreated")]
    assert read_rows(warehouse, "counts") == []
    for name in ("counts", "a_total"):
        row = warehouse.execute("SELECT relacl::text LIKE '%%,=r/%%' FROM pg_class WHERE relname = %s", (name,)).fetchone()
        assert row == (True,), name


def test_changed_file_that_is_broken_leaves_the_old_view_at_work(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """The old definition goes on being refreshed, the state says Failed with the reason, and mending the file mends it."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    mirror.insert(1)
    refresh()
    write("counts", COUNTS.replace("sum(value)", "sum(no_such_column)"))
    mirror.insert(1)
    assert summarize(refresh()) == [("counts", "failed"), ("counts", "refreshed"), ("a_total", "refreshed")]
    mark = read_mark(warehouse, "counts")
    assert (mark["state"], mark["reason"]) == ("Failed", 'column "no_such_column" does not exist')
    assert read_rows(warehouse, "counts") == [(1, 2, 2.0)]
    write("counts", COUNTS + "-- mended")
    refresh()
    assert read_mark(warehouse, "counts")["state"] == "Ready"


def test_object_of_somebody_else_on_a_view_is_never_dropped(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A plain view that an analyst put on a derived view blocks the change of its file, and the reason names it."""
    write("counts", COUNTS)
    mirror.insert(1)
    refresh()
    warehouse.execute("CREATE VIEW public.of_an_analyst AS SELECT * FROM analytics.counts")
    write("counts", COUNTS + "-- changed")
    refresh()
    mark = read_mark(warehouse, "counts")
    assert mark["state"] == "Failed"
    assert "of_an_analyst" in mark["reason"]
    assert warehouse.execute("SELECT rows FROM public.of_an_analyst").fetchone() == (1,)
    warehouse.execute("DROP VIEW public.of_an_analyst")
    assert summarize(refresh()) == [("counts", "recreated")]


def test_broken_view_stops_no_other_and_keeps_its_content_and_watermark(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A view that fails on new data keeps its old rows and its old watermark; the others go on."""
    broken = (
        "CREATE MATERIALIZED VIEW analytics.a_broken AS SELECT unit, sum(1 / value) AS v FROM plant.readings GROUP BY unit;"
    )
    write("a_broken", broken + "CREATE UNIQUE INDEX ON analytics.a_broken (unit);")
    write("counts", COUNTS)
    first = mirror.insert(1)
    refresh()
    second = mirror.insert(1, 0.0)
    assert summarize(refresh()) == [("a_broken", "failed"), ("counts", "refreshed")]
    mark = read_mark(warehouse, "a_broken")
    assert (mark["state"], mark["reason"], mark["failures"]) == ("Failed", "division by zero", 1)
    assert read_rows(warehouse, "a_broken") == [(1, 1.0)]
    assert complete_to(warehouse, "a_broken") == first
    assert complete_to(warehouse, "counts") == second
    assert refresh(force=False) == [], "it is tried again later, not in every round"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CREATE MATERIALIZED VIEW analytics.odd AS SELECT 1 AS a;", "unique index"),
        ("CREATE MATERIALIZED VIEW analytics.other AS SELECT 1 AS a; CREATE UNIQUE INDEX ON analytics.other (a);", "must make"),
        ("SELECT 1;", "it made nothing"),
        (
            "CREATE MATERIALIZED VIEW analytics.odd AS SELECT 1 AS a; CREATE UNIQUE INDEX ON analytics.odd (a); "
            "CREATE TABLE analytics.more (a int);",
            "analytics.more (r)",
        ),
        ("CREATE MATERIALIZED VIEW analytics.odd AS SELECT 1 AS a; COMMIT;", "transaction"),
        ("CREATE MATERIALIZED VIE", "syntax error"),
    ],
)
def test_file_that_breaks_the_contract_fails_and_leaves_nothing(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh, text: str, reason: str
) -> None:
    """What is not exactly one view of the file's name with a unique index is undone, with the reason, and others go on."""
    write("odd", text)
    write("counts", COUNTS)
    mirror.insert(1)
    assert sorted(summarize(refresh())) == [("counts", "created"), ("odd", "failed")]
    mark = read_mark(warehouse, "odd")
    assert mark["state"] == "Failed"
    assert reason in mark["reason"]
    rows = warehouse.execute("SELECT relname FROM pg_class WHERE relnamespace = 'analytics'::regnamespace AND relkind <> 'i'")
    assert rows.fetchall() == [("counts",)]


def test_foreign_view_of_the_same_name_is_left_alone(warehouse: Connection, write: Write, refresh: Refresh) -> None:
    """A materialized view that was there before is neither replaced nor refreshed."""
    warehouse.execute("CREATE MATERIALIZED VIEW analytics.counts AS SELECT 42 AS answer")
    write("counts", COUNTS)
    assert summarize(refresh()) == [("counts", "failed")]
    assert "was not made from" in read_mark(warehouse, "counts")["reason"]
    assert read_rows(warehouse, "counts") == [(42,)]


def test_view_dropped_by_hand_comes_back(warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh) -> None:
    """What is gone is made again from its file, also when its drop was the replicator's, which needs a column free."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    mirror.insert(1)
    refresh()
    warehouse.execute("GRANT SELECT ON analytics.counts TO PUBLIC")
    dropped = warehouse.execute("SELECT warehouse.drop_views_of('plant.readings')").fetchall()
    assert dropped == [("analytics.a_total",), ("analytics.counts",)]
    warehouse.execute("ALTER TABLE plant.readings ALTER value TYPE numeric")
    assert summarize(refresh(force=False)) == [("counts", "created"), ("a_total", "created")]
    assert warehouse.execute("SELECT has_table_privilege('public', 'analytics.counts', 'SELECT')").fetchone() == (True,)
    warehouse.execute("DROP MATERIALIZED VIEW analytics.a_total")
    assert summarize(refresh(force=False)) == [("a_total", "created")]


def test_input_that_is_being_copied_makes_the_view_incomplete(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """While a snapshot runs, a view and the views on it say that they are complete to nothing, and why."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    at = mirror.insert(1)
    warehouse.execute("UPDATE warehouse.tables SET state = 'Snapshotting'")
    refresh()
    mark = read_mark(warehouse, "counts")
    assert (mark["state"], mark["reason"]) == ("Incomplete", "plant.readings is Snapshotting")
    assert read_mark(warehouse, "a_total")["state"] == "Incomplete"
    assert complete_to(warehouse, "a_total") is None
    warehouse.execute("UPDATE warehouse.tables SET state = 'Synced'")
    refresh()
    assert read_mark(warehouse, "a_total")["state"] == "Ready"
    assert complete_to(warehouse, "a_total") == at


def test_view_on_scores_is_complete_to_what_is_scored(
    warehouse: Connection, mirror: Mirror, refresh: Refresh, write: Write
) -> None:
    """A view on anomalies follows the scorer's watermark, and the checkpoint once everything is scored."""
    write(
        "seen",
        "CREATE MATERIALIZED VIEW analytics.seen AS SELECT entity, count(*) AS n FROM scorer.anomalies GROUP BY entity;"
        "CREATE UNIQUE INDEX ON analytics.seen (entity);",
    )
    warehouse.execute(
        "INSERT INTO scorer.models (name, version, state, relation, feature_columns, training_query, parameters) "
        "VALUES ('m', 1, 'READY', 'plant.%', '{value}', 'SELECT 1', '{}')"
    )
    first = mirror.insert(1)
    second = mirror.insert(1)
    warehouse.execute(
        "INSERT INTO scorer.watermarks (model, version, relation, source, seq, committed_at) "
        "VALUES ('m', 1, 'plant.readings', 'plant', 1, %s)",
        (first,),
    )
    refresh()
    assert complete_to(warehouse, "seen") == first - timedelta(microseconds=1)
    warehouse.execute("UPDATE scorer.watermarks SET seq = 2")
    refresh()
    assert complete_to(warehouse, "seen") == second


def test_view_without_file_is_kept_and_said_to_be_orphaned(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh, tmp_path: Path
) -> None:
    """Taking a file away drops no data; once the view is dropped by hand its row goes too."""
    write("counts", COUNTS)
    mirror.insert(1)
    refresh()
    (tmp_path / "counts.sql").unlink()
    assert refresh() == []
    assert read_mark(warehouse, "counts")["state"] == "Orphaned"
    assert read_rows(warehouse, "counts") == [(1, 1, 1.0)]
    warehouse.execute("DROP MATERIALIZED VIEW analytics.counts")
    refresh()
    assert warehouse.execute("SELECT count(*) FROM warehouse.view_watermarks").fetchone() == (0,)


def test_named_view_is_refreshed_in_any_case_with_what_it_reads(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """A name asks for a refresh though nothing changed, of that view; views below it run only if they changed."""
    write("counts", COUNTS)
    write("a_total", TOTAL)
    write("b_other", TOTAL.replace("a_total", "b_other"))
    mirror.insert(1)
    refresh()
    assert summarize(refresh("a_total")) == [("a_total", "refreshed")]
    mirror.insert(1)
    assert summarize(refresh("analytics.a_total")) == [("counts", "refreshed"), ("a_total", "refreshed")]
    with pytest.raises(SettingsError, match="no file makes the view analytics"):
        refresh("no_such")


def test_slow_view_is_refreshed_less_often(warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh) -> None:
    """A view that took a minute is not refreshed again at once, and its watermark stays where its content is."""
    write("counts", COUNTS)
    first = mirror.insert(1)
    refresh()
    warehouse.execute("UPDATE warehouse.view_watermarks SET duration_ms = 60000")
    mirror.insert(1)
    assert refresh(force=False) == []
    assert complete_to(warehouse, "counts") == first
    assert summarize(refresh(force=True)) == [("counts", "refreshed")]


def test_only_one_refresh_at_a_time(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh, warehouse_settings: WarehouseSettings
) -> None:
    """While another session refreshes, a round returns at once with nothing done."""
    write("counts", COUNTS)
    with connect(warehouse_settings, "other") as other:
        other.execute("SELECT pg_advisory_lock(%s)", (lock_number(LOCK),))
        assert refresh() == []
    assert summarize(refresh(wait=True)) == [("counts", "created")]


def test_refresh_is_concurrent_with_readers(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh, warehouse_settings: WarehouseSettings
) -> None:
    """A reader in the midst of its transaction neither stops the refresh nor sees its effect."""
    write("counts", COUNTS)
    mirror.insert(1)
    refresh()
    with connect(warehouse_settings, "reader") as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert reader.execute("SELECT rows FROM analytics.counts").fetchone() == (1,)
        mirror.insert(1)
        assert summarize(refresh()) == [("counts", "refreshed")]
        assert reader.execute("SELECT rows FROM analytics.counts").fetchone() == (1,)
    assert read_rows(warehouse, "counts") == [(1, 2, 2.0)]


def test_view_made_without_data_is_filled_in_the_same_round(
    warehouse: Connection, mirror: Mirror, write: Write, refresh: Refresh
) -> None:
    """WITH NO DATA is filled by a plain refresh, since CONCURRENTLY cannot fill an empty view."""
    write("counts", COUNTS.replace("GROUP BY unit;", "GROUP BY unit WITH NO DATA;"))
    mirror.insert(1)
    refresh()
    assert read_rows(warehouse, "counts") == [(1, 1, 1.0)]


def test_lost_connection_ends_the_round_and_keeps_nothing(
    warehouse: Connection, mirror: Mirror, write: Write, warehouse_settings: WarehouseSettings, tmp_path: Path
) -> None:
    """A connection that breaks is the round's failure, not a view's: no view is made and no state written."""
    write("counts", COUNTS)
    write(
        "z_suicide",
        "CREATE MATERIALIZED VIEW analytics.z_suicide AS SELECT 1 AS a, pg_terminate_backend(pg_backend_pid());"
        "CREATE UNIQUE INDEX ON analytics.z_suicide (a);",
    )
    mirror.insert(1)
    settings = RefreshSettings(directory=tmp_path, shipped=False)
    with connect(warehouse_settings, "victim") as victim, pytest.raises(WarehouseUnavailable):
        refresh_views(victim, settings)
    assert warehouse.execute("SELECT count(*) FROM warehouse.view_watermarks").fetchone() == (0,)
    assert warehouse.execute("SELECT to_regclass('analytics.counts')").fetchone() == (None,)


def test_shipped_views_fit_the_demo_tables(warehouse: Connection) -> None:
    """Every shipped view is made over the demo's tables, summarizes them rightly and is Ready."""
    columns = ", ".join(f"{name} double precision" for name in MEASUREMENTS)
    warehouse.execute("CREATE SCHEMA plant")
    for table in ("historical", "standard", "incremental"):
        warehouse.execute(
            f"CREATE TABLE plant.asset_readings_{table} (id bigint PRIMARY KEY, unit integer NOT NULL, cycle integer NOT NULL, "
            f"read_at timestamptz NOT NULL, {columns}, _seq bigint NOT NULL, _committed_at timestamptz, _raw jsonb)"
        )
    for table, cycle in (("historical", 1), ("standard", 2), ("incremental", 13)):
        warehouse.execute(
            f"INSERT INTO plant.asset_readings_{table} (id, unit, cycle, read_at, sensor_4, _seq) "
            f"VALUES (1, 7, {cycle}, %s, {cycle}, 1)",
            (START,),
        )
    done = refresh_views(warehouse, RefreshSettings())
    assert {entry.action for entry in done} == {"created"}
    summary = warehouse.execute(
        "SELECT readings, first_cycle, last_cycle, minimum, maximum, slope_per_cycle "
        "FROM engine_summary WHERE measurement = 'sensor_4'"
    ).fetchall()
    assert summary == [(3, 1, 13, 1.0, 13.0, pytest.approx(1.0))]
    assert warehouse.execute("SELECT unit, cycle, sensor_4 FROM engine_latest").fetchall() == [(7, 13, 13.0)]
    fleet = warehouse.execute(
        "SELECT from_cycle, engines, readings FROM fleet_by_cycle WHERE measurement = 'sensor_4' ORDER BY 1"
    )
    assert fleet.fetchall() == [(0, 1, 2), (10, 1, 1)]
    assert warehouse.execute("SELECT count(*) FROM engine_anomalies").fetchone() == (0,)
    states = warehouse.execute("SELECT DISTINCT state FROM warehouse.view_watermarks").fetchall()
    assert states == [("Ready",)]


MEASUREMENTS = [f"setting_{n}" for n in range(1, 4)] + [f"sensor_{n}" for n in range(1, 22)]


def test_reason_of_a_data_error_shows_no_values(warehouse: Connection, write: Write, refresh: Refresh) -> None:
    """The reason of a failing cast names the type and not the row's content."""
    warehouse.execute("CREATE TABLE public.secrets (v text)")
    warehouse.execute("INSERT INTO public.secrets VALUES ('top-secret')")
    write(
        "cast_it",
        "CREATE MATERIALIZED VIEW analytics.cast_it AS SELECT 1 AS a, sum(v::int) FROM public.secrets;"
        "CREATE UNIQUE INDEX ON analytics.cast_it (a);",
    )
    refresh()
    assert read_mark(warehouse, "cast_it")["reason"] == "invalid input syntax for type integer"
