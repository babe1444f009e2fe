"""The command `warehouse`: migrate, status, refresh, settings and the verbs of the control schema.

Owns the command line. Never holds logic of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from warehouse import migrate
from warehouse.db import connect
from warehouse.service import Progress, Stop, add_common_arguments, keep_trying, print_json, run_command
from warehouse.settings import Settings


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(build_parser(), {"migrate": run_migrate}, argv)


if __name__ == "__main__":
    sys.exit(main())
