"""The registry: models as rows of scorer.models, read, defined and moved from state to state.

Owns what a model is. Never trains or scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from scorer.errors import ModelUnknown
from scorer.features import RobustScaler
from scorer.threshold import Threshold
from warehouse.db import Connection, qualified, read_queries, wrap_errors
from warehouse.errors import SettingsError
from warehouse.settings import ModelSettings

log = structlog.get_logger()

QUERIES = read_queries("scorer")
NUMBER_TYPES = frozenset({"smallint", "integer", "bigint", "real", "double precision", "numeric", "boolean"})
INSTANT_TYPES = frozenset({"timestamp with time zone", "timestamp without time zone", "date"})
# The parameters of a model that have a key of their own in the settings.
_PARAMETERS = {
    "trees",
    "samples",
    "seed",
    "scale",
    "threshold",
    "policy",
    "shingle",
    "baseline_rows",
    "direction",
    "forest_per",
}


@dataclass(frozen=True)
class Model:
    """One version of a model, as its row says.

    Attributes:
        patterns: LIKE patterns of the mirror tables that are scored.
        threshold, scaler, expected: None until the version was trained; threshold and scaler also where a detector has its own.
        expected: shape (features,), float64, the median of the training rows, NaN where there was no value.
    """

    name: str
    version: int
    state: str
    patterns: tuple[str, ...]
    entity: str | None
    order: str | None
    features: tuple[str, ...]
    training_query: str
    parameters: dict[str, Any]
    threshold: Threshold | None
    scaler: RobustScaler | None
    expected: NDArray[np.float64] | None
    kind: str = "random cut forest"

    @property
    def key(self) -> dict[str, Any]:
        """The parameters by which queries name this version."""
        return {"model": self.name, "version": self.version}

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class Mirror:
    """A mirror table that matches a model's patterns.

    Attributes:
        source: the source's name, empty where the replicator does not know the table.
        source_table: database.table at the source.
        columns: type by column.
        key_columns: the primary key, empty where there is none.
    """

    schema: str
    table: str
    source: str
    source_table: str
    columns: dict[str, str]
    key_columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """schema.table"""
        return f"{self.schema}.{self.table}"


def read_models(conn: Connection, *states: str) -> list[Model]:
    """The versions in these states, by name and version."""
    with wrap_errors():
        rows = conn.execute(QUERIES["read_models"], {"states": list(states)}).fetchall()
    return [_parse_model(row) for row in rows]


def _parse_model(row: tuple[Any, ...]) -> Model:
    name, version, state, relation, entity, order, features, query, parameters, rule, scaler, expected, kind = row
    return Model(
        name=name,
        version=version,
        state=state,
        patterns=tuple(part.strip() for part in relation.split(",") if part.strip()),
        entity=entity,
        order=order,
        features=tuple(features),
        training_query=query,
        parameters=parameters,
        threshold=None if rule is None else Threshold.from_dict(rule),
        scaler=None if scaler is None else RobustScaler.from_dict(scaler),
        expected=None if expected is None else np.array(expected, np.float64),
        kind=kind,
    )


def read_model(conn: Connection, name: str, *states: str) -> Model:
    """The newest version of a model in one of these states.

    Raises:
        ModelUnknown: there is none.
    """
    found = [model for model in read_models(conn, *states) if model.name == name]
    if not found:
        raise ModelUnknown(
            f"no model {name} is {' or '.join(states)}", hint="SELECT name, version, state, reason FROM scorer.model_info"
        )
    return found[-1]


def read_mirrors(conn: Connection, model: Model) -> list[Mirror]:
    """The mirror tables that match the model's patterns, by name."""
    with wrap_errors():
        rows = conn.execute(QUERIES["mirrors"], {"patterns": list(model.patterns)}).fetchall()
    return [
        Mirror(schema, table, source, source_table, columns or {}, tuple(key or ()))
        for schema, table, source, source_table, _state, columns, key in rows
    ]


def check_mirror(model: Model, mirror: Mirror) -> str | None:
    """Why the model cannot score this table, or None."""
    named = [*model.features, *(column for column in (model.entity, model.order) if column is not None)]
    missing = [column for column in named if column not in mirror.columns]
    if missing:
        return f"the table has no column {', '.join(missing)}"
    textual = [
        f"{column} ({mirror.columns[column]})" for column in model.features if mirror.columns[column] not in NUMBER_TYPES
    ]
    if textual:
        return f"not a number: {', '.join(textual)}"
    if model.order is not None and mirror.columns[model.order] not in NUMBER_TYPES | INSTANT_TYPES:
        return f"the order column {model.order} is neither a number nor an instant ({mirror.columns[model.order]})"
    if not mirror.key_columns:
        return "the table has no primary key"
    return None


