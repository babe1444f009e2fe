"""Long versions of the fault tests: kills at random moments until the time is up, each round checked to the last bit.

    python -m tests.faults.soak --minutes 30 [--seed 1] [--source mysql|mariadb]
    python -m tests.faults.soak --kills 200    # of the replicator alone: at every crash point in turn, and at any moment
    python -m tests.faults.soak --copies       # of the replicator while tables of every kind of key change and are copied

It is not part of the tests that run for every change. It prints a line for each round and ends with 1 at the first difference.
"""

import argparse
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

from replicator import crash
from replicator.crash import POINTS
from replicator.run import Replication
from tests.fixtures.churn import Churn, assert_same
from tests.fixtures.copies import SMALL, Disturbance, make_tables
from tests.fixtures.load import Load, assert_all_is_right, start_services, wait_until_scored
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.scripts import KINDS, open_folder, open_pipeline, open_servers
from warehouse.log import configure_log
from warehouse.service import Stop, keep_trying
from warehouse.settings_file import load_settings

# A copy that is asked for leads there; the others come by themselves again and again.
COPYING = frozenset({"begin_copy", "copy", "end_copy", "between_slices", "save"})
LONGEST_S = 120
KILLS_A_ROUND = 12


def main() -> None:
    """Run rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", choices=tuple(KINDS), default="mysql")
    parser.add_argument("--kills", type=int, default=0, help="so many kills of the replicator in place of the rounds")
    parser.add_argument("--copies", action="store_true", help="rounds of copies in place of those with a load")
    args = parser.parse_args()
    with open_folder() as folder, open_servers(args.source, folder) as (source, target):
        deadline = time.monotonic() + 60 * args.minutes
        if args.kills:
            with open_pipeline(source, target, folder, "kills") as pipeline:
                run_kills(pipeline, args.seed, args.kills)
        elif args.copies:
            with open_pipeline(source, target, folder, "copies") as pipeline:
                run_copies(pipeline, args.seed, deadline)
        else:
            number = 0
            while time.monotonic() < deadline:
                number += 1
                seed = args.seed * 1000 + number
                with open_pipeline(source, target, folder, f"soak_{seed}") as pipeline:
                    run_round(pipeline, seed)


def run_round(pipeline: Pipeline, seed: int) -> None:
    """One load from an empty warehouse to the comparison, with kills all the way."""
    started = time.monotonic()
    load, kills = disturb(pipeline, random.Random(seed), seed)
    assert_all_is_right(pipeline)
    changes = f"{load.written} rows, {load.updated} updates, {load.deleted} deletes"
    print(f"seed {seed}: {changes}, {kills} kills, equal after {time.monotonic() - started:.0f} s", flush=True)


def run_copies(pipeline: Pipeline, seed: int, deadline: float) -> None:
    """Kill, change, copy; then come to rest and compare."""
    names = make_tables(pipeline)
    pipeline.configure(replicator=SMALL)
    moments, disturbance = random.Random(seed), Disturbance(pipeline, names)
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
            if moments.random() < 0.3 and pipeline.has_table(names[-1]):
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{moments.choice(names)}",))
            service.kill()
            kills += 1
        service = pipeline.start("replicator", "run")
        # one that is asked to stop before it listens does not end in order
        pipeline.wait_until(lambda service=service: '"streaming"' in service.read_log())  # type: ignore[misc]
        pipeline.sync()
        pipeline.assert_equal(*names)
        assert service.stop() == 0, service.read_log()
        print(f"round {number}: {kills} kills, {steps} transactions, equal", flush=True)
        for name in names:
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{name}",))
    disturbance.close()


def run_kills(pipeline: Pipeline, seed: int, kills: int) -> None:
    """Kill the replicator so many times; compare after every thirty."""
    moments, deaths = random.Random(seed), Counter[str]()
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["replicator.run"])
    pipeline.configure(replicator={"batch_rows": 50}, log={"level": "error"})
    churn = Churn(pipeline, seed)
    pipeline.catch_up()
    churn.start()
    for number in range(kills):
        point = (*POINTS, "")[number % (len(POINTS) + 1)]
        if point in COPYING:
            pipeline.conn.execute("SELECT resync(%s)", (f"{pipeline.source.name}.copied",))
        nth = 1 if point in COPYING else moments.randint(1, 2 if point == "truncate" else 8)
        process = forks.Process(target=replicate, args=(pipeline.file, point, nth))
        process.start()
        # The last kind of death comes from outside, at any moment.
        process.join(LONGEST_S if point else moments.uniform(0.2, 2))
        assert process.is_alive() is not bool(point), f"{point} was not reached"
        process.kill()
        process.join()
        assert process.exitcode == -9, f"{point}: exit {process.exitcode}"
        deaths[point or "any moment"] += 1
        if number % 30 == 29 or number == kills - 1:
            churn.stop()
            pipeline.catch_up()
            assert_same(pipeline)
            print(f"{number + 1} kills, {churn.transactions} transactions: equal", flush=True)
            churn = churn.again()
    churn.stop()
    print(", ".join(f"{name} {count}" for name, count in sorted(deaths.items())))


def replicate(file: Path, point: str, nth: int) -> None:
    """`replicator run` in a forked process, which dies at a point."""
    settings = load_settings(file, {})
    configure_log(settings.log.level, service="replicator")
    crash.arm(point, nth)
    stop = Stop()
    keep_trying(Replication(settings, stop).run, settings.retry, stop)


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
