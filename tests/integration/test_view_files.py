"""The files that make derived views: new, changed, broken and gone, in other people's way, and those that are shipped."""

from pathlib import Path

import pytest

from tests.fixtures.views import COUNTS, START, TOTAL, Mirror, Refresh, Write, complete_to, read_mark, read_rows, summarize
from warehouse.db import Connection
from warehouse.refresh import refresh_views
from warehouse.settings import RefreshSettings


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
