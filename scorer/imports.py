"""Importing a decision forest: from its file to a READY version with its trees in the node table.

Owns that transaction. Never reads anything but text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from scorer.decisions import DecisionForest
from scorer.errors import BadImport
from scorer.models import QUERIES
from scorer.results import close_retired
from warehouse.db import Connection, wrap_errors

Floats = NDArray[np.float64]


@dataclass
class DecisionJudge:
    """An imported forest, as the score job holds it."""

    forest: DecisionForest


def rename_features(forest: DecisionForest, features: Sequence[str]) -> None:
    """Give the features the names of columns. Modified in place.

    Raises:
        BadImport: they are not as many.
    """
    if len(features) != len(forest.features):
        raise BadImport(
            f"{len(features)} names for {len(forest.features)} features", hint=f"In order: {', '.join(forest.features)}"
        )
    forest.features = list(features)


def import_forest(
    conn: Connection,
    name: str,
    forest: DecisionForest,
    kind: str,
    relation: str = "",
    entity: str | None = None,
    order: str | None = None,
) -> int:
    """Store a forest as a new version that predicts at once; returns the version.

    Args:
        conn: in autocommit mode.
        kind: of the file, to be shown.
        relation: mirror tables whose rows it is applied to, as in scorer.create_model; empty for none.
    """
    shape = {
        "format": kind,
        "trees": len(forest.trees),
        "classes": forest.classes,
        "base": forest.base,
        "link": forest.link,
        "scale": forest.scale,
        "average": forest.average,
        "float32": forest.float32,
    }
    values: dict[str, Any] = {
        "model": name,
        "relation": relation,
        "entity": entity,
        "order": order,
        "features": forest.features,
        "imported": Jsonb(shape),
    }
    with wrap_errors(model=name), conn.transaction():
        conn.execute(QUERIES["lock_for_deploy"], values)
        row = conn.execute(QUERIES["next_version"], values).fetchone()
        assert row is not None, "an aggregate yields a row"
        values["version"] = row[0]
        conn.execute(QUERIES["retire_other"], values)
        close_retired(conn, values, tell=True)
        conn.execute(QUERIES["add_import"], values)
        conn.execute(QUERIES["write_checkpoint"], values | {"state": forest.to_json().encode()})
        write_imported_nodes(conn, name, values["version"], forest)
        conn.execute("SELECT scorer.wake(%(model)s)", values)
    return int(values["version"])


def write_imported_nodes(conn: Connection, name: str, version: int, forest: DecisionForest) -> None:
    """Write the trees as rows, inside the caller's transaction."""
    with conn.cursor() as cursor, cursor.copy(QUERIES["copy_imported_nodes"]) as copy:
        for number, tree in enumerate(forest.trees):
            for node, feature in enumerate(tree.feature):
                head = (name, version, number, node)
                if feature < 0:
                    copy.write_row((*head, None, None, None, None, None, tree.values[node], tree.output + 1))
                else:
                    children = tree.left[node], tree.right[node], tree.missing[node]
                    copy.write_row((*head, feature + 1, tree.threshold[node], *children, None, None))
