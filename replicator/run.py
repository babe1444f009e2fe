"""The replicator's loop: lock, preflight, copies, stream; again after every error that may pass.

Owns the order of things. Each item of the stream is taken in follower.py.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from replicator.apply import Applier
from replicator.check import find_problems, refuse_if_fatal
from replicator.checkpoint import begin, begin_anew, hold_tables, read_checkpoint, read_restart, release_tables
from replicator.chooser import TableChooser
from replicator.errors import PositionLost, UnsupportedEvent
from replicator.follower import Follower
from replicator.mirror import QUERIES
from replicator.packets import TICK_S
from replicator.position import Position
from replicator.prefetch import Prefetch
from replicator.prepared import read_prepared
from replicator.pulse import Pulse, Watch
from replicator.quarantine import hold_event, read_skipped
from replicator.repair import carry_out
from replicator.retry import retry_rows
from replicator.schema import Registry
from replicator.selection import Selection
from replicator.servers import Checkpoint, choose_server
from replicator.snapshot import Interrupted
from replicator.source import Source
from replicator.stream import Stream
from replicator.verify import Verifier
from warehouse.db import Connection, connect, read_place, take_lock, wrap_errors
from warehouse.errors import AlreadyRunning, OperatorNeeded, SchemaOutdated
from warehouse.migrate import require_migrations
from warehouse.prune import MOST_ROWS, prune_records
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

log = structlog.get_logger()

Outcome = Literal["done", "again"]

REQUESTS_S = 0.5
STANDBY_S = 0.25
LOOK_S, SOON_S = 600, 5


@dataclass(frozen=True)
class Requests:
    """What is asked for in SQL: a pause, beginning anew, other choices of tables (a number that rises), copies of tables."""

    pause: bool
    anew: bool
    choices: int
    copies: list[str]


class Replication:
    """One run of the replicator for one source.

    Args:
        settings: all settings.
        stop: finish the batch at hand, then return.
        until_caught_up: return once everything that was committed when the stream began is applied.
    """

    def __init__(self, settings: Settings, stop: Stop, *, until_caught_up: bool = False) -> None:
        self.settings, self.stop, self.until_caught_up = settings, stop, until_caught_up
        self.name = settings.source.name
        self._choices = 0
        self._look_at = 0.0

    def run(self, progress: Progress) -> None:
        """Work until stopped, caught up, or an error ends it.

        Raises:
            TailraceError: any; whether the same may be tried again is said by its class.
        """
        source = Source(self.settings.source)
        source.stopping = lambda: self.stop.requested
        conn = connect(self.settings.warehouse, f"replicator {self.name}")
        try:
            with wrap_errors():
                require_migrations(conn)
                source.reader = read_place(conn)
                if self._wait_for_lock(conn, progress):
                    with Pulse(self.settings.warehouse, self.name, conn.info.backend_pid):
                        while self._run(source, conn, progress) == "again":
                            log.info("resumed", source=self.name)
        except SchemaOutdated:
            # There may be no table to note it in.
            raise
        except OperatorNeeded as error:
            # One that lost the lock meanwhile must not speak for the one that has it now.
            with wrap_errors():
                conn.execute("SELECT 1")
            self._note_failure(error)
            raise
        finally:
            source.close()
            conn.close()

    def _wait_for_lock(self, conn: Connection, progress: Progress) -> bool:
        """Become the one that writes; until then this process is a standby. False where a stop was asked for first."""
        waiting = False
        watch = Watch(conn, self.name, self.settings.replicator.takeover_s, STANDBY_S)
        while not self.stop.requested:
            try:
                take_lock(conn, f"source {self.name}")
                return True
            except AlreadyRunning:
                if not waiting:
                    log.info("standby", source=self.name, reason="another replicator has the source's lock")
                waiting = True
                progress.note()
                self.stop.wait(watch.look())
        return False

    def _note_failure(self, error: OperatorNeeded) -> None:
        """Show in warehouse.status why the source stands still, over a fresh connection."""
        with connect(self.settings.warehouse, "replicator") as conn, wrap_errors():
            conn.execute(QUERIES["set_source_state"], self._state("Failed", str(error)))
            if isinstance(error, PositionLost):
                hold_tables(conn, self.name, error)
            if isinstance(error, UnsupportedEvent):
                place, kind = str(error.context.get("position")), error.context.get("event_type")
                hold_event(conn, self.name, place, kind, error.message, error.raw)

    def _state(self, state: str, reason: str | None = None) -> dict[str, Any]:
        return {"source": self.name, "state": state, "reason": reason}

    def _run(self, source: Source, conn: Connection, progress: Progress) -> Outcome:
        checkpoint = self._choose_server(source, conn)
        # First, so that whatever is in the way shows in warehouse.status.
        self._register(source, conn)
        refuse_if_fatal(find_problems(source, conn, self.settings))
        checkpoint = checkpoint or begin(conn, self.name, source)
        registry = Registry(
            source, self.name, Selection(self.settings.source.tables, self.settings.source.excluded_columns),
            self.settings.source.schema_prefix, drops_columns=self.settings.replicator.dropped_columns == "drop",
        )  # fmt: skip
        # Before they are read, so that what is chosen meanwhile is looked at again.
        self._choices = self._read_requests(conn).choices
        registry.load(conn)
        applier = Applier(conn, registry, source.identity())
        target = source.position() if self.until_caught_up else None
        state = Follower(
            source, conn, registry, applier, checkpoint.position, checkpoint.seq, self.stop, progress, self.settings
        )
        try:
            state.copies.resume()
            if self._read_requests(conn).pause:
                # Asked for before the start, perhaps of another run.
                outcome = self._pause(state)
                if outcome == "again":
                    return outcome
            if any(table.resync for table in registry.by_number):
                with wrap_errors():
                    conn.execute(QUERIES["set_source_state"], self._state("Snapshotting"))
            state.copy_requested()
            outcome = self._follow(state, target)
        except Interrupted:
            log.info("stopped while copying", source=self.name)
            outcome = "done"
        finally:
            state.copies.close()
        if outcome == "done":
            with wrap_errors():
                conn.execute(QUERIES["set_source_state"], self._state("Stopped"))
        return outcome

    def _register(self, source: Source, conn: Connection) -> None:
        variables = source.variables()
        expire_s = int(float(variables.get("binlog_expire_logs_seconds", "0") or 0))
        facts = {
            "source": self.name, "flavor": source.flavor, "version": source.version, "expire_s": expire_s or None,
            "heartbeat_s": self.settings.source.heartbeat_s, "server": source.server_name,
        }  # fmt: skip
        with wrap_errors():
            conn.execute(QUERIES["register_source"], facts)

    def _choose_server(self, source: Source, conn: Connection) -> Checkpoint | None:
        """Settle on a server, and on the position to go on from; None on the first run.

        Raises:
            PositionLost: no server can go on from the saved one, and nobody asked to begin anew.
        """
        with wrap_errors():
            row = conn.execute(QUERIES["read_source"], {"source": self.name}).fetchone()
        flavor, last_server = row or (None, None)
        checkpoint = read_checkpoint(conn, self.name, flavor) if flavor else None
        if checkpoint is None:
            choose_server(source, None, last_server)
            return None
        asked = read_restart(conn, self.name)
        if asked is not None:
            choose_server(source, None, last_server)
            return begin_anew(conn, self.name, source, checkpoint.seq, asked)
        choose_server(source, checkpoint, last_server)
        release_tables(conn, self.name)
        return checkpoint

    def _follow(self, work: Follower, target: Position | None) -> Outcome:
        """Apply what the stream brings; "again" where it must be opened anew after a pause."""
        prepared, skipped = read_prepared(work.conn, self.name), read_skipped(work.conn, self.name)
        stream = Stream(
            work.source, self.settings.replicator, work.position, work.seq, TableChooser(work.registry), prepared, skipped
        )  # fmt: skip
        ahead = Prefetch(stream, work.wake)
        work.follow(stream, ahead)
        verifier = None if self.until_caught_up else Verifier(self.settings, work.registry, work.watch)
        log.info("streaming", source=self.name, position=str(work.position))
        try:
            work.clock.measure(work.source, work.conn, self.name)
            # Said only now, because opening the dump can fail.
            with wrap_errors():
                work.conn.execute(QUERIES["set_source_state"], self._state("Streaming"))
            saved_at = asked_at = time.monotonic()
            work.note_head(saved_at)
            work.copies.note(work.seq, work.position)
            while True:
                item = work.poll(ahead, TICK_S if work.applier.is_open else work.copies.wait_s(TICK_S))
                now = time.monotonic()
                if item is not None:
                    work.note_head(now)
                    work.take(item, save=now - saved_at > self.settings.replicator.checkpoint_idle_s or target is not None)
                work.copy_on()
                if work.saved:
                    saved_at = now
                if self.stop.requested:
                    break
                if target is not None and work.is_caught_up(target):
                    break
                if (now - asked_at > REQUESTS_S or work.watch.has_repairs) and not work.applier.is_open:
                    asked_at = now
                    outcome = self._heed_requests(work)
                    if outcome == "again":
                        return "again"
                    if outcome == "done":
                        break
            work.applier.abandon()
            work.save()
            work.note_head(math.inf)
            return "done"
        finally:
            if verifier is not None:
                verifier.close()
            ahead.close()

    def _heed_requests(self, work: Follower) -> Outcome | None:
        """Look for what was asked in SQL: a pause, a copy; None where the stream just goes on."""
        requests = self._read_requests(work.conn)
        if requests.anew:
            work.save()
            return "again"
        if requests.choices != self._choices:
            self._choices = requests.choices
            work.registry.follow_selection(work.conn)
        self._look_after(work)
        work.measure_clock()
        work.seq = retry_rows(work.conn, work.source, work.registry, work.seq, work.position)
        work.seq = carry_out(work.conn, work.registry, work.watch, work.seq)
        work.copy_requested(requests.copies)
        return self._pause(work) if requests.pause else None

    def _look_after(self, work: Follower) -> None:
        """Once in a while: warn before the binlog is deleted that is not applied yet, and prune old records."""
        now = time.monotonic()
        if now < self._look_at:
            return
        with wrap_errors():
            row = work.conn.execute(QUERIES["read_warning"], {"source": self.name}).fetchone()
        if row is not None and row[0]:
            log.warning("binlog runway", source=self.name, reason=row[0])
        pruned = prune_records(work.conn, self.settings.retention, self.name)
        # More is waiting where that much was found.
        self._look_at = now + (SOON_S if pruned >= MOST_ROWS else LOOK_S)

    def _read_requests(self, conn: Connection) -> Requests:
        with wrap_errors():
            row = conn.execute(QUERIES["read_requests"], {"source": self.name}).fetchone()
        if row is None:
            raise OperatorNeeded(f"source {self.name} was removed from warehouse.sources while it was replicated")
        return Requests(*row)

    def _pause(self, work: Follower) -> Outcome:
        """Hold still until somebody resumes; the source has given up on the stream by then."""
        work.copies.close()
        work.save()
        with wrap_errors():
            work.conn.execute(QUERIES["set_source_state"], self._state("Paused", "asked for by warehouse.pause"))
        log.info("paused", source=self.name)
        while not self.stop.wait(REQUESTS_S):
            work.progress.note()
            requests = self._read_requests(work.conn)
            if requests.anew or not requests.pause:
                return "again"
        return "done"
