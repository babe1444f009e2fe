"""A frozen forest as rows, so that Postgres can score by itself.

Owns the translation of the forest's arrays into scorer.forest_nodes. Never changes a forest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer.arrays import Float8Array, Int4Array
from scorer.forest import RandomCutForest
from scorer.models import QUERIES, Model
from warehouse.db import Connection

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TreeRows:
    """One tree, its nodes numbered from the root (0) downwards.

    Attributes:
        cut_dim: shape (n,), int64, the feature's number from 1, 0 in a leaf.
        cut_value: shape (n,), float64.
        left, right, heavy: shape (n,), int64, children, and the one with the larger mass; -1 in a leaf.
        mass: shape (n,), int64, training rows at or below.
        range_sum: shape (n,), float64, sum of the box's side lengths.
        low, high: shape (n, features), float64, the box; infinite where no row had a value.
    """

    cut_dim: Ints
    cut_value: Floats
    left: Ints
    right: Ints
    heavy: Ints
    mass: Ints
    range_sum: Floats
    low: Floats
    high: Floats


def read_trees(forest: RandomCutForest) -> Iterator[tuple[int, TreeRows]]:
    """The numbers and trees of a forest, without those that know no row."""
    trees, nodes, corners = forest._arrays()
    for number, (record, tree_nodes, tree_corners) in enumerate(zip(trees, nodes, corners, strict=True)):
        if record["root"] < 0:  # a tree of a new stream that took no row yet
            continue
        yield number, _read_tree(int(record["root"]), tree_nodes, tree_corners[:, : forest.columns].astype(np.float64))


def _read_tree(root: int, nodes: NDArray[np.void], corners: Floats) -> TreeRows:
    first_leaf = len(nodes) // 2
    order = [root]
    for node in order:
        if node < first_leaf:
            order += [int(nodes[node]["left"]), int(nodes[node]["right"])]
    ids = np.array(order)
    inner = ids < first_leaf
    # The last entry stands for "no child".
    numbers = np.full(len(nodes) + 1, -1)
    numbers[ids] = np.arange(len(ids))
    records = nodes[ids]
    left = np.where(inner, numbers[np.where(inner, records["left"], -1)], -1)
    right = np.where(inner, numbers[np.where(inner, records["right"], -1)], -1)
    mass = records["mass"].astype(np.int64)
    low = corners[np.where(inner, 2 * ids, ids + first_leaf)]
    high = corners[np.where(inner, 2 * ids + 1, ids + first_leaf)]
    return TreeRows(
        cut_dim=np.where(inner, records["cut_dim"].astype(np.int64) + 1, 0),
        cut_value=records["cut_value"].astype(np.float64),
        left=left,
        right=right,
        heavy=np.where(mass[left] >= mass[right], left, right),
        mass=mass,
        range_sum=records["range_sum"].astype(np.float64),
        low=np.where(np.isnan(low), -np.inf, low),
        high=np.where(np.isnan(high), np.inf, high),
    )


def write_nodes(conn: Connection, model: Model, forest: RandomCutForest) -> None:
    """Write the forest of a version as rows, inside the caller's transaction."""
    for number, tree in read_trees(forest):
        values = model.key | {
            "tree": number,
            "width": forest.columns,
            "cut_dims": Int4Array(tree.cut_dim),
            "cut_values": Float8Array(tree.cut_value),
            "lefts": Int4Array(tree.left),
            "rights": Int4Array(tree.right),
            "heavies": Int4Array(tree.heavy),
            "masses": Int4Array(tree.mass),
            "range_sums": Float8Array(tree.range_sum),
            "low": Float8Array(tree.low.ravel()),
            "high": Float8Array(tree.high.ravel()),
        }
        conn.execute(QUERIES["write_nodes"], values)
