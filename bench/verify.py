"""Proving a mirror equal beside copying it: `verify` against a snapshot of the same rows, by the same running replicator.

`python bench/verify.py [--quick]`. In turn: a copy of the whole table (`warehouse.resync`, from Snapshotting to Synced in
`state_changes`), and a comparison without a limit on its pace (`warehouse.verify`). Medians of the seconds, and the processor
time of both servers and of the replicator together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from _plant import NAME, Plant, insert_many, running_plant, start_replicator

from bench.report import Report

TICKS_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    quick = parser.parse_args().quick
    rows, rounds = (60_000, 2) if quick else (500_000, 5)
    report = Report(f"Verifying {rows:,} rows")
    with running_plant(report.note) as plant:
        insert_many(plant, rows)
        service = start_replicator(plant)
        try:
            # the first ones compile, and warm both servers
            copy(plant)
            verify(plant, rows)
            times: list[list[float]] = []
            for _ in range(rounds):
                copied, copied_cpu = with_cpu(plant, service.pid, lambda: copy(plant))
                verified, verified_cpu = with_cpu(plant, service.pid, lambda: verify(plant, rows))
                times.append([copied, verified, copied_cpu, verified_cpu])
        finally:
            service.terminate()
            service.wait()
    copied, verified, copied_cpu, verified_cpu = (statistics.median(column) for column in zip(*times, strict=True))
    report.add(
        "verify_vs_snapshot", rows / verified, "rows/s", against=f"snapshot: {rows / copied:,.0f}",
        ratio=copied / verified, aim=1.0,
    )  # fmt: skip
    report.add(
        "verify_cpu_vs_snapshot", verified_cpu, "s", against=f"snapshot: {copied_cpu:.2f} s of both servers and the replicator",
        ratio=copied_cpu / verified_cpu, aim=1.0,
    )  # fmt: skip
    report.finish()


def copy(plant: Plant) -> float:
    """Seconds of a copy, from its beginning until the table is whole."""
    with plant.warehouse() as conn:
        last = conn.execute("SELECT max(id) FROM warehouse.state_changes WHERE table_name = %s", (NAME,)).fetchone()
        conn.execute("SELECT warehouse.resync(%s)", (NAME,))
        while True:
            times = dict(
                conn.execute(
                    "SELECT new_state, max(at) FROM warehouse.state_changes WHERE table_name = %s AND id > %s GROUP BY 1",
                    (NAME, last[0] if last else 0),
                ).fetchall()
            )
            if "Synced" in times:
                return float((times["Synced"] - times["Snapshotting"]).total_seconds())
            time.sleep(0.02)


def verify(plant: Plant, rows: int) -> float:
    """Seconds of a comparison."""
    with plant.warehouse() as conn:
        made = conn.execute("SELECT warehouse.verify(%s, false, 1e12)", (NAME,)).fetchone()
        query = "SELECT state, rows, extract(epoch FROM finished_at - started_at) FROM warehouse.verifications WHERE id = %s"
        while True:
            found = conn.execute(query, made).fetchone()
            if found is not None and found[2] is not None:
                assert found[:2] == ("Equal", rows), found
                return float(found[2])
            time.sleep(0.02)


def with_cpu(plant: Plant, replicator: int, work: Callable[[], float]) -> tuple[float, float]:
    """What the work says, and the seconds of processor time that servers and replicator used meanwhile."""
    before = read_cpu_s(plant, replicator)
    seconds = work()
    return seconds, read_cpu_s(plant, replicator) - before


def read_cpu_s(plant: Plant, replicator: int) -> float:
    """Processor time so far of the two servers and of the replicator, ended children included."""
    wanted = {replicator, plant.mysql.pid, plant.postgres.pid}
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(folder.name) in wanted or int(fields[1]) in wanted:
                own, ended = fields[11:13], fields[13:15]
                ticks += sum(map(int, own)) + (sum(map(int, ended)) if int(folder.name) in wanted else 0)
    return ticks / TICKS_S


if __name__ == "__main__":
    main()
