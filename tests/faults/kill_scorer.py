"""A long version of the scorer's kill test: `python -m tests.faults.kill_scorer [--kills 100] [--seed 1]`.

While rows keep coming, the scorer is killed (SIGKILL) just before or just after one commit after another, from the first that a
run has on. In the end everything that it wrote must equal, to the last bit, what one undisturbed run writes for models of the
same definitions: a frozen one, one that learns, and one with a forest for each engine, of which two are in memory at a time. It
is not part of the tests that run for every change.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from demo.servers import PostgresServer, cache_folder, provide
from tests.faults.test_scorer_killed import KINDS, assert_killed_equals_undisturbed, assert_watermarks_are_true, create_models
from tests.fixtures.plant import ROOT, Plant, make_readings, open_plant
from tests.fixtures.servers import Database

SETTINGS = {
    "SCORER__BATCH_ROWS": "20",
    "SCORER__CHECKPOINT_ROWS": "400",
    "SCORER__INTERVAL_S": "0.05",
    "SCORER__FORESTS_IN_MEMORY": "2",
}


AHEAD = 5000  # the writer waits while the scorer is so many rows behind


class Writer(threading.Thread):
    """Rows of six engines, a few at a time, one of which goes wrong now and then; the scorer never runs out of them."""

    def __init__(self, plant: Plant) -> None:
        super().__init__(daemon=True)
        self.plant = plant
        self.stopped = threading.Event()
        self.rows = 0

    def run(self) -> None:
        """Write until asked to stop."""
        rng = np.random.default_rng(3)
        while not self.stopped.is_set():
            ((behind,),) = self.plant.fetch("SELECT %s - coalesce(min(rows_scored), 0) FROM scorer.watermarks", self.rows)
            if behind > AHEAD:
                time.sleep(0.05)
                continue
            values = make_readings(rng, 60)
            units = np.arange(60) % 6
            if self.rows // 600 % 3 == 1:
                values[units == 2, 0] += 30
            with self.plant.conn.transaction():
                self.plant.insert("readings_new", self.rows + 1, units, values, per_transaction=7)
                self.plant.conn.execute("UPDATE plant.readings_new SET cycle = id WHERE id > %s", (self.rows,))
            self.rows += 60


def main() -> None:
    """Kill, compare, say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    programs = provide(["postgres"], cache_folder(), print)
    with tempfile.TemporaryDirectory(prefix="tailrace-kill-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(programs, folder / "postgres") as server:
            database = Database(server.host, server.port, server.user, server.password, "kill")
            with Database(server.host, server.port, server.user, server.password, "postgres").connect(autocommit=True) as conn:
                conn.execute("CREATE DATABASE kill")
            plant = open_plant(database)
            create_models(plant, "killed")
            writing = Plant(database, database.connect(autocommit=True), plant.seq)
            writer = Writer(writing)
            writer.start()
            done = {"before": 0, "after": 0}
            scored = "SELECT count(*) FROM scores WHERE model LIKE 'killed%%'"
            for number in range(1, args.kills + 1):
                moment = ("before", "after")[number % 2]
                commit = number if number <= 30 else moments.randrange(1, 150)
                assert run_to_commit(plant, commit, moment) == -signal.SIGKILL
                done[moment] += 1
                assert_watermarks_are_true(plant)
            ((under_fire,),) = plant.fetch(scored)
            writer.stopped.set()
            writer.join()
            plant.catch_up_here()
            create_models(plant, "undisturbed")
            plant.catch_up_here(SCORER__BATCH_ROWS="2000")
            assert_killed_equals_undisturbed(plant)
            assert plant.fetch(scored) == [(len(KINDS) * writer.rows,)]
            print(
                f"{len(KINDS)} x {writer.rows} rows, {under_fire} of them scored between kills,"
                f" {done['before']} times before and {done['after']} times after a commit: equal"
            )


def run_to_commit(plant: Plant, commit: int, moment: str) -> int:
    """The exit code of a scorer that serves until it kills itself there."""
    command = [sys.executable, "-m", "tests.faults.crash_points", str(commit), moment, "run"]
    environment = plant.environment(SETTINGS)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False).returncode


if __name__ == "__main__":
    main()
