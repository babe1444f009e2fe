"""One verification: its pace, its waits, its tally, and what it writes down.

Owns its rows of warehouse.verifications and warehouse.drift. What is compared with what stands in keyed_check.py and
keyless_check.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import structlog
from psycopg import sql

from replicator.mirror import key_object
from replicator.mirror_side import QUERIES, MirrorSide
from replicator.position import Position, parse_gtids
from replicator.rows import Hashes, Indexes, Rows
from replicator.source_side import SourceSide, Span
from replicator.watch import Repair, Watch
from warehouse.errors import TryLater
from warehouse.settings import VerifySettings

log = structlog.get_logger()

What = Literal["missing", "extra", "different"]

# How long the stream may take to come to a position that the source has reached.
PATIENCE_S = 60.0
_TICK_S = 0.2


class StreamStands(TryLater):
    """The stream does not come to the position at which the two sides are to be compared."""


class Interrupted(Exception):
    """The replicator stops; the verification goes on with the next one."""


# Of what is kept for going on, and of the hashes in it.
_FORM = 1


@dataclass
class Stage:
    """How far a comparison is that goes range by range.

    Attributes:
        span: the last one compared. seen: hashes of the source's keys up to there, where they will be needed.
        first_seq: what the mirror has up to here was there before the first look. is_done: no range is left.
    """

    span: Span
    seen: list[Hashes]
    first_seq: int
    is_done: bool = False


@dataclass
class Tally:
    """What was done so far, as warehouse.verifications has it."""

    chunks: int = 0
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    repaired: int = 0
    unsettled: int = 0
    quarantined: int = 0

    @property
    def drift(self) -> int:
        """How many rows differed."""
        return self.missing + self.extra + self.different


class Verification:
    """A table on its way.

    Args:
        number: in warehouse.verifications. source_side, mirror_side: the table. watch: where the stream is.
        repair: whether what differs is to be written again. rows_per_s: the most rows to be read in a second.
        stopping: whether the replicator stops.
        kept: where an earlier process left off; None where it is the first one.
    """

    def __init__(
        self, number: int, source_side: SourceSide, mirror_side: MirrorSide, watch: Watch, settings: VerifySettings, *,
        repair: bool, rows_per_s: float, stopping: Callable[[], bool], kept: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self.number, self.source_side, self.mirror_side = number, source_side, mirror_side
        self.watch, self.settings = watch, settings
        self.repair, self.rows_per_s, self._stopping = repair, rows_per_s, stopping
        self.tally = Tally()
        self.refusal: str | None = None
        self.position = source_side.source.position()
        self.chunk_rows = max(1, min(settings.chunk_rows, round(rows_per_s)))
        self._began_at = time.monotonic()
        # What an earlier process compared says nothing of a table that was copied or altered since.
        self._kept = kept if kept is not None and kept.get("table") == self._describe_table() else None

    def _describe_table(self) -> list[Any]:
        return [_FORM, str(self.mirror_side.since), self.source_side.key_order, self.mirror_side.is_shared]

    def begin(self) -> None:
        """Note from when on the comparison counts, or go on with one that was interrupted."""
        if self._kept is not None:
            self.tally = Tally(*self.mirror_side.conn.execute(QUERIES["go_on"], {"id": self.number}).fetchone() or ())
            # the pace is that of this process
            self._began_at -= self.tally.rows / self.rows_per_s
            log.info("verification goes on", table=self.mirror_side.table.name, rows=self.tally.rows, chunks=self.tally.chunks)
            return
        now = self.source_side.source.query("SELECT UTC_TIMESTAMP(6)")[0][0]
        facts = {"id": self.number, "at": f"{now}+00", "position": str(self.position)}
        self.mirror_side.conn.execute(QUERIES["begin"], facts)

    # ------------------------------------------------------------------------------------------------ waiting
    def check_stop(self) -> None:
        """Raise Interrupted where the replicator stops."""
        if self._stopping():
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond a stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check_stop()
            time.sleep(min(left, _TICK_S))

    def keep_pace(self) -> None:
        """Wait where more rows were read than may be."""
        self.sleep(self._began_at + self.tally.rows / self.rows_per_s - time.monotonic())

    def wait_turn(self) -> None:
        """Keep to the pace; and while the source is busy or the stream behind, begin nothing."""
        self.keep_pace()
        waiting = False
        while self._is_busy() or not self.watch.wait_applied(self.source_side.source.position(), 1.0):
            self.check_stop()
            if not waiting:
                reason = "the source is busy or the stream behind"
                log.info("verification waits", table=self.mirror_side.table.name, reason=reason)
            waiting = True
            self.sleep(_TICK_S)

    def _is_busy(self) -> bool:
        rows = self.source_side.source.query("SHOW GLOBAL STATUS LIKE 'Threads_running'")
        # this question is one of them
        return bool(rows) and int(rows[0][1]) > self.settings.busy_threads

    def read_checkpoint(self) -> int:
        """The last _seq that is committed now; every change up to there is in what the source shows from here on.

        Raises:
            StreamStands: the source does not show what the mirror has; a replica may be keeping its commits waiting.
        """
        file, pos, gtid_set, seq = self.mirror_side.conn.execute(
            QUERIES["read_checkpoint"], {"source": self.mirror_side.name}
        ).fetchone() or ("", 0, None, 0)
        source = self.source_side.source
        position = Position(file, int(pos), None if gtid_set is None else parse_gtids(gtid_set, source.flavor))
        noted_at = time.monotonic()
        deadline = noted_at + PATIENCE_S
        while not source.shows(position, noted_at):
            self.check_stop()
            if time.monotonic() > deadline:
                raise StreamStands("the source logged transactions that it does not show to readers")
            time.sleep(0.005)
        return int(seq)

    def wait_applied(self) -> None:
        """Wait until the mirror has everything that the source has committed until now.

        Raises:
            StreamStands: it does not come there.
        """
        self.position = self.source_side.source.position()
        deadline = time.monotonic() + PATIENCE_S
        while not self.watch.wait_applied(self.position, _TICK_S):
            self.check_stop()
            if time.monotonic() > deadline:
                raise StreamStands(f"the stream did not come to {self.position} within {PATIENCE_S:.0f} s")

    # ------------------------------------------------------------------------------------------------ going on
    def take_up(self) -> Stage:
        """Where to begin: at the table's beginning, or where an earlier process left off."""
        kept = self._kept
        if kept is None:
            return Stage(Span(), [], self.read_checkpoint())
        rows = self.mirror_side.conn.execute(QUERIES["read_seen"], {"id": self.number}).fetchall()
        span = Span(upto=tuple(bytes.fromhex(part) for part in kept["upto"]), high=bytes.fromhex(kept["high"]))
        return Stage(span, [np.frombuffer(hashes, np.uint64) for (hashes,) in rows], kept["first_seq"], kept["is_done"])

    def note_chunk(self, stage: Stage) -> None:
        """Write the tally, and where to go on after a restart, together."""
        span = stage.span
        resume = {
            "table": self._describe_table(), "upto": [part.hex() for part in span.upto], "high": span.high.hex(),
            "first_seq": stage.first_seq, "is_done": stage.is_done,
        }  # fmt: skip
        conn, facts = self.mirror_side.conn, {"id": self.number}
        with conn.transaction():
            self.note_progress()
            conn.execute(QUERIES["note_chunk"], facts | {"resume": json.dumps(resume)})
            if not self.mirror_side.is_shared:
                hashes = stage.seen[-1].tobytes()
                conn.execute(QUERIES["note_seen"], facts | {"chunk": self.tally.chunks, "hashes": hashes})

    # ------------------------------------------------------------------------------------------------ what was found
    def note_progress(self) -> None:
        """Write the tally."""
        facts = {"id": self.number, "position": str(self.position), **asdict(self.tally)}
        self.mirror_side.conn.execute(QUERIES["note_progress"], facts)

    def record(self, what: What, rows: Rows, chosen: Indexes) -> None:
        """Write down rows that differ; rows: of the side that has them."""
        if not len(chosen):
            return
        setattr(self.tally, what, getattr(self.tally, what) + len(chosen))
        mirror, table = self.mirror_side, self.mirror_side.table
        log.warning("drift found", table=table.name, what=what, rows=len(chosen), position=str(self.position))
        with mirror.conn.transaction():
            if table.key:
                mirror.stage(rows.keys(chosen, chosen))
                stage = sql.Identifier("pg_temp", "verify_keys")
            else:
                stage = mirror.stage_rows(rows.tuples(chosen))
            mirror.conn.execute(
                sql.SQL(
                    "INSERT INTO warehouse.drift (verification, source, table_name, key, what, position)"
                    " SELECT {verification}, {source}, {table}, {key}, {what}, {position} FROM {stage} k"
                ).format(
                    verification=sql.Literal(self.number), source=sql.Literal(mirror.name), table=sql.Literal(table.name),
                    key=key_object(table, sql.SQL("k.")), what=sql.Literal(what), position=sql.Literal(str(self.position)),
                    stage=stage,
                )
            )  # fmt: skip
            self.note_progress()

    def ask_repair(self, came: Rows, gone: Rows) -> None:
        """Have the loop write rows of the source, and delete rows of the mirror; see watch.Repair."""
        repair = Repair(self.mirror_side.table, came, gone)
        self.watch.submit(repair)
        while not repair.done.wait(_TICK_S):
            self.check_stop()
        self.refusal = repair.outcome or self.refusal

    def note_repaired(self) -> None:
        """All that was recorded so far is there no more, as the last look has shown, where it was to be repaired."""
        if self.repair and not self.refusal and self.tally.repaired < self.tally.drift:
            self.tally.repaired = self.tally.drift
            self.mirror_side.conn.execute(QUERIES["note_repaired_drift"], {"id": self.number})
            self.note_progress()

    def outcome(self) -> tuple[str, str | None]:
        """The state that the comparison ends in, and the reason where there is one to give."""
        tally = self.tally
        if tally.drift > tally.repaired:
            return "Drifted", self.refusal or f"{tally.drift - tally.repaired} rows differ from the source; see warehouse.drift"
        if tally.unsettled:
            return "Unsettled", f"{tally.unsettled} rows changed during every look"
        if tally.quarantined:
            return "Incomplete", f"equal, but for {tally.quarantined} rows that are in the quarantine"
        return ("Repaired" if tally.drift else "Equal"), None
