"""The demo: private servers, a fleet of engines, the services that production runs, and what they find.

Owns: the order of the steps and the time they may take. Never: does what the services do.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.freshness import Freshness, measure_ms
from demo.plant import TABLES, Fleet, Writer, make_fleet
from demo.servers import ServerFailed
from demo.show import Follower, Screen, read_progress, show_summary
from demo.stack import ROOT, DemoFailed, Stack
from warehouse.db import Connection
from warehouse.errors import TailraceError

# Set-up (fetching programs, the first start of the servers) is not counted.
LONGEST_S = 165.0
SHORTEST_STREAM_S = 15.0
SETTLE_S = 20.0
TICK_S = 0.25

QUERIES = (
    "SELECT * FROM anomalies ORDER BY detected_at DESC LIMIT 10;",
    "SELECT feature, attribution, direction, value, expected_value FROM anomaly_features WHERE anomaly_id = 1 ORDER BY rank;",
    "SELECT * FROM engine_anomalies ORDER BY highest_score DESC LIMIT 5;",
    "SELECT view, state, complete_to FROM view_watermarks;",
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The demo's command line."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="See the whole way work on this machine.")
    parser.add_argument(
        "action", nargs="?", choices=("run", "serve"), default="run", help="serve: keep servers and services up until Ctrl-C"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="a C-MAPSS file, plain or gzipped, instead of a generated fleet"
    )
    parser.add_argument("--engines", type=int, default=100, help="engines of the generated fleet (default: 100)")
    parser.add_argument("--regimes", type=int, default=6, choices=range(1, 7), help="operating regimes, 1 to 6 (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated fleet (default: 0)")
    parser.add_argument("--seconds", type=float, default=45, help="how long new cycles are inserted (default: 45)")
    parser.add_argument("--rate", type=float, default=100, help="new rows per second (default: 100)")
    parser.add_argument("--source", choices=("mysql", "mariadb"), help="default: MySQL where it can be had, else MariaDB")
    parser.add_argument("--folder", type=Path, default=ROOT / ".tailrace/demo", help="default: .tailrace/demo in the checkout")
    args = parser.parse_args(arguments)
    if args.engines < 1 or args.rate <= 0 or args.seconds < 0 or args.seed < 0:
        parser.error("--engines and --rate must be above 0, --seconds and --seed not below")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    args = parse_arguments(arguments)
    screen = Screen()
    # SIGTERM stops as Ctrl-C does; a shell that starts this in the background has SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if args.action == "serve":
            serve(args, screen)
        else:
            run(args, screen)
    except TailraceError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except ServerFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        screen.say(f"stopped; the data stays in {args.folder}: go on with the same command, or remove it with make clean")
        return 130
    return 0


def run(args: argparse.Namespace, screen: Screen) -> None:
    """The demo from an empty folder, or from where it was left, to the summary."""
    fleet = make_fleet(args.data, engines=args.engines, regimes=args.regimes, seed=args.seed)
    with Stack(args.folder, args.source, screen.say) as stack:
        started = time.monotonic()
        title = type(stack.source).__name__.removesuffix("Server")
        screen.say(f"source {title} {stack.source.version}, warehouse Postgres {stack.target.version}")
        with screen.follow("loading the fleet's past into the source", None) as follower:
            fresh = stack.plant.load(fleet, lambda done, total: follower.update(done, total))
        if not fresh:
            screen.say(f"going on with the {sum(fleet.flown.values()):,} rows that are there (make clean starts afresh)")
        start_services(stack, screen)
        with stack.connect() as conn, stack.connect() as listening:
            catch_up(stack, screen, conn)
            left_s = LONGEST_S - SETTLE_S - (time.monotonic() - started)
            seconds = min(args.seconds, max(SHORTEST_STREAM_S, left_s))
            freshness = stream(stack, screen, conn, listening, fleet, seconds, args)
            screen.say("warehouse refresh")
            stack.run("warehouse", "refresh")
            show_summary(screen, conn, sum(stack.plant.count_rows().values()), freshness)
        show_connections(stack, screen)
    screen.say("All servers and services are stopped; the data stays. To look at it: .venv/bin/python -m demo serve")


def serve(args: argparse.Namespace, screen: Screen) -> None:
    """Start everything on the data that is there and keep it up until Ctrl-C."""
    if not (args.folder / "fleet.json").exists():
        raise DemoFailed("there is no data yet", hint="Run the demo first: make demo", folder=str(args.folder))
    with Stack(args.folder, args.source, screen.say) as stack:
        start_services(stack, screen)
        stack.start_service("scorer")
        show_connections(stack, screen)
        screen.say("Everything is up. Ctrl-C stops it and leaves the data.")
        while True:
            stack.check_services()
            time.sleep(TICK_S)


def start_services(stack: Stack, screen: Screen) -> None:
    """Run the commands that production runs, the scorer apart: schema, check of both ends, replicator."""
    screen.say("warehouse migrate")
    stack.run("warehouse", "migrate")
    screen.say("replicator check")
    stack.run("replicator", "check")
    screen.say("replicator run")
    stack.start_service("replicator")


def catch_up(stack: Stack, screen: Screen, conn: Connection) -> None:
    """Wait until the past is mirrored, the model is trained, and everything after its history is scored."""
    counts = stack.plant.count_rows()
    total = sum(counts.values())
    to_score = total - counts[TABLES[0]]
    with screen.follow("copying the past into the warehouse", total) as follower:
        wait_for(
            stack, conn, lambda state: state["tables_whole"] == len(TABLES) and state["mirrored"] >= total, follower, "mirrored"
        )
    screen.say("scorer run")
    stack.start_service("scorer")
    with screen.follow("training, then scoring what the fleet has run since", to_score) as follower:
        wait_for(stack, conn, lambda state: state["model_state"] == "READY" and state["scored"] >= to_score, follower, "scored")


def wait_for(
    stack: Stack,
    conn: Connection,
    reached: Callable[[dict[str, Any]], bool],
    follower: Follower,
    shown: str,
    limit_s: float = 120,
) -> None:
    """Wait until the warehouse is in a state, showing a number of it.

    Raises:
        DemoFailed: a service ended, a table or the model is in trouble, or it took longer than limit_s.
    """
    deadline = time.monotonic() + limit_s
    while True:
        state = read_progress(conn)
        follower.update(state[shown], note=f"{state['anomalies']:,} anomalies" if shown == "scored" else "")
        if reached(state):
            return
        stack.check_services()
        if state["trouble"] or state["model_state"] == "FAILED":
            raise DemoFailed(
                str(state["trouble"] or f"training failed: {state['model_reason']}"), hint=f"Logs: {stack.folder}/*.log"
            )
        if time.monotonic() > deadline:
            raise DemoFailed(f"not done within {limit_s:.0f} s: {state}", hint=f"Logs: {stack.folder}/*.log")
        time.sleep(TICK_S)


def stream(
    stack: Stack,
    screen: Screen,
    conn: Connection,
    listening: Connection,
    fleet: Fleet,
    seconds: float,
    args: argparse.Namespace,
) -> dict[str, NDArray[np.float64]]:
    """Insert new cycles for a while, then wait until all of them are scored; returns latencies in ms."""
    rows = read_progress(conn)["scored"] + stack.plant.fly_one(fleet)
    with screen.follow("a first new cycle, which compiles what was not needed yet", rows) as follower:
        wait_for(stack, conn, lambda state: state["scored"] >= rows, follower, "scored")
    freshness = Freshness(listening)
    freshness.start()
    writer = Writer(stack.plant, fleet, args.rate, args.seed)
    writer.start()
    try:
        with screen.follow("new cycles, s", round(seconds)) as follower:
            started = time.monotonic()
            while (passed := time.monotonic() - started) < seconds and writer.is_alive():
                stack.check_services()
                state = read_progress(conn)
                follower.update(int(passed), note=describe(state))
                time.sleep(TICK_S)
        writer.stop()
        _raise_if_failed("inserting", writer.error)
        wanted = rows + len(writer.committed)
        with screen.follow("scoring the last of them", wanted) as follower:
            wait_for(stack, conn, lambda state: state["scored"] >= wanted, follower, "scored", SETTLE_S)
        # The last anomalies' notifications may still be on their way.
        time.sleep(TICK_S)
    finally:
        writer.stop()
        freshness.stop()
    _raise_if_failed("measuring freshness", freshness.error)
    if writer.ended:
        screen.say("every cycle of the data is in; make clean starts afresh")
    return {
        "commit to mirror": measure_ms(writer.committed, freshness.mirrored),
        "commit to anomaly": measure_ms(writer.committed, freshness.detected),
    }


def describe(state: dict[str, Any]) -> str:
    """The state of the stream, short enough for a terminal of 80 columns."""
    return f"lag {state['lag_ms'] or 0:.0f} ms, {state['scored']:,} scored, {state['anomalies']:,} anomalies"


def _raise_if_failed(what: str, error: Exception | None) -> None:
    if error is not None:
        raise DemoFailed(f"{what} failed: {error}") from error


def show_connections(stack: Stack, screen: Screen) -> None:
    """Print how to connect, and what to ask."""
    screen.say("")
    screen.say("CONNECT, while the servers are up")
    for name, line in stack.connection_lines().items():
        screen.say(f"  {name + ':':<10} {line}")
    screen.say("  and ask, for example:")
    for query in QUERIES:
        screen.say(f"    {query}")
    screen.say("")


if __name__ == "__main__":
    sys.exit(main())
