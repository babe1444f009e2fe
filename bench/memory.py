"""Memory of the replicator through huge transactions.

`python bench/memory.py [--quick]`. A process of its own replicates; five million rows are inserted in a single transaction,
then a million of them updated in one, then a million deleted in one. After each the system says how much memory the process
had at most meanwhile (VmHWM, which is set back in between), everything counted: interpreter, libraries, compiled kernels,
buffers.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _plant import NAME, Plant, insert_many, running_plant, start_replicator

from bench.report import Report

AIM_MIB = 300


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300,000 rows, of which 100,000 are changed")
    quick = parser.parse_args().quick
    rows, changed = (300_000, 100_000) if quick else (5_000_000, 1_000_000)
    report = Report(f"Memory through transactions of {rows:,} inserts, {changed:,} updates, {changed:,} deletions")
    with running_plant(report.note) as plant:
        # Compiling takes memory once after an installation; a process that has done so is not what runs for months.
        subprocess.run([sys.executable, "-m", "replicator.compile"], check=True)
        service = start_replicator(plant)
        try:
            insert_many(plant, 1000)
            wait_for(plant, "inserted", 1000)
            report.add("peak_memory_small_transaction", peak_mib(service.pid), "MiB")
            for figure, column, count, work in (
                ("insert", "inserted", rows, lambda: insert_many(plant, rows, first=1001, at_once=rows)),
                (
                    "update",
                    "updated",
                    changed,
                    lambda: execute(plant, f"UPDATE {NAME} SET sensor_1 = -1 WHERE id <= {changed}"),
                ),
                ("delete", "deleted", changed, lambda: execute(plant, f"DELETE FROM {NAME} WHERE id <= {changed}")),
            ):
                measure(plant, report, service.pid, figure, column, count, work)
        finally:
            stop(service)
    report.finish()


def measure(
    plant: Plant, report: Report, pid: int, figure: str, column: str, count: int, work: Callable[[], None]
) -> None:  # fmt: skip
    """The most memory and the rate through one transaction."""
    before = read_count(plant, column)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    work()
    began = time.perf_counter()
    wait_for(plant, column, before + count)
    seconds = time.perf_counter() - began
    peak = peak_mib(pid)
    against = f"aim at most {AIM_MIB}; {count:,} rows"
    report.add(f"peak_memory_huge_{figure}", peak, "MiB", against=against, ratio=AIM_MIB / peak, aim=1.0)
    report.add(f"huge_{figure}_rate", count / seconds, "rows/s", against="from the source's commit to the mirror's")


def stop(service: subprocess.Popen[bytes]) -> None:
    """End the replicator."""
    service.send_signal(signal.SIGTERM)
    service.wait(30)


def execute(plant: Plant, statement: str) -> None:
    """Run a statement at the source."""
    with plant.connect() as conn, conn.cursor() as cursor:
        cursor.execute(statement)


def read_count(plant: Plant, column: str) -> int:
    """How many changes of a kind the mirror took so far."""
    with plant.warehouse() as conn:
        row = conn.execute(f"SELECT {column} FROM warehouse.tables WHERE table_name = %s", (NAME,)).fetchone()
    return int(row[0]) if row else 0


def wait_for(plant: Plant, column: str, count: int) -> None:
    """Return once the mirror took so many changes of a kind."""
    while read_count(plant, column) < count:
        time.sleep(0.1)


def peak_mib(pid: int) -> float:
    """The most memory that a process had so far, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
