"""The command `warehouse`: migrate, status, refresh, settings and the verbs of the control schema.

Owns the command line. Never holds logic of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from warehouse import describe, migrate
from warehouse.db import connect
from warehouse.errors import TryLater
from warehouse.refresh import Refreshed, refresh_views
from warehouse.service import Progress, Stop, add_common_arguments, keep_trying, print_json, run_command
from warehouse.settings import Settings
from warehouse.status import print_status, read_status
from warehouse.verbs import add_bounds, call_verb, request_copy
from warehouse.views import ViewFailed


class NotYet(TryLater):
    """What was waited for has not happened within the time given."""


def build_parser() -> argparse.ArgumentParser:
    """The command line, with the verb stored as `verb`."""
    parser = argparse.ArgumentParser(prog="warehouse", description="The Postgres side: schema, state and derived views.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        add_common_arguments(verb)
        return verb

    verb = add("migrate", "bring the schema to the state that this version needs")
    verb.add_argument("--plan", action="store_true", help="print what would run, change nothing")

    verb = add("status", "show sources, models and derived views")
    verb.add_argument("--tables", action="store_true", help="show every table too")

    verb = add("refresh", "refresh derived views now: all whose inputs changed, or the ones named")
    verb.add_argument("name", nargs="*", metavar="NAME", help="a view, as in engine_summary")

    verb = add("settings", "show the settings in effect as TOML, secrets masked")
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the reference page docs/settings.md")
    form.add_argument("--template", action="store_true", help="print pipeline.toml with every default")

    for name, text in (("pause", "stop applying a source until resume"), ("resume", "go on with a paused source")):
        verb = add(name, text)
        verb.add_argument("source", nargs="?", metavar="SOURCE", help="default: source.name of the settings")

    verb = add("resync", "copy a table afresh from its source")
    verb.add_argument("table", metavar="TABLE", help="database.table")
    add_bounds(verb)

    verb = add("resync-source", "begin anew at a source's present position, and copy its tables afresh")
    verb.add_argument("source", nargs="?", metavar="SOURCE", help="default: source.name of the settings")
    verb.add_argument("--tables", nargs="+", metavar="TABLE", help="database.table; default: all")

    for name, text in (
        ("add-table", "replicate the tables that match, from now on: they are copied at once"),
        ("remove-table", "stop replicating the tables that match; their mirrors keep their rows"),
    ):
        verb = add(name, text)
        verb.add_argument("pattern", metavar="PATTERN", help="database.table, with the wildcards %% and _ of LIKE")
        verb.add_argument("--source", default=None, help="default: source.name of the settings")
        if name == "add-table":
            verb.add_argument("--exclude", nargs="+", default=[], metavar="COLUMN", help="columns that stay NULL in the mirror")

    for name, text in (
        ("exclude-columns", "leave columns out: NULL in every row of the mirror from now on, present rows included"),
        ("include-columns", "take columns in again; the table is copied afresh"),
    ):
        verb = add(name, text)
        verb.add_argument("table", metavar="TABLE", help="database.table")
        verb.add_argument("columns", nargs="+", metavar="COLUMN", help="as the source names it")

    verb = add("wait-for", "wait until the mirror holds these transactions; exit 75 if it does not in time")
    verb.add_argument("gtid_set", metavar="GTID_SET", help="as @@gtid_executed of MySQL or @@gtid_binlog_pos of MariaDB")
    verb.add_argument("--source", default=None, help="default: source.name of the settings")
    verb.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="default: 10")
    return parser


def run_migrate(args: argparse.Namespace, settings: Settings) -> None:
    """Apply or print the pending migrations."""
    if args.plan:
        with connect(settings.warehouse, "migrate") as conn:
            pending = migrate.plan_migrations(conn)
        _print_migrations(pending, "pending", as_json=args.json)
        return
    applied: list[migrate.Migration] = []
    open_statement: str | None = None

    def work(progress: Progress) -> None:
        nonlocal applied, open_statement
        with connect(settings.warehouse, "migrate") as conn:
            applied = migrate.migrate_schema(conn)
            open_statement = migrate.set_search_path(conn)

    # Signals keep their default: they end the process, and Postgres undoes the file that was at work.
    keep_trying(work, settings.retry, Stop())
    _print_migrations(applied, "applied", as_json=args.json)
    if open_statement is not None:
        sys.stderr.write(f"So that names are found without a schema, the database's owner may run:\n  {open_statement};\n")


def _print_migrations(migrations: Sequence[migrate.Migration], state: str, *, as_json: bool) -> None:
    for migration in migrations:
        if as_json:
            print_json({"migration": str(migration), "state": state})
        else:
            sys.stdout.write(f"{migration} {state}\n")
    if not migrations and not as_json:
        sys.stdout.write("nothing to apply: the schema is up to date\n")


def run_status(args: argparse.Namespace, settings: Settings) -> None:
    """Show the state of everything."""
    with connect(settings.warehouse, "status") as conn:
        parts = list(read_status(conn, tables=args.tables))
    print_status(parts, sys.stdout, as_json=args.json)


def run_refresh(args: argparse.Namespace, settings: Settings) -> None:
    """Refresh now, tell what was done, and fail if one of the views failed."""
    with connect(settings.warehouse, "refresh") as conn:
        migrate.require_migrations(conn)
        done = refresh_views(conn, settings.refresh, args.name, force=True, wait=True)
    for entry in done:
        _print_refreshed(entry, as_json=args.json)
    if not done and not args.json:
        sys.stdout.write("nothing to refresh: no input changed\n")
    failed = [entry.view for entry in done if entry.action == "failed" or (args.name and entry.action == "pending")]
    if failed:
        raise ViewFailed(f"not refreshed: {', '.join(failed)}", hint="See reason in warehouse.view_watermarks.")


def _print_refreshed(entry: Refreshed, *, as_json: bool) -> None:
    if as_json:
        print_json(vars(entry))
        return
    tail = f" in {entry.duration_ms:.0f} ms" if entry.action in ("created", "recreated", "refreshed") else ""
    if entry.complete_to is not None:
        tail += f", complete to {entry.complete_to.isoformat(sep=' ', timespec='milliseconds')}"
    sys.stdout.write(f"{entry.view} {entry.action}{tail}{': ' + entry.reason if entry.reason else ''}\n")


def run_settings(args: argparse.Namespace, settings: Settings) -> None:
    """Show the settings."""
    if args.markdown:
        sys.stdout.write(describe.write_markdown())
    elif args.template:
        sys.stdout.write(describe.write_template())
    elif args.json:
        print_json(describe.to_plain(settings))
    else:
        sys.stdout.write(describe.write_toml(settings))


def run_request(args: argparse.Namespace, settings: Settings) -> None:
    """Call the SQL function of the same name: pause, resume, resync."""
    argument = args.table if args.verb == "resync" else args.source or settings.source.name
    with connect(settings.warehouse, args.verb) as conn:
        if args.verb == "resync":
            request_copy(conn, args.table, args.low, args.high)
        else:
            call_verb(conn, args.verb, argument)
    if args.json:
        print_json({"requested": args.verb, "of": argument})
    else:
        sys.stdout.write(f"{args.verb} of {argument} requested\n")


def run_resync_source(args: argparse.Namespace, settings: Settings) -> None:
    """Call the SQL function of the same name."""
    source = args.source or settings.source.name
    with connect(settings.warehouse, "resync-source") as conn:
        call_verb(conn, "resync_source", source, args.tables)
    if args.json:
        print_json({"requested": args.verb, "of": source, "tables": args.tables})
    else:
        sys.stdout.write(f"resync-source of {source} requested; a replicator that stopped does it when it is started\n")


def run_choose_tables(args: argparse.Namespace, settings: Settings) -> None:
    """Call add_table or remove_table."""
    arguments = [args.source or settings.source.name, args.pattern]
    if args.verb == "add-table":
        arguments.append(args.exclude)
    _choose(args, settings, args.pattern, *arguments)


def run_choose_columns(args: argparse.Namespace, settings: Settings) -> None:
    """Call exclude_columns or include_columns."""
    _choose(args, settings, args.table, args.table, args.columns)


def _choose(args: argparse.Namespace, settings: Settings, what: str, *arguments: str | list[str]) -> None:
    with connect(settings.warehouse, args.verb) as conn:
        call_verb(conn, args.verb.replace("-", "_"), *arguments)
    if args.json:
        print_json({"requested": args.verb, "of": what})
    else:
        sys.stdout.write(f"{args.verb} of {what} requested\n")


def run_wait_for(args: argparse.Namespace, settings: Settings) -> None:
    """Return once the mirror holds the transactions."""
    source = args.source or settings.source.name
    with connect(settings.warehouse, "wait-for") as conn:
        reached = call_verb(conn, "wait_for", source, args.gtid_set, f"{args.timeout} s")
    if not reached:
        raise NotYet(f"{source} has not reached {args.gtid_set} within {args.timeout:g} s", hint="See: warehouse status")
    if args.json:
        print_json({"source": source, "reached": args.gtid_set})


HANDLERS = {
    "migrate": run_migrate,
    "status": run_status,
    "refresh": run_refresh,
    "settings": run_settings,
    "pause": run_request,
    "resume": run_request,
    "resync": run_request,
    "resync-source": run_resync_source,
    "add-table": run_choose_tables,
    "remove-table": run_choose_tables,
    "exclude-columns": run_choose_columns,
    "include-columns": run_choose_columns,
    "wait-for": run_wait_for,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(build_parser(), HANDLERS, argv)


if __name__ == "__main__":
    sys.exit(main())
