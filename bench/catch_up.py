"""Catching up beside Postgres alone: from a backlog in the binlog to the committed mirror.

`python bench/catch_up.py [--quick]`. Inserts: `replicator run --until-caught-up` on a backlog of rows, against COPY BINARY
of the same tuples into the same table with its key over one connection, which is as fast as Postgres takes rows in that way.
Updates: every row changed once, against COPY into a stage and one upsert. Rounds in turn, medians.
Last, without --quick, the same backlog of inserts is taken in by pg_chameleon, from a MariaDB, once by each.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _chameleon import VERSION, Chameleon, NotAvailable
from _plant import MEASUREMENTS, NAME, TABLE, Plant, insert_many, mirror_table, open_stream, running_plant

from bench.report import Report
from demo.servers import cache_folder
from replicator import decode
from replicator.changes import Batch
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_statement
from replicator.mirror import MirrorTable
from replicator.mirror_ddl import create_mirror
from replicator.position import Position
from replicator.run import Replication
from replicator.source import Source
from warehouse.service import Progress, Stop


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    quick = parser.parse_args().quick
    rows, rounds = (60_000, 2) if quick else (500_000, 5)
    report = Report("Catching up, rows per second")
    with running_plant(report.note) as plant:
        # The first run registers the table and compiles; the mirror is emptied before each measured one.
        replicate(plant)
        source = Source(plant.settings.source)
        start = source.position()
        insert_many(plant, rows)
        middle = source.position()
        table = mirror_table(plant)
        inserts = read_tuples(plant, start, rows)
        compare(
            report, "catch_up_vs_copy", rows, rounds,
            ours=lambda: timed(plant, lambda: rewind(plant, start), lambda: replicate(plant)),
            theirs=lambda: timed(plant, lambda: empty(plant), lambda: copy_alone(plant, table, inserts)),
            peer="COPY BINARY alone", aim=0.8,
        )  # fmt: skip
        update_all(plant, rows)
        updates = read_tuples(plant, middle, rows)
        compare(
            report, "updates_vs_stage_upsert", rows, rounds,
            ours=lambda: timed(plant, lambda: fill(plant, table, inserts, middle), lambda: replicate(plant)),
            theirs=lambda: timed(
                plant, lambda: fill(plant, table, inserts, middle), lambda: upsert_alone(plant, table, updates)
            ),
            peer="COPY to a stage and one upsert", aim=1.0,
        )  # fmt: skip
    if quick:
        report.note("catch_up_vs_pg_chameleon is left out of quick runs: pg_chameleon takes too long")
    else:
        compare_with_chameleon(report, 30_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report.note(f"peak memory of this process, servers not counted: {peak:,.0f} MiB")
    report.finish()


def compare(
    report: Report, figure: str, rows: int, rounds: int, *, ours: Callable[[], float], theirs: Callable[[], float], peer: str,
    aim: float,
) -> None:  # fmt: skip
    """Rates of both, in turn."""
    times = [(ours(), theirs()) for _ in range(rounds)]
    our_rate, their_rate = (rows / statistics.median(column) for column in zip(*times, strict=True))
    report.add(figure, our_rate, "rows/s", against=f"{peer}: {their_rate:,.0f}", ratio=our_rate / their_rate, aim=aim)


def compare_with_chameleon(report: Report, rows: int) -> None:
    """Rates of both on the same backlog, each from starting its process or run until the last row is to be seen."""
    with running_plant(report.note, "mariadb") as plant, tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder:
        replicate(plant)
        try:
            chameleon = Chameleon(cache_folder(), Path(folder))
            insert_many(plant, 1000)
            chameleon.prepare(plant.mysql, plant.postgres, "bench", NAME)
            start = Source(plant.settings.source).position()
            insert_many(plant, rows, first=1001)
            theirs = chameleon.replicate(lambda: count(plant, f"chameleon.{TABLE}") == rows + 1000, patience_s=rows / 100)
        except NotAvailable as error:
            report.note(f"catch_up_vs_pg_chameleon has no figure: {error}")
            return
        ours = statistics.median(timed(plant, lambda: rewind(plant, start), lambda: replicate(plant)) for _ in range(3))
        assert count(plant, NAME) == rows
    against = f"pg_chameleon {VERSION}: {rows / theirs:,.0f}"
    report.add("catch_up_vs_pg_chameleon", rows / ours, "rows/s", against=against, ratio=theirs / ours, aim=20)


def count(plant: Plant, table: str) -> int:
    """The rows of a table of the warehouse."""
    with plant.warehouse() as conn:
        row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def timed(plant: Plant, prepare: Callable[[], None], work: Callable[[], None]) -> float:
    """Seconds of work after preparing."""
    prepare()
    with plant.warehouse() as conn:
        conn.execute("CHECKPOINT")
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def replicate(plant: Plant) -> None:
    """Run the replicator until it has caught up."""
    Replication(plant.settings, Stop(), until_caught_up=True).run(Progress())


def rewind(plant: Plant, start: Position) -> None:
    """The state before the backlog."""
    empty(plant)
    set_position(plant, start)


def set_position(plant: Plant, position: Position) -> None:
    """Let the replicator begin here."""
    with plant.warehouse() as conn:
        conn.execute(
            "UPDATE warehouse.checkpoint SET gtid_set = %s, file = %s, pos = %s",
            (str(position.gtids), position.file, position.pos),
        )


def empty(plant: Plant) -> None:
    """Empty the mirror."""
    with plant.warehouse() as conn:
        conn.execute(f"TRUNCATE {NAME}")


def fill(plant: Plant, table: MirrorTable, inserts: list[bytes], position: Position) -> None:
    """The state after the inserts and before the updates."""
    empty(plant)
    copy_alone(plant, table, inserts)
    set_position(plant, position)
    with plant.warehouse() as conn:
        conn.execute(f"VACUUM ANALYZE {NAME}")


def update_all(plant: Plant, rows: int) -> None:
    """Change every row once, in transactions of 25,000."""
    changes = ", ".join(f"{name} = {name} + 1" for name in MEASUREMENTS)
    with plant.connect() as conn, conn.cursor() as cursor:
        for start in range(1, rows + 1, 25_000):
            cursor.execute(f"UPDATE {NAME} SET {changes} WHERE id BETWEEN {start} AND {start + 24_999}")


def read_tuples(plant: Plant, start: Position, rows: int) -> list[bytes]:
    """The COPY tuples of the images of so many changes."""
    stream = open_stream(plant, start)
    found: list[bytes] = []
    seen = 0
    for item in stream.items():
        if isinstance(item, Batch) and len(item.changes):
            target = np.empty(int(item.changes["image_bytes"].sum()), np.uint8)
            decode.gather(np.arange(len(item.changes)), item.changes, item.out, target)
            found.append(target.tobytes())
            seen += len(item.changes)
        if seen >= rows:
            break
    stream.close()
    return found


def copy_alone(plant: Plant, table: MirrorTable, tuples: list[bytes]) -> None:
    """COPY BINARY into the keyed table, one transaction for each piece, as the replicator commits them."""
    with plant.warehouse() as conn:
        create_mirror(conn, table)
        for piece in tuples:
            with conn.transaction(), conn.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
                copy.write(COPY_HEADER)
                copy.write(piece)
                copy.write(COPY_TRAILER)


def upsert_alone(plant: Plant, table: MirrorTable, tuples: list[bytes]) -> None:
    """COPY into a stage and one INSERT ... ON CONFLICT, one transaction for each piece."""
    columns = [str(column["mirror_name"]) for column in table.columns] + ["_seq", "_committed_at", "_raw"]
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns[1:])
    with plant.warehouse() as conn:
        conn.execute(f"CREATE TEMP TABLE stage (LIKE {NAME}) ON COMMIT DELETE ROWS")
        for piece in tuples:
            with conn.transaction(), conn.cursor() as cursor:
                with cursor.copy(f"COPY stage ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy:
                    copy.write(COPY_HEADER)
                    copy.write(piece)
                    copy.write(COPY_TRAILER)
                cursor.execute(
                    f"INSERT INTO {NAME} SELECT {', '.join(columns)} FROM stage ON CONFLICT (id) DO UPDATE SET {changes}"
                )


if __name__ == "__main__":
    main()