def as_number(column: sql.Composable, kind: str) -> sql.Composable:
    """The column as double precision; an instant as seconds since 1970."""
    if kind in INSTANT_TYPES:
        return sql.SQL("extract(epoch FROM {})::float8").format(column)
    if kind == "boolean":
        return sql.SQL("{}::int::float8").format(column)
    return sql.SQL("{}::float8").format(column)


def as_features(alias: str, features: Iterable[str], types: Mapping[str, str]) -> sql.Composed:
    """The columns of a table as double precision, with NaN where there is no value, separated by commas."""
    return sql.SQL(", ").join(
        sql.SQL("coalesce({}, 'NaN')").format(as_number(sql.Identifier(alias, feature), types[feature])) for feature in features
    )


def as_entity(alias: str, column: str | None) -> sql.Composable:
    """The entity column of a table as text; empty where there is none, or it is NULL."""
    return sql.SQL("''") if column is None else sql.SQL("coalesce({}::text, '')").format(sql.Identifier(alias, column))


def sync_mirrors(conn: Connection, model: Model) -> list[Mirror]:
    """Give every matching table a watermark, and say there why a table cannot be scored.

    Returns:
        The tables that can be scored.
    """
    usable = []
    mirrors = read_mirrors(conn, model)
    with wrap_errors(model=model.name), conn.transaction():
        for mirror in mirrors:
            reason = check_mirror(model, mirror)
            given = model.key | {"relation": mirror.name, "source": mirror.source, "reason": reason}
            # A version begins with the first row of a table, unless its old rows come behind the new ones, or not at all.
            backfill, begin = model.parameters.get("backfill", "first"), 0
            if backfill != "first" and reason is None and conn.execute(QUERIES["has_watermark"], given).fetchone() is None:
                newest = conn.execute(
                    sql.SQL("SELECT coalesce(max(_seq), 0) FROM {}").format(qualified(mirror.name))
                ).fetchone()
                begin = newest[0] if newest else 0
            conn.execute(QUERIES["add_watermark"], given | {"begin": begin, "behind": backfill == "behind" and begin > 0})
            if reason is None:
                usable.append(mirror)
        conn.execute(QUERIES["mark_missing"], model.key | {"relations": [mirror.name for mirror in mirrors]})
    return usable


def create_models(conn: Connection, wanted: Iterable[ModelSettings]) -> None:
    """Define the models of the settings; the same definition stays the same version.

    Raises:
        SettingsError: a definition is refused, with the reason.
    """
    for model in wanted:
        parameters: dict[str, Any] = model.model_dump(include=_PARAMETERS) | model.parameters
        if model.threshold_value is not None:
            parameters["threshold_value"] = model.threshold_value
        try:
            with wrap_errors(model=model.name):
                conn.execute(
                    "SELECT scorer.create_model(%s, %s, %s, %s, %s, %s, %s)",
                    (
                        model.name,
                        model.relation,
                        model.training_query,
                        list(model.features),
                        model.entity,
                        model.order,
                        Jsonb(parameters),
                    ),
                )
        except psycopg.errors.InvalidParameterValue as error:
            raise SettingsError(
                f"model {model.name}: {error.diag.message_primary}", hint=error.diag.message_hint or "See [[model]]."
            ) from error


def set_state(conn: Connection, model: Model, state: str, reason: str | None = None) -> bool:
    """Move a version that waits or trains to another state; False where nothing changed."""
    with wrap_errors(model=model.name):
        changed = conn.execute(QUERIES["set_state"], model.key | {"state": state, "reason": reason}).rowcount == 1
    if changed:
        log.info("model", model=model.name, version=model.version, state=state, reason=reason)
    return changed


def set_stage(conn: Connection, model: Model, stage: str) -> None:
    """Say how far the training of a version is."""
    with wrap_errors(model=model.name):
        conn.execute(QUERIES["set_stage"], model.key | {"stage": stage})


def drop_superseded(conn: Connection, models: Sequence[Model]) -> list[Model]:
    """The newest version of each name; the others will never be trained and are retired."""
    newest = {model.name: model for model in models}
    for model in models:
        if model is not newest[model.name]:
            set_state(conn, model, "RETIRED", f"version {newest[model.name].version} replaced it before it was trained")
    return list(newest.values())
