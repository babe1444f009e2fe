"""The command `replicator`: check | run | status | snapshot | verify | quarantine | retry | skip."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from warehouse.db import connect, read_place
from warehouse.service import Stop, add_common_arguments, keep_trying, print_json, run_command
from warehouse.settings import Settings
from warehouse.status import print_status, read_status
from warehouse.verbs import add_bounds, call_verb, request_copy

# How long one thread may hold the others up.
_TURN_S = 0.0005


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="replicator", description="Keep an exact copy of MySQL tables in Postgres.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("check", "list every problem of source and warehouse, each with what mends it"),
        ("run", "copy the matching tables, then follow the binlog until SIGTERM"),
        ("status", "show the source, its tables, and how far copies are"),
        ("snapshot", "copy tables afresh: asks the running replicator, which does it at once"),
        ("verify", "prove that mirrors equal the source, or find the rows that differ; by the running replicator, or as one"),
        ("quarantine", "list the rows and events that were set aside"),
        ("retry", "apply again what was set aside: asks the running replicator, which does it at once"),
        ("skip", "do without what was set aside; a stream that an event stopped goes on and every table is copied afresh"),
    ):
        command = verbs.add_parser(verb, help=text, description=text)
        add_common_arguments(command)
        if verb == "run":
            command.add_argument(
                "--until-caught-up", action="store_true", help="return once everything committed before the start is applied"
            )
        if verb == "snapshot":
            command.add_argument("tables", nargs="+", metavar="DATABASE.TABLE")
            add_bounds(command)
        if verb == "verify":
            command.add_argument("tables", nargs="*", metavar="DATABASE.TABLE", help="default: every table of the source")
            command.add_argument("--repair", action="store_true", help="write the source's rows again where the mirror differs")
            command.add_argument("--rows-per-s", type=float, metavar="N", help="default: the setting verify.rows_per_s")
        if verb in ("retry", "skip"):
            command.add_argument("ids", nargs="+", type=int, metavar="ID")
    return parser


def check(args: argparse.Namespace, settings: Settings) -> None:
    """Print every finding; raise PreflightFailed where one is fatal."""
    from replicator.check import find_problems, refuse_if_fatal
    from replicator.source import Source

    source = Source(settings.source)
    try:
        with connect(settings.warehouse, "check") as conn:
            source.reader = read_place(conn)
            findings = find_problems(source, conn, settings)
    finally:
        source.close()
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        if args.json:
            print_json({"severity": finding.severity, "what": finding.what, "mend": finding.mend})
        else:
            colour = "red" if finding.severity == "fatal" else "yellow"
            console.print(f"[{colour}]{finding.severity}[/] {escape(finding.what)}\n    {escape(finding.mend)}")
    refuse_if_fatal(findings)
    if not args.json:
        console.print("The source and the warehouse are ready." if not findings else "Nothing fatal: replication can start.")


def run(args: argparse.Namespace, settings: Settings) -> None:
    """Replicate until stopped."""
    # The kernels are compiled, or loaded from their cache, on import.
    from replicator.run import Replication

    # Decoding, copying and writing are threads, and the default is ten times as long: a copy would delay every batch.
    sys.setswitchinterval(_TURN_S)
    stop = Stop()
    stop.catch_signals()
    replication = Replication(settings, stop, until_caught_up=args.until_caught_up)
    keep_trying(replication.run, settings.retry, stop)


def status(args: argparse.Namespace, settings: Settings) -> None:
    """Print what concerns this source of `warehouse status`."""
    with connect(settings.warehouse, "status") as conn:
        found = [(part, rows) for part, rows in read_status(conn, tables=True) if part.kind in ("source", "table", "copy")]
    parts = [(part, [row for row in rows if row["source"] == settings.source.name]) for part, rows in found]
    print_status(parts, sys.stdout, as_json=args.json)


def snapshot(args: argparse.Namespace, settings: Settings) -> None:
    """Ask for a fresh copy of tables."""
    with connect(settings.warehouse, "snapshot") as conn:
        for table in args.tables:
            request_copy(conn, table, args.low, args.high)
            if args.json:
                print_json({"requested": "snapshot", "of": table})
            else:
                sys.stdout.write(f"snapshot of {table} requested\n")


def verify(args: argparse.Namespace, settings: Settings) -> None:
    """Compare tables and print what was found; raise DriftFound where something differs and is not repaired."""
    from replicator.verify_command import verify_tables

    verify_tables(settings, args.tables, repair=args.repair, rows_per_s=args.rows_per_s, as_json=args.json)


def quarantine(args: argparse.Namespace, settings: Settings) -> None:
    """Print what is held."""
    from replicator.quarantine import list_held

    with connect(settings.warehouse, "quarantine") as conn:
        for held in list_held(conn):
            if args.json:
                print_json(held)
            else:
                sys.stdout.write("{id}  {state}  {table} {operation} at {position}: {reason}\n".format(**held))


def retry(args: argparse.Namespace, settings: Settings) -> None:
    """Ask for another try."""
    _call_for_each(args, settings, "retry")


def skip(args: argparse.Namespace, settings: Settings) -> None:
    """Give up what is held."""
    _call_for_each(args, settings, "skip")


def _call_for_each(args: argparse.Namespace, settings: Settings, verb: str) -> None:
    with connect(settings.warehouse, verb) as conn:
        for number in args.ids:
            call_verb(conn, verb, number)
            if args.json:
                print_json({"requested": verb, "of": number})
            else:
                sys.stdout.write(f"{verb} of {number} requested\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_command(build_parser(), HANDLERS, argv)


HANDLERS = {
    "check": check, "run": run, "status": status, "snapshot": snapshot, "verify": verify,
    "quarantine": quarantine, "retry": retry, "skip": skip,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
