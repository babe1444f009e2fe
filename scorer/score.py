"""The score job: batch after batch of every READY model until nothing is left.

Owns which models and tables there are, the forests in memory, and when all is scored. Never writes scores itself
(`scorer.batch` does).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import psycopg
import structlog
from psycopg import sql

from scorer.arrays import register_arrays
from scorer.batch import prepare_batches, score_batch
from scorer.follow import Follower
from scorer.imports import DecisionJudge
from scorer.models import QUERIES, Mirror, Model, read_models, sync_mirrors
from scorer.publish import write_missing_nodes
from scorer.restore import Judge, read_judge
from scorer.results import Batch
from warehouse.db import Connection, qualified, wrap_errors
from warehouse.errors import WarehouseBusy
from warehouse.service import Stop
from warehouse.settings import ScorerSettings

log = structlog.get_logger()

OLD_SHARE = 10  # a batch of old rows is so many times smaller than one of new rows
CATALOG_S = 1.0  # how old the picture of models and tables may be
# What a statement meets when a table was altered after the catalog was read.
_CHANGED_TABLE = (
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedTable,
    psycopg.errors.CannotCoerce,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidTextRepresentation,
)
_BUSY_ATTEMPTS = 5

Targets = Mapping[tuple[str, int, str], tuple[int, int]]


class ModelScorer:
    """Scores what is past the watermarks. Used by one thread at a time.

    Args:
        conn: in autocommit mode, for this object alone.
        settings: batch size and threads.
    """

    def __init__(self, conn: Connection, settings: ScorerSettings) -> None:
        self.conn = conn
        self.settings = settings
        self._judges: dict[tuple[str, int], Judge] = {}
        self._models: list[tuple[Model, dict[str, list[Mirror]]]] = []
        self._read_at = float("-inf")
        self._changes_met = 0
        register_arrays(conn)
        prepare_batches(conn)

    def forget(self) -> None:
        """Read models and tables afresh before the next batch."""
        self._read_at = float("-inf")

    def run(self, stop: Stop, done: Callable[[], bool] = lambda: False) -> int:
        """Score until nothing is left, or until done() or a request to stop; returns the number of rows.

        Raises:
            WarehouseBusy: another session was in the way again and again.
            ModelUnknown, CheckpointRefused: a forest cannot be loaded.
        """
        total = 0
        more = True
        while more and not stop.requested and not done():
            self._read_catalog()
            batches = [self._score(model, mirrors) for model, sources in self._models for mirrors in sources.values()]
            total += sum(batch.rows for batch in batches)
            more = any(batch.more for batch in batches)
            if not more:
                # One small batch of old rows, and only where no model has new ones; then new ones are looked for again.
                old = self._find_old()
                if old is not None:
                    total += self._score(*old, old=True).rows
                    more = True
        return total

    def _read_catalog(self) -> None:
        if time.monotonic() - self._read_at < CATALOG_S:
            return
        self._models = []
        for model in read_models(self.conn, "READY", "SHADOW"):
            sources: defaultdict[str, list[Mirror]] = defaultdict(list)
            for mirror in sync_mirrors(self.conn, model):
                sources[mirror.source].append(mirror)
            self._models.append((model, sources))
            self._judge_of(model)
        ready = {(model.name, model.version) for model, _ in self._models}
        self._judges = {key: judge for key, judge in self._judges.items() if key in ready}
        self._read_at = time.monotonic()

    def _judge_of(self, model: Model) -> Judge:
        key = model.name, model.version
        if key not in self._judges:
            write_missing_nodes(self.conn, model)
            judge = read_judge(self.conn, model, self.settings.threads, self.settings.forests_in_memory)
            if not isinstance(judge, DecisionJudge):
                judge.warm_up()
            self._judges[key] = judge
        return self._judges[key]

    def _find_old(self) -> tuple[Model, list[Mirror]] | None:
        """A model and tables of one source with rows from before the version that are not scored yet."""
        for model, sources in self._models:
            if model.parameters.get("backfill") != "behind":
                continue
            for mirrors in sources.values():
                given = model.key | {"relations": [mirror.name for mirror in mirrors]}
                with wrap_errors():
                    if self.conn.execute(QUERIES["has_old"], given).fetchone() is not None:
                        return model, mirrors
        return None

    def _score(self, model: Model, mirrors: list[Mirror], *, old: bool = False) -> Batch:
        """One batch of one source's tables."""
        started = time.perf_counter()
        for attempt in range(1, _BUSY_ATTEMPTS + 1):
            try:
                batch = self._write(model, mirrors, old)
                self._changes_met = 0
                break
            except WarehouseBusy:
                # A verb or another scorer changed the same rows first; nothing of the batch was kept.
                if attempt == _BUSY_ATTEMPTS:
                    raise
            except _CHANGED_TABLE:
                self._changes_met += 1
                if self._changes_met == _BUSY_ATTEMPTS:
                    raise
                # Without this batch: look at the tables again, then go on.
                self.forget()
                return Batch(more=True)
        if batch.rows or batch.deletes:
            log.info(
                "score",
                model=model.name,
                version=model.version,
                rows=batch.rows,
                deletes=batch.deletes,
                anomalies=batch.anomalies,
                cleared=batch.cleared,
                incidents_opened=len(batch.opened),
                duration_ms=round((time.perf_counter() - started) * 1000, 1),
            )
        return batch

    def _write(self, model: Model, mirrors: list[Mirror], old: bool) -> Batch:
        judge = self._judge_of(model)
        if isinstance(judge, Follower):
            # Until the batch is committed it may know rows that nobody else does.
            del self._judges[model.name, model.version]
        # A new row waits for the batch at work, so one of old rows is small.
        batch_rows = max(1, self.settings.batch_rows // OLD_SHARE) if old else self.settings.batch_rows
        sizes = batch_rows, self.settings.checkpoint_rows
        batch = score_batch(self.conn, model, judge, mirrors, *sizes, old=old)
        self._judges[model.name, model.version] = judge
        return batch


def read_targets(conn: Connection) -> Targets:
    """What is in the mirror now: the newest _seq and the newest deletion of every table that a READY model scores."""
    targets = {}
    with wrap_errors():
        for model in read_models(conn, "READY", "SHADOW"):
            usable = {mirror.name: mirror for mirror in sync_mirrors(conn, model)}
            for name, mirror in usable.items():
                row = conn.execute(_newest(name)).fetchone()
                deleted = conn.execute(QUERIES["newest_delete"], {"source": mirror.source}).fetchone()
                targets[model.name, model.version, name] = (row[0] if row else 0, deleted[0] if deleted else 0)
    return targets


def _newest(name: str) -> sql.Composed:
    return sql.SQL("SELECT coalesce(max(_seq), 0) FROM {}").format(qualified(name))


def is_training(conn: Connection) -> bool:
    """Whether a version is being trained, or was not looked at yet."""
    with wrap_errors():
        return conn.execute(QUERIES["count_untried"]).fetchone() != (0,)


def is_caught_up(conn: Connection, targets: Targets) -> bool:
    """Whether everything up to the targets is scored; a version that no longer scores counts as done."""
    with wrap_errors():
        rows = conn.execute(QUERIES["read_watermarks"]).fetchall()
    ready = {(model.name, model.version) for model in read_models(conn, "READY", "SHADOW")}
    for model, version, relation, _source, seq, deleted, has_old in rows:
        target = targets.get((model, version, relation))
        if target is not None and (model, version) in ready and (seq < target[0] or deleted < target[1] or has_old):
            return False
    return True


def prune_scores(conn: Connection, retention_days: float, stop: Stop, limit: int = 20_000) -> int:
    """Delete scores older than the retention, in small transactions; returns how many. Anomalies and incidents stay."""
    total = 0
    while not stop.requested:
        with wrap_errors():
            deleted = conn.execute(QUERIES["prune_scores"], {"seconds": retention_days * 86_400, "limit": limit}).rowcount
        total += deleted
        if deleted < limit:
            break
    if total:
        log.info("prune", scores=total)
    return total
