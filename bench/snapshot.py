"""Copying a table beside Postgres alone, and what a copy costs the stream's freshness.

`python bench/snapshot.py [--quick]`. Speed: `replicator run --until-caught-up` from an empty mirror to a whole one, beside COPY
BINARY of the same tuples into the same table with its key over one connection. Freshness: single-row transactions at a fixed
rate into one table while another is copied again and again, against the same without a copy. Rounds in turn, medians.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import threading
import time

import numpy as np
from _plant import NAME, Plant, create_table, insert_many, mirror_table, running_plant, start_replicator
from catch_up import copy_alone, empty, replicate, timed
from load import measure

from bench.report import Report
from replicator import decode
from replicator.key_order import KeyOrder
from replicator.key_range import RangeReader
from replicator.source import Source

LIVE = "plant.asset_readings_live"
PIECE_ROWS = 25_000
PENDING = "SELECT FROM warehouse.tables WHERE state <> 'Synced' OR resync_requested"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    parser.add_argument("--rate", type=int, default=1000, help="transactions per second while freshness is measured")
    args = parser.parse_args()
    rows, rounds, seconds = (200_000, 2, 3.0) if args.quick else (500_000, 5, 15.0)
    report = Report(f"Copying a table of {rows:,} rows")
    with running_plant(report.note) as plant:
        replicate(plant)
        insert_many(plant, rows)
        tuples = read_tuples(plant)
        table = mirror_table(plant)
        replicate(plant)
        times = []
        for _ in range(rounds):
            ours = timed(plant, lambda: request(plant), lambda: replicate(plant))
            theirs = timed(plant, lambda: empty(plant), lambda: copy_alone(plant, table, tuples))
            times.append((ours, theirs))
        our_rate, their_rate = (rows / statistics.median(column) for column in zip(*times, strict=True))
        against = f"COPY BINARY alone: {their_rate:,.0f}"
        report.add("snapshot_vs_copy", our_rate, "rows/s", against=against, ratio=our_rate / their_rate, aim=0.6)
        request(plant)
        replicate(plant)
        compare_freshness(report, plant, args.rate, seconds, 1 if args.quick else 3)
    report.finish()


def request(plant: Plant) -> None:
    """Empty the mirror, and ask for a copy."""
    empty(plant)
    with plant.warehouse() as conn:
        conn.execute("UPDATE warehouse.tables SET rows = 0")
        conn.execute(f"SELECT warehouse.resync('{NAME}')")


def read_tuples(plant: Plant) -> list[bytes]:
    """The COPY tuples of all rows, in pieces, as a copy writes them."""
    source = Source(plant.settings.source)
    found = source.describe(NAME)
    assert found is not None
    order = KeyOrder.read(source, found)
    assert order is not None
    reader = RangeReader(source, found, order)
    pieces: list[bytes] = []
    seq = 0
    for block in reader.read((), (), 1 << 40):
        decode.number_tuples(block.tuples, block.seq_at, seq + 1)
        if not pieces or seq // PIECE_ROWS != (seq + block.rows) // PIECE_ROWS:
            pieces.append(b"")
        pieces[-1] += block.tuples.tobytes()
        seq += block.rows
    reader.close()
    source.close()
    return pieces


def compare_freshness(report: Report, plant: Plant, rate: int, seconds: float, rounds: int) -> None:
    """The 99th percentile from commit to the committed mirror, with a copy and without, in turn."""
    create_table(plant, LIVE)
    service = start_replicator(plant, "plant.asset_readings_%")
    first = 0
    found: dict[bool, list[float]] = {False: [], True: []}
    copied = []
    try:
        for _ in range(rounds):
            for with_copy in (False, True):
                first += 1_000_000
                done = threading.Event()
                copies = threading.Thread(target=keep_copying, args=(plant, done, copied))
                if with_copy:
                    copies.start()
                    wait_for_copy(plant)
                fresh_ms = measure(plant, rate, seconds, first, LIVE)[1]
                found[with_copy].append(float(np.percentile(fresh_ms, 99)))
                done.set()
                if with_copy:
                    copies.join()
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(30)
    without, during = (statistics.median(found[with_copy]) for with_copy in (False, True))
    report.add(
        "freshness_p99_while_copying", during, "ms", against=f"without a copy: {without:.1f}", ratio=without / during, aim=0.5
    )
    report.add("copying_while_streaming", statistics.median(copied), "rows/s", against=f"beside {rate:,} transactions/s")


def keep_copying(plant: Plant, done: threading.Event, rates: list[float]) -> None:
    """Copy the table again and again."""
    with plant.warehouse() as conn:
        while not done.is_set():
            conn.execute(f"SELECT warehouse.resync('{NAME}')")
            while (
                conn.execute("SELECT FROM warehouse.tables WHERE state <> 'Synced' OR resync_requested").fetchone() is not None
            ):
                row = conn.execute("SELECT rows_per_s FROM warehouse.copy_status WHERE rows_done > 0").fetchone()
                if row and row[0]:
                    rates.append(row[0])
                time.sleep(0.05)


def wait_for_copy(plant: Plant) -> None:
    """Return once rows are being copied."""
    with plant.warehouse() as conn:
        while conn.execute("SELECT FROM warehouse.copy_status WHERE rows_done > 0").fetchone() is None:
            time.sleep(0.01)


if __name__ == "__main__":
    main()
