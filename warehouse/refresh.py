"""Makes the derived views from their files and refreshes them in dependency order when an input changed.

Owns the refresh round: one REPEATABLE READ transaction that reads the checkpoint, refreshes views and writes how far they
are complete. Under READ COMMITTED a view would be newer than its watermark. Never stops at a broken view; never drops an
object that it did not make.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import psycopg
import structlog
from psycopg import sql

from warehouse.db import Connection, error_class, qualified, wrap_errors
from warehouse.errors import SettingsError, WarehouseUnavailable
from warehouse.locks import hold_lock
from warehouse.settings import RefreshSettings
from warehouse.views import (
    SCHEMA,
    View,
    ViewFailed,
    ViewFile,
    create_view,
    describe_error,
    find_dependents,
    order_views,
    read_catalog_mark,
    read_view_files,
    read_views,
    watch_relation,
)
from warehouse.watermarks import Ledger, Watermark

log = structlog.get_logger()

LOCK = "refresh"
# A view that takes long is refreshed less often, so that refreshing never eats the machine.
BUSY_SHARE = 0.2
LONGEST_RETRY_S = 300.0

_MISSING_INPUT = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


@dataclass(frozen=True)
class Refreshed:
    """What a round did with one view. complete_to: commit time at the source, aware UTC."""

    view: str
    action: Literal["created", "recreated", "refreshed", "failed", "pending"]
    reason: str | None
    duration_ms: float
    complete_to: datetime | None


def refresh_views(
    conn: Connection, settings: RefreshSettings, names: Collection[str] = (), *, force: bool = False, wait: bool = False
) -> list[Refreshed]:
    """Make missing and changed views and refresh those whose inputs changed, in one transaction.

    Args:
        conn: in autocommit mode.
        settings: which files there are, and how soon a failed view is tried again.
        names: refresh these in any case, and what they read if it changed; empty: all that changed.
        force: try failed and slow views too, though their time has not come.
        wait: wait for another refresh to end; else return at once with an empty list while one runs.

    Returns:
        The views that something was done with, in the order of the work. Views whose inputs did not change are not among
        them; their watermarks move on with the checkpoint all the same. A view in trouble is logged once, when it gets there.

    Raises:
        SettingsError: a name is no view, or the folder of view files cannot be read.
        WarehouseUnavailable, WarehouseBusy: the round as a whole failed; nothing of it was kept.
    """
    files = read_view_files(settings)
    wanted = {name if name.startswith(f"{SCHEMA}.") else f"{SCHEMA}.{name}" for name in names}
    unknown = sorted(wanted - files.keys())
    if unknown:
        raise SettingsError(f"no file makes the view {', '.join(unknown)}", hint=f"There are: {', '.join(sorted(files))}")
    with hold_lock(conn, LOCK, wait=wait) as held:
        if not held:
            return []
        with wrap_errors(), conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            conn.execute("SET LOCAL lock_timeout = '5s'")
            work = Round(conn, settings, files, wanted, force=force or bool(wanted))
            work.run()
            news = work.ledger.save()
        for done in work.done:
            if done.action in ("created", "recreated", "refreshed"):
                log.info("refresh", view=done.view, action=done.action, duration_ms=round(done.duration_ms, 1))
        for mark in news:
            if mark.state in ("Failed", "Pending", "Orphaned"):
                log.warning("refresh", view=mark.view, state=mark.state, reason=mark.reason)
        with wrap_errors():
            watch_inputs(conn, work)
    return work.done


class Round:
    """One refresh round inside its transaction."""

    def __init__(
        self,
        conn: Connection,
        settings: RefreshSettings,
        files: dict[str, ViewFile],
        wanted: set[str],
        *,
        force: bool,
    ) -> None:
        self.conn = conn
        self.settings = settings
        self.files = files
        self.wanted = wanted
        self.force = force
        self.ledger = Ledger(conn)
        self.views = read_views(conn)
        self.catalog_mark = read_catalog_mark(conn)
        self.done: list[Refreshed] = []
        row = conn.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        self.now: datetime = row[0]
        self.filled: set[str] = set()

    def run(self) -> None:
        """Make, remake and refresh; a view's failure is noted in its watermark."""
        self.note_orphans()
        for file in self.files.values():
            mark = self.ledger.mark_of(file)
            if file.view in self.views and mark.checksum != file.checksum and self.is_due(file, mark):
                self.recreate(file, mark)
        self.create_missing()
        for name in order_views(self.views):
            if name in self.files and self.ledger.has_view(name):
                self.refresh_if_changed(self.views[name])

    def note_orphans(self) -> None:
        """Views without a file are left as they are, no longer refreshed; their rows go once the view is gone."""
        for name in [name for name in self.ledger.marks if name not in self.files]:
            mark = self.ledger.marks[name]
            if name in self.views:
                mark.state, mark.reason = "Orphaned", f"its file is gone; to remove it: DROP MATERIALIZED VIEW {name}"
            else:
                del self.ledger.marks[name]
                self.conn.execute("DELETE FROM warehouse.view_watermarks WHERE view = %s", (name,))

    def is_due(self, file: ViewFile, mark: Watermark) -> bool:
        """Whether to try making a view: something changed since the last try, or its time has come."""
        if self.force or mark.tried != f"{self.catalog_mark}/{file.checksum}":
            return True
        return mark.retry_at is not None and mark.retry_at <= self.now

    def recreate(self, file: ViewFile, mark: Watermark) -> None:
        """Replace a view whose file changed, and the views that read it, or leave all of them as they are."""
        if mark.checksum is None:
            problem = ViewFailed(f"{file.view} exists and was not made from {file.path}", hint="Drop it, or rename the file.")
            self.fail(file, mark, problem)
            return
        dependents = {name for name in find_dependents(self.views, [file.view]) if name in self.files}
        family = [name for name in order_views(self.views) if name == file.view or name in dependents]
        before = {name: self.ledger.marks[name].grants for name in family}

        def rebuild() -> None:
            for name in reversed(family):
                self.conn.execute("SELECT warehouse.drop_view(%s)", (name,))
                row = self.conn.execute("SELECT grants FROM warehouse.view_watermarks WHERE view = %s", (name,)).fetchone()
                assert row is not None
                self.ledger.marks[name].grants = row[0]
            self.create_in_any_order(family)

        started = time.perf_counter()
        error = self.attempt(rebuild)
        if error is not None:
            for name, grants in before.items():
                self.ledger.marks[name].grants = grants
            self.fail(file, mark, error)
            return
        self.look_again()
        for name in order_views(self.views):
            if name in family:
                self.note_filled(name, "recreated", (time.perf_counter() - started) * 1000 / len(family))

    def create_in_any_order(self, names: Sequence[str]) -> None:
        """Create views whose files may read each other; raises the first error that no other order mends."""
        left = list(names)
        while left:
            made: set[str] = set()
            errors: list[psycopg.Error] = []
            for name in left:
                try:
                    with self.conn.transaction():
                        create_view(self.conn, self.files[name], self.ledger.marks[name].grants)
                except _MISSING_INPUT as error:
                    errors.append(error)
                else:
                    made.add(name)
            if not made:
                raise errors[0]
            left = [name for name in left if name not in made]

    def create_missing(self) -> None:
        """Create every view that is not there; again and again, as long as one that was made may serve another."""
        errors: dict[str, psycopg.Error | ViewFailed] = {}
        progress = True
        while progress:
            progress = False
            for file in self.files.values():
                mark = self.ledger.mark_of(file)
                hopeless = file.view in errors and not isinstance(errors[file.view], _MISSING_INPUT)
                if file.view in self.views or hopeless or not self.is_due(file, mark):
                    continue
                started = time.perf_counter()
                error = self.attempt(partial(create_view, self.conn, file, mark.grants))
                if error is not None:
                    errors[file.view] = error
                    continue
                self.look_again()
                self.note_filled(file.view, "created", (time.perf_counter() - started) * 1000)
                errors.pop(file.view, None)
                progress = True
        for view, error in errors.items():
            self.fail(self.files[view], self.ledger.marks[view], error)

    def refresh_if_changed(self, view: View) -> None:
        """Refresh one view, unless nothing changed or its time has not come; then only its watermark moves on."""
        if view.populated and view.name in self.filled:
            return
        mark = self.ledger.marks[view.name]
        if self.wanted and view.name not in self.wanted and not find_dependents(self.views, [view.name]) & self.wanted:
            return
        if view.populated and view.name not in self.wanted and not self.ledger.has_changed(view):
            self.stand(view)
            return
        if not self.force:
            if mark.retry_at is not None and mark.retry_at > self.now:
                return
            pause = timedelta(milliseconds=(mark.duration_ms or 0) / BUSY_SHARE)
            if view.populated and mark.refreshed_at is not None and mark.refreshed_at + pause > self.now:
                return
        kind = "CONCURRENTLY " if view.populated and view.refreshable else ""
        statement = sql.SQL("REFRESH MATERIALIZED VIEW " + kind + "{}").format(qualified(view.name))
        started = time.perf_counter()
        error = self.attempt(lambda: self.conn.execute(statement))
        if error is None:
            self.note_filled(view.name, "refreshed", (time.perf_counter() - started) * 1000)
        else:
            self.fail(self.files[view.name], mark, error)

    def attempt(self, work: Callable[[], object]) -> psycopg.Error | ViewFailed | None:
        """Do something in a savepoint and return the error that is the view's own; others end the round."""
        try:
            with self.conn.transaction():
                work()
        except ViewFailed as error:
            return error
        except psycopg.Error as error:
            ends_round = error_class(error) is WarehouseUnavailable or (error.sqlstate or "").startswith("40")
            if ends_round or self.conn.closed:
                raise
            return error
        return None

    def look_again(self) -> None:
        """Read the catalog after a change to it."""
        self.views = read_views(self.conn)
        self.catalog_mark = read_catalog_mark(self.conn)

    def note_filled(self, name: str, action: Literal["created", "recreated", "refreshed"], duration_ms: float) -> None:
        """A view's content is now what its inputs give in this transaction."""
        mark, view = self.ledger.marks[name], self.views[name]
        if action != "refreshed":
            mark.checksum, mark.tried, mark.grants = self.files[name].checksum, None, []
        mark.refreshes += 1
        mark.refreshed_at, mark.duration_ms = self.now, round(duration_ms, 3)
        mark.inputs = self.ledger.read_markers(view)
        self.stand(view)
        self.filled.add(name)
        self.done.append(Refreshed(name, action, mark.reason, duration_ms, mark.complete_to))

    def stand(self, view: View) -> None:
        """Write how far the view is complete; a changed file that could not be applied stays in sight."""
        mark = self.ledger.marks[view.name]
        trouble = (mark.state, mark.reason, mark.failures, mark.retry_at)
        self.ledger.stand(view)
        if mark.checksum != self.files[view.name].checksum:
            mark.state, mark.reason, mark.failures, mark.retry_at = trouble

    def fail(self, file: ViewFile, mark: Watermark, error: psycopg.Error | ViewFailed) -> None:
        """Note why a view could not be made or refreshed, and when to try again."""
        view = self.views.get(file.view)
        pending = view is None and isinstance(error, _MISSING_INPUT)
        mark.state, mark.reason = "Pending" if pending else "Failed", describe_error(error)
        mark.failures += 1
        wait_s = min(LONGEST_RETRY_S, self.settings.interval_s * 2 ** min(mark.failures, 20))
        mark.retry_at = self.now + timedelta(seconds=wait_s)
        mark.tried = f"{self.catalog_mark}/{file.checksum}"
        if view is None:
            mark.checksum = None
        if view is None or not view.populated:
            mark.complete_to, mark.positions, mark.inputs = None, {}, {}
        self.done.append(Refreshed(file.view, "pending" if pending else "failed", mark.reason, 0.0, mark.complete_to))


def watch_inputs(conn: Connection, work: Round) -> None:
    """Have tables that are no mirrors tell of their changes; outside the round, so that their writers wait only for a moment.

    What changed before the trigger is there shows as one more refresh, since the input's marker was unknown until then.
    """
    ledger = work.ledger
    entries = {
        entry.oid: entry
        for name, view in work.views.items()
        if name in work.files and ledger.has_view(name)
        for entry in view.inputs
        if entry.can_watch and entry.oid not in ledger.watched and entry.name not in ledger.mirrors
    }
    for entry in entries.values():
        try:
            watch_relation(conn, entry)
        except psycopg.errors.LockNotAvailable:
            log.info("refresh", action="watch later", relation=entry.name, reason="writers hold the table")
