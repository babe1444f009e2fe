"""The running scorer: jobs under APScheduler, woken by the timer and by NOTIFY.

Owns when what runs, the lock that keeps one scorer at work, and the way errors of jobs reach the main thread. Never scores or
trains itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from scorer.errors import TrainingFailed
from scorer.models import create_models, read_models
from scorer.publish import publish_forests, write_missing_nodes
from scorer.score import ModelScorer, is_caught_up, is_training, prune_scores, read_targets
from scorer.training import train_models
from warehouse.db import Connection, connect, take_lock, wrap_errors
from warehouse.errors import AlreadyRunning
from warehouse.migrate import require_migrations
from warehouse.refresh import refresh_views
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

log = structlog.get_logger()

LOCK = "scorer"
ROWS_CHANNEL = "tailrace_rows"
MODELS_CHANNEL = "tailrace_models"
STANDBY_S = 1.0
LISTEN_S = 0.25  # how soon a request to stop, or a job's error, is seen
PRUNE_S = 600.0


def serve(settings: Settings, stop: Stop, progress: Progress) -> None:
    """Score, train, refresh and prune until asked to stop; while another scorer is at work, stand by.

    Raises:
        TailraceError: whatever ended a job; the database is as if the job had not begun.
    """
    with ExitStack() as stack:
        conn = stack.enter_context(connect(settings.warehouse, "scorer"))
        require_migrations(conn)
        if not _wait_for_lock(conn, stop, progress, lambda: False):
            return
        create_models(conn, settings.model)
        jobs = stack.enter_context(_Jobs(settings, stop, progress).running())
        with wrap_errors():
            conn.execute(f"LISTEN {ROWS_CHANNEL}")
            conn.execute(f"LISTEN {MODELS_CHANNEL}")
        log.info("serve", state="ready")
        # What was committed before LISTEN is found by the first run, which starts after it.
        jobs.wake("train")
        jobs.wake("score")
        while not stop.requested:
            jobs.raise_error()
            with wrap_errors():
                heard = {notice.channel for notice in conn.notifies(timeout=LISTEN_S, stop_after=1)}
            if MODELS_CHANNEL in heard:
                jobs.forget_models()
                jobs.wake("train")
            if heard:
                jobs.wake("score")
    jobs.raise_error()


def catch_up(settings: Settings, stop: Stop, progress: Progress) -> None:
    """Train what can be trained, score everything that is in the mirror now, refresh the views, return.

    A model whose training rows are not there stays PENDING. While another scorer is at work, wait for it to get there.

    Raises:
        TrainingFailed: a model could not be trained; the others are scored all the same.
        TailraceError: whatever else ended the work.
    """
    with ExitStack() as stack:
        conn = stack.enter_context(connect(settings.warehouse, "scorer"))
        require_migrations(conn)
        targets = read_targets(conn)

        def is_done_elsewhere() -> bool:
            # A version that the other scorer trained in the meantime has everything before it.
            return not is_training(conn) and is_caught_up(conn, {**read_targets(conn), **targets})

        if not _wait_for_lock(conn, stop, progress, is_done_elsewhere):
            return
        create_models(conn, settings.model)
        results = train_models(conn, settings.scorer.threads)
        for model, error in results:
            if error is not None and not isinstance(error, TrainingFailed):
                log.warning("train", model=model.name, version=model.version, state="PENDING", reason=error.message)
        progress.note()
        for model in read_models(conn, "READY", "SHADOW"):
            write_missing_nodes(conn, model)
        # Versions that became READY just now have everything before them.
        targets = {**read_targets(conn), **targets}
        scorer = ModelScorer(stack.enter_context(connect(settings.warehouse, "scorer score")), settings.scorer)
        rows = 0
        while not stop.requested and not is_caught_up(conn, targets):
            rows += scorer.run(stop, lambda: is_caught_up(conn, targets))
            progress.note()
        refresh_views(conn, settings.refresh, wait=True)
        log.info("caught_up", rows=rows)
        failed = next((error for _, error in results if isinstance(error, TrainingFailed)), None)
        if failed is not None:
            raise failed


def _wait_for_lock(conn: Connection, stop: Stop, progress: Progress, done: Callable[[], bool]) -> bool:
    """Stand by until this is the only scorer; False where the wait ended otherwise."""
    announced = False
    while not stop.requested:
        try:
            take_lock(conn, LOCK)
        except AlreadyRunning:
            if done():
                return False
            if not announced:
                log.info("serve", state="standby")
                announced = True
            progress.note()
            stop.wait(STANDBY_S)
        else:
            return True
    return False


class _Jobs:
    """The jobs of one running scorer, each with a connection of its own."""

    def __init__(self, settings: Settings, stop: Stop, progress: Progress) -> None:
        self._settings = settings
        self._stop = stop
        self._progress = progress
        self._stack = ExitStack()
        self._errors: list[BaseException] = []
        self._locks = {name: threading.Lock() for name in ("score", "train", "refresh", "prune")}
        self._models_changed = threading.Event()
        # Its lines about runs that were merged are no news: a run that waits does the work of all.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(max_workers=2 * len(self._locks))},
            # Two at a time: one at work and one that waits for it, so that no wake-up is lost.
            job_defaults={"coalesce": True, "max_instances": 2, "misfire_grace_time": None},
            timezone=UTC,
        )

    @contextmanager
    def running(self) -> Iterator[_Jobs]:
        """Open the connections, start the jobs; at the end let them finish their unit of work."""
        settings = self._settings
        with self._stack:
            score = self._connect("score")
            self._scorer = ModelScorer(score, settings.scorer)
            self._train_conn = self._connect("train")
            self._refresh_conn = self._connect("refresh")
            self._prune_conn = self._connect("prune")
            self._scheduler.add_listener(self._note_error, EVENT_JOB_ERROR)
            self._add("score", self._score, settings.scorer.interval_s)
            self._add("train", self._train, settings.scorer.interval_s)
            self._add("refresh", self._refresh, settings.refresh.interval_s)
            self._add("prune", self._prune, PRUNE_S)
            self._scheduler.start()
            try:
                yield self
            finally:
                self._scheduler.shutdown(wait=True)

    def wake(self, name: str) -> None:
        """Run a job now; if it is at work, once more after that."""
        self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def forget_models(self) -> None:
        """The registry changed: read it before the next batch."""
        self._models_changed.set()

    def raise_error(self) -> None:
        """Raise what ended a job, in the caller's thread."""
        if self._errors:
            raise self._errors[0]

    def _connect(self, job: str) -> Connection:
        return self._stack.enter_context(connect(self._settings.warehouse, f"scorer {job}"))

    def _add(self, name: str, work: Callable[[], None], interval_s: float) -> None:
        # Threads of the pool start without the log's context.
        context = copy_context()

        def run() -> None:
            with self._locks[name]:
                if not self._stop.requested and not self._errors:
                    context.run(work)
                    self._progress.note()

        self._scheduler.add_job(run, "interval", seconds=interval_s, id=name)

    def _note_error(self, event: JobExecutionEvent) -> None:
        self._errors.append(event.exception)

    def _score(self) -> None:
        if self._models_changed.is_set():
            self._models_changed.clear()
            self._scorer.forget()
        self._scorer.run(self._stop)

    def _train(self) -> None:
        results: list[Any] = train_models(self._train_conn, self._settings.scorer.threads)
        if any(error is None for _, error in results):
            self.forget_models()
            self.wake("score")

    def _refresh(self) -> None:
        refresh_views(self._refresh_conn, self._settings.refresh)

    def _prune(self) -> None:
        if self._settings.scorer.retention_days is not None:
            prune_scores(self._prune_conn, self._settings.scorer.retention_days, self._stop)
        publish_forests(self._prune_conn)
