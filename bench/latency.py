"""Freshness: from COMMIT at the source to the row in the mirror, and to its anomaly, one row at a time on an idle machine.

`python bench/latency.py [--quick] [--source mysql|mariadb]`. Starts private servers that flush every commit to disk, a small
fleet's history, and the services as production runs them. Then commits single rows that are far outside of the ordinary, each
after the last one has arrived and a random pause.

The clock starts just before COMMIT is sent, so the source's own flush is part of it. It stops when a connection that listens
has been notified, has queried the row, and has it in hand: what a client would see. All in one process, so one clock.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import Report
from demo.plant import DATABASE, TABLES, Fleet, make_fleet
from demo.stack import Stack
from warehouse.db import Connection

AIMS_MS = {"mirror": 50.0, "anomaly": 100.0}
SLOWEST_AIM_MS = 1000.0
WARM_UP_ROWS = 20
PATIENCE_S = 60.0
UNIT = 1_000_000  # of no engine, so that nothing else of it is there
ROW_QUERY = f"SELECT FROM {DATABASE}.{TABLES[2]} WHERE unit = {UNIT} AND cycle = %s"
ANOMALY_QUERY = f"SELECT FROM anomalies WHERE entity = '{UNIT}' AND order_value = %s"


class Watcher(threading.Thread):
    """Listens on a connection of its own and notes when each cycle is to be seen."""

    def __init__(self, conn: Connection, channel: str, query: str) -> None:
        super().__init__(name=f"watch {channel}", daemon=True)
        self.conn, self.query = conn, query
        self.wanted = -1
        self.stopping = False
        self.seen = threading.Condition()
        self.seen_at: dict[int, float] = {}
        conn.execute(f"LISTEN {channel}")  # type: ignore[arg-type]

    def run(self) -> None:
        """Ask after every notification until stopped."""
        while not self.stopping:
            for _ in self.conn.notifies(timeout=0.5, stop_after=1):
                pass
            wanted = self.wanted
            if wanted not in self.seen_at and self.conn.execute(self.query, (wanted,)).fetchone() is not None:  # type: ignore[arg-type]
                with self.seen:
                    self.seen_at[wanted] = time.perf_counter()
                    self.seen.notify_all()

    def stop(self) -> None:
        """End listening and close the connection."""
        self.stopping = True
        self.join()
        self.conn.close()

    def wait_for(self, cycle: int) -> float:
        """When the cycle was seen."""
        with self.seen:
            if not self.seen.wait_for(lambda: cycle in self.seen_at, PATIENCE_S):
                raise TimeoutError(f"cycle {cycle} did not arrive: {self.query}")
        return self.seen_at[cycle]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 rows instead of 200")
    parser.add_argument("--source", choices=("mysql", "mariadb"), default="mysql", help="the kind of server (default: mysql)")
    args = parser.parse_args()
    rows = 60 if args.quick else 200
    report = Report(f"Commit at {args.source} to sight, {rows} rows one by one")
    report.note(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores; more than 0.5 disturbs what is measured")
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        fleet = make_fleet(None, engines=30, regimes=1, seed=0)
        with Stack(Path(name), args.source, report.note) as stack:
            found = measure(stack, fleet, rows, report)
    for what, aim_ms in AIMS_MS.items():
        median, slowest = np.percentile(found[what], [50, 99])
        report.add(
            f"commit_to_{what}_under_aim",
            median,
            "ms",
            against=f"{aim_ms:.0f} ms, the median aimed at",
            ratio=aim_ms / median,
            aim=1,
        )
        report.add(
            f"commit_to_{what}_p99_under_aim", slowest, "ms", against=f"{SLOWEST_AIM_MS:.0f} ms, the 99th percentile aimed at",
            ratio=SLOWEST_AIM_MS / slowest, aim=1,
        )  # fmt: skip
    report.add(
        "commit_at_the_source", float(np.median(found["commit"])), "ms", against="part of the above: COMMIT until its answer"
    )
    report.finish()


def measure(stack: Stack, fleet: Fleet, rows: int, report: Report) -> dict[str, np.ndarray]:
    """Milliseconds to the mirror, to the anomaly, and for the COMMIT itself."""
    stack.plant.load(fleet, lambda done, total: None)
    report.note("starting the services")
    stack.run("warehouse", "migrate")
    stack.start_service("replicator")
    with stack.connect() as conn:
        wait_until(stack, conn, "SELECT count(*) = 3 FROM warehouse.tables WHERE state = 'Synced'")
        stack.start_service("scorer")
        wait_until(stack, conn, "SELECT count(*) = 1 FROM scorer.models WHERE state = 'READY'")
        newest = f"SELECT coalesce(max(seq), 0) >= (SELECT max(_seq) FROM {DATABASE}.{TABLES[1]}) FROM scorer.watermarks"
        wait_until(stack, conn, newest)
        # What the start left to do, views among it, is done when nothing has changed for a moment.
        time.sleep(6)
    mirror = Watcher(stack.connect(), "tailrace_rows", ROW_QUERY)
    anomaly = Watcher(stack.connect(), "anomalies", ANOMALY_QUERY)
    mirror.start()
    anomaly.start()
    try:
        report.note(f"committing {rows} rows")
        return commit_singly(stack, mirror, anomaly, next(iter(fleet.engines.values())).values[0] * 1.5, rows)
    finally:
        mirror.stop()
        anomaly.stop()


def commit_singly(stack: Stack, mirror: Watcher, anomaly: Watcher, values: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Commit row after row; the same as measure()."""
    pauses = random.Random(0)
    found: dict[str, list[float]] = {"mirror": [], "anomaly": [], "commit": []}
    with closing(stack.plant.connect()) as source, source.cursor() as cursor:
        for cycle in range(WARM_UP_ROWS + rows):
            insert(cursor, cycle, values)
            mirror.wanted = anomaly.wanted = cycle
            started = time.perf_counter()
            source.commit()
            committed = time.perf_counter()
            seen = {"mirror": mirror.wait_for(cycle), "anomaly": anomaly.wait_for(cycle), "commit": committed}
            if cycle >= WARM_UP_ROWS:
                for what, at in seen.items():
                    found[what].append((at - started) * 1000)
            time.sleep(pauses.uniform(0.02, 0.12))
            stack.check_services()
    return {what: np.array(values) for what, values in found.items()}


def insert(cursor: Any, cycle: int, values: np.ndarray) -> None:
    """Insert one row, without committing."""
    cells = [UNIT, cycle, datetime.now(UTC).replace(tzinfo=None), *values.tolist()]
    marks = ", ".join(["%s"] * len(cells))
    cursor.execute(f"INSERT INTO {TABLES[2]} VALUES (NULL, {marks})", cells)


def wait_until(stack: Stack, conn: Connection, question: str) -> None:
    """Return once the answer is true."""
    deadline = time.monotonic() + PATIENCE_S
    while conn.execute(question).fetchone() != (True,):  # type: ignore[arg-type]
        stack.check_services()
        if time.monotonic() > deadline:
            raise TimeoutError(question)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
