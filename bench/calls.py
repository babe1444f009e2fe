"""Python's share per row: function calls of the whole replicator, from the socket to the committed mirror.

`python bench/calls.py [--quick]`. Runs the replicator on a backlog twice, the second time with more rows, under a profiler that
counts every call of a Python or C function in both of its threads. What the longer backlog costs more, divided by its
additional rows, is what a row costs in Python; the rest is per batch, per read of the socket, or once.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from typing import Any

from _plant import NAME, ROWS_A_TRANSACTION, Plant, insert_many, insert_singly, running_plant
from catch_up import replicate

from bench.report import Report


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, under 50 seconds")
    few, many = (25_000, 75_000) if parser.parse_args().quick else (100_000, 500_000)
    report = Report("Calls of functions in Python, per row")
    with running_plant(report.note) as plant:
        replicate(plant)
        measure(plant, report, "insert", few, many, lambda rows: insert_many(plant, rows, first=rows))
        measure(plant, report, "update", few, many, lambda rows: update(plant, rows))
        few, many = few // 5, many // 5
        measure(plant, report, "one_row_transaction", few, many, lambda rows: insert_singly(plant, rows, 10_000_000 + rows))
    report.finish()


def measure(plant: Plant, report: Report, name: str, few: int, many: int, make: Callable[[int], None]) -> None:
    """What a row of a longer backlog costs more."""
    calls = []
    for rows in (few, many):
        make(rows)
        calls.append(count_calls(lambda: replicate(plant)))
    per_row = (calls[1] - calls[0]) / (many - few)
    against = f"{calls[0]:,} for {few:,} rows, {calls[1]:,} for {many:,}"
    report.add(f"python_calls_per_{name}", per_row, "calls/row", against=against)


def update(plant: Plant, rows: int) -> None:
    """Change so many of the rows that are there, in transactions of 25,000."""
    with plant.connect() as conn, conn.cursor() as cursor:
        for start in range(rows, 2 * rows, ROWS_A_TRANSACTION):
            last = min(start + ROWS_A_TRANSACTION, 2 * rows) - 1
            cursor.execute(f"UPDATE {NAME} SET sensor_1 = sensor_1 + 1 WHERE id BETWEEN {start} AND {last}")


def count_calls(work: Callable[[], None]) -> int:
    """How many functions were called in this thread and in those that it started."""
    counts: dict[int, int] = {}

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            thread = threading.get_ident()
            counts[thread] = counts.get(thread, 0) + 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sum(counts.values())


if __name__ == "__main__":
    main()
