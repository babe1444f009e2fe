"""What a forest for each entity costs beside one for all, and what parking costs: rows of the mirror to committed scores.

`python bench/entities.py [--quick]`. 100 engines, gated forests of 50 trees x 256 samples over 24 columns. Rows of the engines
alternate, so that with fewer forests in memory than engines every batch writes and reads nearly all of them. Rates are of
processor time, of the scorer and of its Postgres session together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import Report
from bench.scorer import COLUMNS, fill, processor_s, running_warehouse
from scorer.schedule import catch_up
from scorer.score import ModelScorer
from warehouse.db import connect
from warehouse.log import configure_log
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

LEARNING = {"policy": "gated", "trees": 50, "threshold": "adaptive", "backfill": "none"}
OWN = LEARNING | {"forest_per": "entity", "entity_rows": 150}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, under 50 seconds")
    quick = parser.parse_args().quick
    configure_log("error", service="bench")
    report = Report("A forest for each of 100 engines, 50 trees x 256 samples x 24 columns")
    rows, rounds, bounds = (5_000, 1, (100, 10)) if quick else (20_000, 5, (100, 50, 10))
    with running_warehouse(report.note) as (settings, conn):
        fill(conn, "history", 20_000, seed=0)
        pooled = measure(settings, conn, LEARNING, 100, rows, rounds)
        report.add("rows_per_second_one_forest", pooled, "rows/s")
        for in_memory in bounds:
            rate = measure(settings, conn, OWN, in_memory, rows, rounds)
            figure = f"rows_per_second_{in_memory}_in_memory"
            report.add(figure, rate, "rows/s", against="one forest for all", ratio=rate / pooled)
    report.finish()


def measure(
    settings: Settings, conn: psycopg.Connection, parameters: dict[str, object], in_memory: int, rows: int, rounds: int
) -> float:
    """Rows per second of processor time; the median of the rounds after the first, which loads code and forests."""
    conn.execute(
        "SELECT scorer.create_model('bench', 'plant.readings', 'SELECT * FROM plant.history', %s, entity => 'unit',"
        " order_by => 'cycle', parameters => %s)",
        (COLUMNS, json.dumps(parameters)),
    )
    given = settings.scorer.model_copy(update={"forests_in_memory": in_memory})
    catch_up(settings.model_copy(update={"scorer": given}), Stop(), Progress())
    worker = connect(settings.warehouse, "bench worker")
    scorer, backend, rates = ModelScorer(worker, given), worker.info.backend_pid, []
    for number in range(rounds + 1):
        ((first,),) = conn.execute("SELECT coalesce(max(id), 0) + 1 FROM plant.readings").fetchall()
        fill(conn, "readings", rows, seed=number + 1, first=first)
        before, own = processor_s(backend), time.process_time()
        done = scorer.run(Stop())
        total_s = time.process_time() - own + processor_s(backend) - before
        assert done == rows, f"{done} rows were scored"
        rates.append(rows / total_s)
    worker.close()
    conn.execute("SELECT scorer.drop_model('bench')")
    return statistics.median(rates[1:])


if __name__ == "__main__":
    main()
