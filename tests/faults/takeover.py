"""How long a standby takes to take over: kills, freezes and cuts the replicator at work, again and again, and measures.

    python -m tests.faults.takeover [--times 20] [--source mysql|mariadb]

Each time a row is committed at the source right behind the fault; the time counts until the mirror has it. It is not part of
the tests that run for every change. Ends with 1 where one take-over lasted longer than 5 s, or the two sides differ.
"""

import argparse
import itertools
import signal
import statistics
import sys
import time
from collections import defaultdict

from tests.fixtures.pipeline import Pipeline, Service
from tests.fixtures.scripts import KINDS, open_folder, open_pipeline, open_servers
from tests.proxy import Proxy

LIMIT_S = 5.0
FAULTS = ("killed", "frozen", "cut off from the warehouse", "cut off from both")


def main() -> None:
    """Measure, and print a line for each kind of fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=20, help="of each fault")
    parser.add_argument("--source", choices=tuple(KINDS), default="mysql")
    args = parser.parse_args()
    with (
        open_folder() as folder,
        open_servers(args.source, folder) as (source, target),
        open_pipeline(source, target, folder, "takeover") as pipeline,
    ):
        took = run(pipeline, args.times)
    for fault, seconds in took.items():
        parts = f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s"
        print(f"{fault}: {len(seconds)} times, {parts}")
    sys.exit(max(itertools.chain.from_iterable(took.values())) > LIMIT_S)


def run(pipeline: Pipeline, times: int) -> dict[str, list[float]]:
    """So many take-overs after each kind of fault; how long each lasted, in seconds."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)", "CREATE TABLE keyless (id INT)")
    took: dict[str, list[float]] = defaultdict(list)
    for number in range(times * len(FAULTS)):
        fault = FAULTS[number % len(FAULTS)]
        took[fault].append(take_over(pipeline, fault, number))
        print(f"{number + 1}: {fault}, {took[fault][-1]:.2f} s", flush=True)
    pipeline.catch_up()
    pipeline.assert_equal("t", order="1")
    assert sorted(pipeline.read_source("keyless", order="1")) == sorted(pipeline.read_mirror("keyless", order="1"))
    return took


def take_over(pipeline: Pipeline, fault: str, number: int) -> float:
    """One of them, with servers that go on."""
    server, database = pipeline.source.server, pipeline.database
    with Proxy(server.host, server.port) as to_source, Proxy(database.host, database.port) as to_warehouse:
        pipeline.configure(source={"port": to_source.port}, warehouse={"port": to_warehouse.port})
        first = start(pipeline, "streaming")
        # the other one may well reach the two servers by other addresses
        pipeline.configure(source={"port": server.port}, warehouse={"port": database.port})
        second = start(pipeline, "standby")
        insert(pipeline, 2 * number)
        wait_for(pipeline, 2 * number)
        # at any moment between two signs of life
        time.sleep(0.05 * (number % 10))
        began = time.monotonic()
        if fault == "killed":
            first.process.kill()
        elif fault == "frozen":
            first.process.send_signal(signal.SIGSTOP)
        else:
            to_warehouse.stall()
            if fault == "cut off from both":
                to_source.stall()
        insert(pipeline, 2 * number + 1)
        try:
            wait_for(pipeline, 2 * number + 1)
        except AssertionError:
            print(second.read_log())
            raise
        if fault.startswith("cut off from the warehouse"):
            # Its source still reaches it, and it may have written the row itself before the cut came through.
            pipeline.wait_until(lambda: '"streaming"' in second.read_log())
        seconds = time.monotonic() - began
        for service in (first, second):
            service.kill()
        return seconds


def start(pipeline: Pipeline, word: str) -> Service:
    """A replicator, once it has logged that."""
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: f'"{word}"' in service.read_log())
    return service


def insert(pipeline: Pipeline, number: int) -> None:
    """One row into either table, in one transaction."""
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (%s)", (number,))
        cursor.execute("INSERT INTO keyless VALUES (%s)", (number // 2,))
        conn.commit()


def wait_for(pipeline: Pipeline, number: int) -> None:
    """Return once the mirror has the row."""
    pipeline.wait_until(lambda: pipeline.fetch(f"SELECT FROM {pipeline.source.name}.t WHERE id = %s", number) != [])


if __name__ == "__main__":
    main()
