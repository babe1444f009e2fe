"""The rounds in which derived views are refreshed: which ones, how far they are complete, beside readers and other rounds."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fixtures.views import COUNTS, TOTAL, Mirror, Refresh, Write, complete_to, read_mark, read_rows, summarize
from warehouse.db import Connection, connect, lock_number
from warehouse.errors import SettingsError, WarehouseUnavailable
from warehouse.refresh import LOCK, refresh_views
from warehouse.settings import RefreshSettings, WarehouseSettings


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
