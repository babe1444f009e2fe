"""Freshness under a steady load of single-row transactions, servers included.

`python bench/load.py [--quick] [--rate 3000] [--seconds 60] [--highest]`. A process of its own replicates; rows are inserted
one per transaction at a fixed rate; every few milliseconds the checkpoint is read, which says up to which change the mirror is
complete. A row's freshness is the time from its commit at the source to the first look that found it. With --highest the rate
then rises, 20 seconds each, until the source takes in no more or the 99th percentile is a second.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time

import numpy as np
from _plant import MEASUREMENTS, NAME, Plant, running_plant, start_replicator

from bench.report import Report

BURST_S = 0.01
LOOK_S = 0.002
AIM_MS = 1000.0
FIRST = 1_000_000
STEP, STEP_S = 4000, 20.0
# The source has reached the rate that was asked for.
REACHED = 0.98


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 seconds of load")
    parser.add_argument("--rate", type=int, default=3000, help="transactions per second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--highest", action="store_true", help="look for the highest rate, too")
    args = parser.parse_args()
    seconds = 10 if args.quick else args.seconds
    report = Report(f"{args.rate:,} single-row transactions per second for {seconds:g} s")
    with running_plant(report.note) as plant:
        service = start_replicator(plant)
        try:
            rate, fresh_ms = measure(plant, args.rate, seconds, FIRST)
            highest = find_highest(report, plant, args.rate) if args.highest else None
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(30)
    median, p99 = np.percentile(fresh_ms, [50, 99])
    report.add("load_transactions", rate, "tx/s", against=f"asked for: {args.rate:,}", ratio=rate / args.rate)
    report.add("load_freshness_median", float(median), "ms")
    report.add("load_freshness_p99", float(p99), "ms", against="aim 1,000 ms", ratio=AIM_MS / float(p99), aim=1.0)
    report.add("load_freshness_worst", float(fresh_ms.max()), "ms")
    if highest is not None:
        report.add("load_highest", highest, "tx/s", against="99th percentile under 1,000 ms")
    report.finish()


def find_highest(report: Report, plant: Plant, rate: int) -> float:
    """The highest rate at which 99 of 100 rows are in the mirror within a second."""
    highest, first = 0.0, FIRST
    while True:
        rate, first = rate + STEP, 2 * first
        reached, fresh_ms = measure(plant, rate, STEP_S, first)
        p99 = float(np.percentile(fresh_ms, 99))
        report.note(f"{rate:,} asked for, {reached:,.0f} reached: 99th percentile {p99:,.1f} ms")
        if p99 < AIM_MS:
            highest = max(highest, reached)
        if p99 >= AIM_MS or reached < REACHED * rate:
            return highest


def measure(plant: Plant, rate: int, seconds: float, first: int, table: str = NAME) -> tuple[float, np.ndarray]:
    """The rate that was reached, and the freshness of every row, milliseconds; their ids begin with `first`."""
    looks: list[tuple[float, int]] = []
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(plant, looks, done))
    make_procedure(plant, table)
    insert(plant, rate, 1.0, first - 2 * rate)
    watcher.start()
    began = time.time()
    rows = insert(plant, rate, seconds, first)
    took = time.time() - began
    with plant.warehouse() as conn:
        while conn.execute(f"SELECT count(*) FROM {table} WHERE id >= {first}").fetchone() != (rows,):
            time.sleep(0.2)
        time.sleep(1)
        done.set()
        watcher.join()
        found = conn.execute(
            f"SELECT _seq, extract(epoch FROM _committed_at)::float8 FROM {table} WHERE id >= {first} ORDER BY _seq"
        ).fetchall()
    seqs, committed = np.array(found).T
    times, upto = np.array(looks).T
    return rows / took, (times[np.searchsorted(upto, seqs)] - committed) * 1000


def watch(plant: Plant, looks: list[tuple[float, int]], done: threading.Event) -> None:
    """Note up to which change the mirror is complete, each time that this moves."""
    with plant.warehouse() as conn:
        while not done.wait(LOOK_S):
            row = conn.execute("SELECT seq FROM warehouse.checkpoint").fetchone()
            if row and (not looks or row[0] > looks[-1][1]):
                looks.append((time.time(), row[0]))


def make_procedure(plant: Plant, table: str) -> None:
    """The procedure that inserts a burst of rows into a table, one per transaction."""
    values = ", ".join("ROUND(RAND() * 100, 4)" for _ in MEASUREMENTS)
    with plant.connect() as conn, conn.cursor() as cursor:
        cursor.execute("DROP PROCEDURE IF EXISTS plant.burst")
        cursor.execute(
            "CREATE PROCEDURE plant.burst (first BIGINT, n BIGINT) BEGIN DECLARE i BIGINT DEFAULT 0;"
            f" WHILE i < n DO INSERT INTO {table} VALUES (first + i, 1, i % 100, 1, NOW(3), {values});"
            " SET i = i + 1; END WHILE; END"
        )


def insert(plant: Plant, rate: int, seconds: float, first: int) -> int:
    """Insert rows one per transaction, in bursts of 10 ms; how many."""
    burst = max(1, round(rate * BURST_S))
    with plant.connect() as conn, conn.cursor() as cursor:
        began = time.perf_counter()
        bursts = round(seconds / BURST_S)
        for n in range(bursts):
            cursor.execute(f"CALL plant.burst({first + n * burst}, {burst})")
            time.sleep(max(0.0, began + (n + 1) * BURST_S - time.perf_counter()))
    return bursts * burst


if __name__ == "__main__":
    main()
