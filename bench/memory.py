"""Memory of the replicator through one huge transaction.

`python bench/memory.py [--quick]`. A process of its own replicates; five million rows are inserted in a single transaction;
afterwards the system says how much memory the process had at most (VmHWM), everything counted: interpreter, libraries,
compiled kernels, buffers.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from _plant import NAME, insert_many, running_plant, start_replicator

from bench.report import Report

AIM_MIB = 300


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300,000 rows")
    rows = 300_000 if parser.parse_args().quick else 5_000_000
    report = Report(f"One transaction of {rows:,} rows")
    with running_plant(report.note) as plant:
        service = start_replicator(plant)
        try:
            # A small one first, so that what compiling takes is counted apart.
            insert_many(plant, 1000)
            wait_for_rows(plant, 1000)
            before = peak_mib(service.pid)
            insert_many(plant, rows, first=1001, at_once=rows)
            began = time.perf_counter()
            wait_for_rows(plant, 1000 + rows)
            seconds = time.perf_counter() - began
            peak = peak_mib(service.pid)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(30)
    report.add("peak_memory_small_transaction", before, "MiB")
    against = f"aim at most {AIM_MIB}; {rows:,} rows"
    report.add("peak_memory_huge_transaction", peak, "MiB", against=against, ratio=AIM_MIB / peak, aim=1.0)
    report.add("huge_transaction_rate", rows / seconds, "rows/s", against="from the source's commit to the mirror's")
    report.finish()


def wait_for_rows(plant, rows: int) -> None:
    """Return once the mirror has so many rows."""
    with plant.warehouse() as conn:
        while conn.execute("SELECT rows FROM warehouse.tables WHERE table_name = %s", (NAME,)).fetchone() != (rows,):
            time.sleep(0.1)


def peak_mib(pid: int) -> float:
    """The most memory that a process had so far, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
