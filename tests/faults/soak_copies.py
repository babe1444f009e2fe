"""Copies beside the stream under kills: `kill -9` at random moments while tables change and are copied, again and again.

    python -m tests.faults.soak_copies --minutes 10 [--seed 1] [--source mysql|mariadb]

It is not part of the tests that run for every change. It prints a line for each round and ends with 1 at the first difference.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.servers import MariaDBServer, MySQLServer, PostgresServer, cache_folder, provide
from tests.fixtures.copies import SMALL, Disturbance, make_tables
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database

KILLS_A_ROUND = 12


def main() -> None:
    """Run rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", choices=("mysql", "mariadb"), default="mysql")
    args = parser.parse_args()
    programs = provide([args.source, "postgres"], cache_folder(), print)
    kind = MySQLServer if args.source == "mysql" else MariaDBServer
    with tempfile.TemporaryDirectory(prefix="tailrace-soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        source: Any = kind(programs, folder / "source")
        with source, PostgresServer(programs, folder / "postgres") as target:
            login = Database(target.host, target.port, target.user, target.password, "postgres")
            database = Database(target.host, target.port, target.user, target.password, "soak")
            with login.connect(autocommit=True) as conn:
                conn.execute("CREATE DATABASE soak")
            with make_source_database(source) as source_database, make_pipeline(source_database, database, folder) as pipeline:
                run_rounds(pipeline, random.Random(args.seed), time.monotonic() + 60 * args.minutes)


def run_rounds(pipeline: Pipeline, moments: random.Random, deadline: float) -> None:
    """Kill, change, copy; then come to rest and compare."""
    names = make_tables(pipeline)
    pipeline.configure(replicator=SMALL)
    disturbance = Disturbance(pipeline, names)
    number = kills = steps = 0
    while time.monotonic() < deadline:
        number += 1
        for _ in range(KILLS_A_ROUND):
            service = pipeline.start("replicator", "run")
            until = time.monotonic() + moments.uniform(0.5, 6.0)
            while time.monotonic() < until:
                disturbance.step()
                steps += 1
                time.sleep(moments.uniform(0.0, 0.05))
            if moments.random() < 0.3 and pipeline.has_table("raws"):
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{moments.choice(names)}",))
            service.kill()
            kills += 1
        service = pipeline.start("replicator", "run")
        pipeline.sync()
        pipeline.assert_equal(*names)
        assert service.stop() == 0, service.read_log()
        print(f"round {number}: {kills} kills, {steps} transactions, equal", flush=True)
        for name in names:
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{name}",))


if __name__ == "__main__":
    main()
