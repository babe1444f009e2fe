"""Scoring end to end, from rows of the mirror to committed scores; and scores in plain SQL beside the compiled forest's.

`python bench/scorer.py [--quick]`. A frozen forest of 100 trees x 256 samples over 24 columns; half a per cent of the rows are
anomalies. Rates are of processor time, of the scorer and of its Postgres session together, as on one core of an idle machine;
the rate by the clock stands beside them. The median of several rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import Report
from demo.servers import PostgresServer, cache_folder, provide
from scorer.judge import PlainJudge
from scorer.models import read_model
from scorer.restore import read_judge
from scorer.schedule import catch_up
from scorer.score import ModelScorer
from warehouse.db import connect
from warehouse.log import configure_log
from warehouse.migrate import migrate_schema
from warehouse.service import Progress, Stop
from warehouse.settings import RefreshSettings, RetrySettings, Settings, WarehouseSettings

COLUMNS = [f"sensor_{i}" for i in range(1, 25)]
OPTIONS = {"synchronous_commit": "off", "max_wal_size": "4GB", "shared_buffers": "256MB"}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    quick = parser.parse_args().quick
    configure_log("error", service="bench")
    report = Report("Scorer, 100 trees x 256 samples x 24 columns")
    with running_warehouse(report.note) as (settings, conn):
        fill(conn, "history", 20_000, seed=0)
        create_model(conn)
        catch_up(settings, Stop(), Progress())
        judge = read_judge(conn, read_model(conn, "bench", "READY"), 1)
        assert isinstance(judge, PlainJudge), "the model is frozen"
        measure_flow(report, settings, conn, judge, 20_000 if quick else 60_000, 3 if quick else 5)
        measure_sql(report, conn, judge, 3 if quick else 7)
    report.finish()


@contextlib.contextmanager
def running_warehouse(note: Callable[[str], None]) -> Iterator[tuple[Settings, psycopg.Connection]]:
    """A migrated warehouse on a server of its own, which is gone afterwards."""
    programs = provide(["postgres"], cache_folder(), note)
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(programs, folder / "postgres", options=OPTIONS) as server:
            login = WarehouseSettings(port=server.port, user=server.user, password=server.password, dbname="postgres")
            with connect(login, "bench") as conn:
                conn.execute("CREATE DATABASE bench")
            warehouse = login.model_copy(update={"dbname": "bench"})
            settings = Settings(warehouse=warehouse, refresh=RefreshSettings(shipped=False), retry=RetrySettings(budget_s=0))
            with connect(warehouse, "bench") as conn:
                migrate_schema(conn)
                conn.execute("CREATE SCHEMA plant")
                for table in ("history", "readings"):
                    columns = ", ".join(f"{column} double precision" for column in COLUMNS)
                    conn.execute(
                        f"CREATE TABLE plant.{table} (id bigint PRIMARY KEY, unit integer, cycle integer, {columns},"
                        " _seq bigint NOT NULL, _committed_at timestamptz)"
                    )
                    conn.execute(f"CREATE INDEX ON plant.{table} (_seq)")
                yield settings, conn


def fill(conn: psycopg.Connection, table: str, rows: int, seed: int, first: int = 1) -> np.ndarray:
    """Rows as the replicator would bring them; returns the values."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, len(COLUMNS)))
    values[rng.random(rows) < 0.005, 3] += 12.0
    with conn.cursor() as cursor, cursor.copy(f"COPY plant.{table} FROM STDIN") as copy:
        for i, row in enumerate(values.tolist()):
            copy.write_row((first + i, i % 100, (first + i) // 100, *row, first + i, "2026-01-01 00:00:00+00"))
    conn.execute(f"ANALYZE plant.{table}")
    return values


def create_model(conn: psycopg.Connection) -> None:
    """The forest that managed services train by default."""
    conn.execute(
        "SELECT scorer.create_model('bench', 'plant.readings', 'SELECT * FROM plant.history', %s, entity => 'unit',"
        ' order_by => \'cycle\', parameters => \'{"threshold": "quantile", "threshold_value": 0.998}\')',
        (COLUMNS,),
    )


def measure_flow(
    report: Report, settings: Settings, conn: psycopg.Connection, judge: PlainJudge, rows: int, rounds: int
) -> None:
    """Rows past the watermark to committed scores, and what the kernels alone take for the same rows."""
    worker = connect(settings.warehouse, "bench worker")
    scorer = ModelScorer(worker, settings.scorer)
    backend = worker.info.backend_pid
    rates, by_clock, shares = [], [], []
    for number in range(rounds + 1):
        values = fill(conn, "readings", rows, seed=number + 1, first=1 + number * rows)
        scaled = judge.scaler.transform(values)
        started = time.process_time()
        judge.forest.score_samples(scaled)
        kernel_s = time.process_time() - started
        before, own, clock = processor_s(backend), time.process_time(), time.perf_counter()
        done = scorer.run(Stop())
        total_s = time.process_time() - own + processor_s(backend) - before
        clock_s = time.perf_counter() - clock
        assert done == rows, f"{done} rows were scored"
        if number:  # the first round loads compiled code and plans
            rates.append(rows / total_s)
            by_clock.append(rows / clock_s)
            shares.append(1.0 - kernel_s / total_s)
    worker.close()
    rate = statistics.median(rates)
    report.add("rows_per_second_vs_aim", rate, "rows/s", against="aim: 20,000 rows/s", ratio=rate / 20_000, aim=1.0)
    report.add("rows_per_second_by_the_clock", statistics.median(by_clock), "rows/s", against="while others use the machine")
    report.add("share_outside_the_kernel", statistics.median(shares), "of 1")


def processor_s(process: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure_sql(report: Report, conn: psycopg.Connection, judge: PlainJudge, rounds: int) -> None:
    """One score in SQL, scores of a set in SQL, and the compiled forest, in turn."""
    rows = np.random.default_rng(99).normal(size=(1000, len(COLUMNS))) * 1.5
    conn.execute(f"CREATE TABLE plant.asked (id integer, {', '.join(f'{column} float8' for column in COLUMNS)})")
    with conn.cursor() as cursor, cursor.copy("COPY plant.asked FROM STDIN") as copy:
        for i, row in enumerate(rows.tolist()):
            copy.write_row((i, *row))
    conn.execute("ANALYZE plant.asked; ANALYZE scorer.forest_nodes")
    wanted = judge.forest.score_samples(judge.scaler.transform(rows))
    single = f"SELECT scorer.score('bench', ARRAY[{', '.join(COLUMNS)}]) FROM plant.asked WHERE id = %s"
    explain = single.replace("scorer.score", "scorer.explain")
    many = "SELECT score FROM scorer.score_rows('bench', 'SELECT * FROM plant.asked ORDER BY id') ORDER BY number"
    times: dict[str, list[float]] = {"single": [], "set": [], "numba": [], "explain": []}
    backend = conn.info.backend_pid
    for number in range(rounds):
        asked = range(number * 40, number * 40 + 40)
        found, spent = timed(backend, lambda asked=asked: [conn.execute(single, (i,)).fetchall()[0][0] for i in asked])
        assert np.abs(np.array(found) - wanted[list(asked)]).max() < 1e-6
        times["single"].append(spent / 40)
        found, spent = timed(backend, lambda: conn.execute(many).fetchall())
        assert np.abs(np.array(found)[:, 0] - wanted).max() < 1e-6
        times["set"].append(spent / 1000)
        times["explain"].append(timed(backend, lambda: [conn.execute(explain, (i,)).fetchall() for i in range(5)])[1] / 5)
        started = time.process_time()
        judge.forest.score_samples(judge.scaler.transform(rows))
        times["numba"].append((time.process_time() - started) / 1000)
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    against = f"numba: {ms['numba'] * 1e3:.1f} us a row"
    report.add("sql_single_under_aim", ms["single"], "ms", against=f"aim: 12 ms; {against}", ratio=12.0 / ms["single"], aim=1.0)
    report.add("sql_set_under_aim", ms["set"], "ms a row", against=f"aim: 4 ms; {against}", ratio=4.0 / ms["set"], aim=1.0)
    report.add("sql_explain", ms["explain"], "ms")


def timed(backend: int, work: Callable[[], object]) -> tuple[object, float]:
    """What the work returns, and the processor time of this process and of its Postgres session, in seconds."""
    own, theirs = time.process_time(), processor_s(backend)
    found = work()
    return found, time.process_time() - own + processor_s(backend) - theirs


if __name__ == "__main__":
    main()
