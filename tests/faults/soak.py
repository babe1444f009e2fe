"""A long version of the load tests: kills at random moments until the time is up, each round checked to the last bit.

    python -m tests.faults.soak --minutes 30 [--seed 1] [--source mysql|mariadb]

It is not part of the tests that run for every change. It prints a line for each round and ends with 1 at the first difference.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.servers import MariaDBServer, MySQLServer, PostgresServer, cache_folder, provide
from tests.fixtures.load import Load, assert_all_is_right, start_services, wait_until_scored
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database


def main() -> None:
    """Run rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
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
            deadline = time.monotonic() + 60 * args.minutes
            number = 0
            while time.monotonic() < deadline:
                number += 1
                run_round(source, target, folder, args.seed * 1000 + number)


def run_round(source: Any, target: PostgresServer, folder: Path, seed: int) -> None:
    """One load from an empty warehouse to the comparison, with kills all the way."""
    moments = random.Random(seed)
    login = Database(target.host, target.port, target.user, target.password, "postgres")
    database = Database(target.host, target.port, target.user, target.password, f"soak_{seed}")
    with login.connect(autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database.name}")  # type: ignore[arg-type]
    place = folder / str(seed)
    place.mkdir()
    with make_source_database(source) as source_database, make_pipeline(source_database, database, place) as pipeline:
        started = time.monotonic()
        load, kills = disturb(pipeline, moments, seed)
        assert_all_is_right(pipeline)
        changes = f"{load.written} rows, {load.updated} updates, {load.deleted} deletes"
        print(f"seed {seed}: {changes}, {kills} kills, equal after {time.monotonic() - started:.0f} s", flush=True)
    with login.connect(autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {database.name} WITH (FORCE)")  # type: ignore[arg-type]


def disturb(pipeline: Pipeline, moments: random.Random, seed: int) -> tuple[Load, int]:
    """Write the load while one service after another is killed, and let everything come to rest."""
    load = Load(pipeline, seed, pause_s=0.05)
    load.configure()
    services = start_services(pipeline)
    load.start()
    kills = 0
    while load.is_alive():
        time.sleep(moments.uniform(0.0, 4.0))
        name = moments.choice(("replicator", "scorer"))
        services[name].kill()
        services[name] = pipeline.start(name, "run")
        kills += 1
    load.finish()
    wait_until_scored(pipeline)
    for name, service in services.items():
        assert service.stop() == 0, f"{name}: {service.read_log()}"
    return load, kills


if __name__ == "__main__":
    main()
