"""The verbs of the command line that are SQL functions, and the lists beside them.

Owns their arguments and how their results are shown. A verb does what the function of its name does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from scorer.errors import BadParameter, ModelUnknown
from scorer.explain import parse_subject
from warehouse.db import Connection, connect, wrap_errors
from warehouse.migrate import require_migrations
from warehouse.service import print_json
from warehouse.settings import Settings

Add = Callable[[str, str], argparse.ArgumentParser]
Result = list[dict[str, Any]]

_MODELS = """SELECT name, version, state, reason, relation, threshold, rows_scored, watermark, open_anomalies, open_incidents,
    since::text
FROM scorer.model_info WHERE state <> 'RETIRED' OR %(all)s ORDER BY name, version"""
_INCIDENTS = """SELECT id, model, model_version AS version, entity, state, opened_at::text, duration::text, anomalies,
    peak_score, top_features, label, acknowledged_by::text
FROM scorer.incident_info WHERE (state = 'open' AND model_state = 'READY') OR %(all)s ORDER BY peak_score DESC"""
_SCORES = "SELECT number, score, row_values AS row FROM scorer.score_rows(%(model)s, %(query)s) ORDER BY number"
_COMPARISON = "SELECT to_jsonb(c) AS c FROM scorer.shadow_comparison c ORDER BY model"


def add_verbs(add: Add) -> None:
    """Add the verbs to the command line."""
    add("models", "the versions of all models").add_argument("--all", action="store_true", help="retired ones too")
    add("show", "everything about a model").add_argument("model")
    verb = add("create", "define a model, or a new version of one")
    verb.add_argument("model")
    verb.add_argument("--relation", default="", help="mirror tables to score: schema.table, with %% and _ of LIKE")
    verb.add_argument("--query", required=True, help="a SELECT that yields the rows to learn from")
    verb.add_argument("--features", required=True, help="columns, separated by commas")
    verb.add_argument("--entity")
    verb.add_argument("--order")
    verb.add_argument("--parameters", default="{}", help="as JSON")
    add("retrain", "train the same definition again, or one that failed").add_argument("model")
    verb = add("deploy", "let a trained version score")
    verb.add_argument("model")
    verb.add_argument("version", type=int)
    add("rollback", "deploy the version before the one that scores").add_argument("model")
    add("drop", "remove a model with all that it found").add_argument("model")
    verb = add("score", "the score of each row of a query")
    verb.add_argument("model")
    verb.add_argument("query", help="a SELECT that yields the feature columns")
    verb = add("predict", "what an imported model predicts of values")
    verb.add_argument("model")
    verb.add_argument("features", help="as JSON, in the model's order: [0.1, null, 3]")
    verb = add("function", "make scorer.FUNCTION of a model's features, which others may be granted")
    verb.add_argument("function")
    verb.add_argument("model")
    verb.add_argument("--class", dest="label", help="of an imported model: the class whose probability it gives")
    add("compare", "versions in the shadow beside the deployed ones")
    add("incidents", "open incidents, the worst first").add_argument("--all", action="store_true", help="closed ones too")
    verb = add("acknowledge", "note that an incident was seen")
    verb.add_argument("incident", type=int)
    verb.add_argument("--note")
    verb = add("label", "say whether an incident was a true or a false alarm")
    verb.add_argument("incident", type=int)
    verb.add_argument("label", choices=("true", "false"))
    verb.add_argument("--note")


def _ask(conn: Connection, query: str, values: dict[str, Any]) -> Result:
    cursor = conn.execute(query, values)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _create(conn: Connection, args: argparse.Namespace) -> Result:
    try:
        parameters = json.loads(args.parameters)
    except json.JSONDecodeError as error:
        raise BadParameter(f"--parameters is not JSON: {error.msg}", parameter="parameters") from error
    given = {
        "name": args.model,
        "relation": args.relation,
        "query": args.query,
        "features": [name.strip() for name in args.features.split(",")],
        "entity": args.entity,
        "order": args.order,
        "parameters": Jsonb(parameters),
    }
    call = "scorer.create_model(%(name)s, %(relation)s, %(query)s, %(features)s, %(entity)s, %(order)s, %(parameters)s)"
    return _ask(conn, f"SELECT %(name)s AS model, {call} AS version", given)


def _predict(conn: Connection, args: argparse.Namespace) -> Result:
    features = parse_subject(args.features)
    if not isinstance(features, list):
        raise BadParameter("the features are no list", hint="Give [0.1, null, 3].", parameter="features")
    given = {"model": args.model, "features": features}
    return _ask(
        conn,
        "SELECT scorer.predict(%(model)s, %(features)s::float8[]) AS outputs,"
        " scorer.predict_label(%(model)s, %(features)s::float8[]) AS label",
        given,
    )


def _call(call: str, result: str = "") -> Callable[[Connection, argparse.Namespace], Result]:
    """The verb that calls one function with its arguments by name."""
    # Text of this file, not of the caller.
    shown = f"SELECT {call} AS {result}" if result else f"SELECT {call}"

    def run(conn: Connection, args: argparse.Namespace) -> Result:
        found = _ask(conn, shown, vars(args))
        return [{"model": args.model} | row for row in found] if result else []

    return run


VERBS: dict[str, Callable[[Connection, argparse.Namespace], Result]] = {
    "models": lambda conn, args: _ask(conn, _MODELS, {"all": args.all}),
    "show": lambda conn, args: _ask(conn, "SELECT * FROM scorer.show_model(%(model)s)", {"model": args.model}),
    "create": _create,
    "retrain": _call("scorer.retrain(%(model)s)", "version"),
    "deploy": _call("scorer.deploy(%(model)s, %(version)s)"),
    "rollback": _call("scorer.rollback(%(model)s)", "version"),
    "drop": _call("scorer.drop_model(%(model)s)"),
    "score": lambda conn, args: _ask(conn, _SCORES, {"model": args.model, "query": args.query}),
    "predict": _predict,
    "function": _call("scorer.create_function(%(function)s, %(model)s, %(label)s)::text", "function"),
    "compare": lambda conn, args: [row["c"] for row in _ask(conn, _COMPARISON, {})],
    "incidents": lambda conn, args: _ask(conn, _INCIDENTS, {"all": args.all}),
    "acknowledge": _call("scorer.acknowledge(%(incident)s, %(note)s)"),
    "label": _call("scorer.label(%(incident)s, %(label)s || ' alarm', %(note)s)"),
}


def run_verb(args: argparse.Namespace, settings: Settings) -> None:
    """Call the function and print what it returns.

    Raises:
        BadParameter: a value is refused.
        ModelUnknown: the model, version or incident is not there, or not in a state for this.
    """
    with connect(settings.warehouse, args.verb) as conn:
        require_migrations(conn)
        try:
            with wrap_errors():
                rows = VERBS[args.verb](conn, args)
        except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState) as error:
            raise ModelUnknown(error.diag.message_primary or "refused", hint=error.diag.message_hint or "") from error
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            raise BadParameter(error.diag.message_primary or "refused", hint=error.diag.message_hint or "") from error
    for row in rows:
        if args.json:
            print_json(row)
        elif args.verb == "show":
            sys.stdout.write(f"{row['property']:<20} {'' if row['value'] is None else row['value']}\n")
        else:
            shown = ", ".join(f"{name} {value}" for name, value in row.items() if value is not None)
            sys.stdout.write(shown + "\n")
