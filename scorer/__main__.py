"""The command `scorer`: run, train, import, explain, and the verbs of `scorer.verbs`.

Owns the command line. Never holds logic of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorer.dumps import parse_dump
from scorer.errors import BadImport
from scorer.explain import explain_row, parse_subject
from scorer.imports import import_forest, rename_features
from scorer.models import create_models, read_model
from scorer.schedule import catch_up, serve
from scorer.training import train_models
from scorer.verbs import VERBS, add_verbs, run_verb
from warehouse.db import connect, wrap_errors
from warehouse.migrate import require_migrations
from warehouse.service import Progress, Stop, add_common_arguments, keep_trying, print_json, run_command
from warehouse.settings import Settings


def build_parser() -> argparse.ArgumentParser:
    """The command line, with the verb stored as `verb`."""
    parser = argparse.ArgumentParser(prog="scorer", description="Trains models and scores the rows of the mirror.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        add_common_arguments(verb)
        return verb

    verb = add("run", "train and score until SIGTERM")
    verb.add_argument("--until-caught-up", action="store_true", help="return once everything in the mirror is scored")
    verb = add("train", "train the models that wait for it")
    verb.add_argument("model", nargs="?", help="train this one again, even if it is READY")
    verb = add("import", "import a decision forest that was trained elsewhere, as text")
    verb.add_argument("model")
    verb.add_argument("file", type=Path)
    verb.add_argument("--format", required=True, choices=("lightgbm", "xgboost", "neutral"), help="what wrote the file")
    verb.add_argument("--features", help="columns for the features of the file, in its order, separated by commas")
    verb.add_argument("--relation", default="", help="mirror tables whose rows it is applied to: schema.table, with %% and _")
    verb.add_argument("--entity", help="the entity column of these tables")
    verb.add_argument("--order", help="the order column of these tables")
    verb.add_argument("--function", help="make scorer.FUNCTION of the features")
    add_verbs(add)
    verb = add("explain", "score a row and show what each feature contributes")
    verb.add_argument("model")
    verb.add_argument("subject", help='a row\'s key as JSON, {"id": 7}, or the features as JSON, [0.1, null, 3]')
    verb.add_argument("--entity", default="", help="whose features these are; not needed for a key")
    return parser


def run(args: argparse.Namespace, settings: Settings) -> None:
    """Serve, or catch up and return."""
    stop = Stop()
    stop.catch_signals()
    work = catch_up if args.until_caught_up else serve
    keep_trying(lambda progress: work(settings, stop, progress), settings.retry, stop)


def train(args: argparse.Namespace, settings: Settings) -> None:
    """Train what waits; with a name, train that model again."""
    stop = Stop()
    stop.catch_signals()
    asked = False

    def work(progress: Progress) -> None:
        nonlocal asked
        with connect(settings.warehouse, "train") as conn:
            require_migrations(conn)
            create_models(conn, settings.model)
            if args.model is not None and not asked:
                model = read_model(conn, args.model, "PENDING", "TRAINING", "READY", "FAILED", "RETIRED")
                with wrap_errors():
                    conn.execute("SELECT scorer.retrain(%s)", (model.name,))
                asked = True
            results = train_models(conn, settings.scorer.threads, args.model)
        for model, error in results:
            _print_result(
                {"model": model.name, "version": model.version, "state": "READY" if error is None else "not READY"}
                | ({} if error is None else {"reason": error.message}),
                as_json=args.json,
            )
        for _, error in results:
            if error is not None:
                raise error

    keep_trying(work, settings.retry, stop)


def import_model(args: argparse.Namespace, settings: Settings) -> None:
    """Read a file as text, check it, store its forest; it predicts at once."""
    try:
        text = args.file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadImport(
            f"{args.file} cannot be read: {error}", hint="A model is imported as text; pickles are not read."
        ) from error
    forest = parse_dump(text, args.format)
    if args.features is not None:
        rename_features(forest, [name.strip() for name in args.features.split(",")])
    with connect(settings.warehouse, "import") as conn:
        require_migrations(conn)
        version = import_forest(conn, args.model, forest, args.format, args.relation, args.entity, args.order)
        if args.function is not None:
            with wrap_errors():
                conn.execute("SELECT scorer.create_function(%s, %s)", (args.function, args.model))
    _print_result({"model": args.model, "version": version, "state": "READY"}, as_json=args.json)


def explain(args: argparse.Namespace, settings: Settings) -> None:
    """Print score, threshold and the features by rank."""
    subject = parse_subject(args.subject)
    with connect(settings.warehouse, "explain") as conn:
        require_migrations(conn)
        found = explain_row(conn, read_model(conn, args.model, "READY"), subject, args.entity)
    if args.json:
        print_json(found)
        return
    sys.stdout.write(
        f"score {found['score']:.4f}, threshold {found['threshold']:.4f}, grade {found['grade']:.2f}"
        f" (model {found['model']} version {found['version']})\n"
    )
    for item in found["features"]:
        sys.stdout.write(
            f"{item['rank']:>4}  {item['feature']:<24} {item['attribution']:.4f}  {item['direction']:<4}"
            f"  value {item['value']}  expected {item['expected_value']}\n"
        )


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        reason = f": {result['reason']}" if "reason" in result else ""
        sys.stdout.write(f"{result['model']} version {result['version']} {result['state']}{reason}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    own = {"run": run, "train": train, "import": import_model, "explain": explain}
    return run_command(build_parser(), own | dict.fromkeys(VERBS, run_verb), argv)


if __name__ == "__main__":
    sys.exit(main())
