"""Decision forests that were trained elsewhere: trees of thresholds with values in their leaves, and what they predict.

Owns the form in which every such forest is held, whatever made it, its neutral JSON, and the arithmetic. Never trains, never
unpickles anything: what comes in is text, and it is checked before it is used.

A value <= threshold goes left, a missing one where the node says. A tree adds the values of the leaf that a row reaches to the
outputs from `output` on; the sum, or the mean, plus `base` goes through the link. Children may be shared, cycles are refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.errors import BadImport

Floats = NDArray[np.float64]

FORMAT, VERSION = "tailrace decision forest", 1
LINKS = ("identity", "sigmoid", "softmax", "exp")
MOST_NODES = 20_000_000
_LARGEST = float(np.finfo(np.float64).max)


@dataclass
class Tree:
    """One tree; node 0 is the root.

    Attributes:
        feature: for each node the column, from 0; -1 in a leaf.
        threshold: for each node.
        left, right, missing: children of each node; missing is one of the other two, or any node below.
        values: for each node the values of a leaf, empty elsewhere.
        output: number of the first output that the values are added to, from 0.
    """

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    missing: list[int]
    values: list[list[float]]
    output: int = 0

    @classmethod
    def empty(cls, output: int = 0) -> Tree:
        """A tree to be filled by `add_leaf` and `add_split`."""
        return cls([], [], [], [], [], [], output)

    def add_leaf(self, values: list[float]) -> int:
        """Append a leaf; returns its number."""
        return self._add(-1, 0.0, (-1, -1, -1), values)

    def add_split(self, feature: int, threshold: float, left: int = -1, right: int = -1, missing: int = -1) -> int:
        """Append a split, whose children may be set later; returns its number."""
        return self._add(feature, threshold, (left, right, missing), [])

    def _add(self, feature: int, threshold: float, children: tuple[int, int, int], values: list[float]) -> int:
        self.feature.append(feature)
        self.threshold.append(min(max(threshold, -_LARGEST), _LARGEST))
        for column, child in zip((self.left, self.right, self.missing), children, strict=True):
            column.append(child)
        self.values.append(values)
        return len(self.feature) - 1


@dataclass
class DecisionForest:
    """A forest that was trained elsewhere.

    Attributes:
        features: names of the columns, in order.
        classes: labels, as text; None for a regression.
        base: what the sum of the trees starts with, one per output. A single output of a classification is its second class.
        link: of LINKS.
        scale: what the sum is multiplied with before the link.
        average: whether the trees' mean counts instead of their sum.
        float32: whether values are rounded to float32 before they are compared.
    """

    features: list[str]
    classes: list[str] | None
    base: list[float]
    link: str
    trees: list[Tree]
    scale: float = 1.0
    average: bool = False
    float32: bool = False

    def predict(self, rows: Floats) -> Floats:
        """Probabilities of the classes, shape (n, classes), or predicted values, shape (n, outputs).

        Args:
            rows: shape (n, features), float64, NaN where there is no value.
        """
        if self.float32:
            with np.errstate(over="ignore"):
                rows = rows.astype(np.float32).astype(np.float64)
        sums = np.zeros((len(rows), len(self.base)))
        for tree in self.trees:
            leaves = _find_leaves(tree, rows)
            width = max(len(values) for values in tree.values)
            table = np.zeros((len(tree.values), width))
            for node, values in enumerate(tree.values):
                table[node, : len(values)] = values
            sums[:, tree.output : tree.output + width] += table[leaves]
        if self.average and self.trees:
            sums /= len(self.trees)
        return self._finish((sums + np.array(self.base)) * self.scale)

    def _finish(self, margins: Floats) -> Floats:
        with np.errstate(over="ignore"):
            if self.link == "sigmoid":
                margins = 1.0 / (1.0 + np.exp(-margins))
            elif self.link == "exp":
                margins = np.exp(margins)
            elif self.link == "softmax":
                margins = np.exp(margins - margins.max(axis=1, keepdims=True))
                margins /= margins.sum(axis=1, keepdims=True)
        if self.classes is not None and margins.shape[1] == 1:
            margins = np.hstack([1.0 - margins, margins])
        return margins

    def check(self) -> DecisionForest:
        """The forest itself, once everything about it is plausible.

        Raises:
            BadImport: numbers that cannot be, links that lead nowhere or round in circles.
        """
        outputs = len(self.base)
        wanted = {1, 2} if outputs == 1 else {outputs}
        if self.link not in LINKS or not self.features or len(set(self.features)) != len(self.features):
            raise BadImport("the forest needs features of different names and a known link", link=self.link)
        if self.classes is not None and len(self.classes) not in wanted - {1}:
            raise BadImport(f"{len(self.classes)} classes do not fit {outputs} outputs")
        if not all(math.isfinite(number) for number in (*self.base, self.scale)):
            raise BadImport("base and scale must be finite")
        if sum(len(tree.feature) for tree in self.trees) > MOST_NODES:
            raise BadImport(f"the forest has more than {MOST_NODES:,} nodes")
        for number, tree in enumerate(self.trees):
            _check_tree(number, tree, len(self.features), outputs)
        return self

    def to_json(self) -> str:
        """The neutral JSON."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "features": self.features,
            "classes": self.classes,
            "base": self.base,
            "link": self.link,
            "scale": self.scale,
            "average": self.average,
            "float32": self.float32,
            "trees": [vars(tree) for tree in self.trees],
        }
        return json.dumps(body, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> DecisionForest:
        """The inverse of `to_json`; everything is checked.

        Raises:
            BadImport: the text is not such JSON.
        """
        body = parse_object(text)
        if body.pop("format", None) != FORMAT or body.pop("version", None) != VERSION:
            raise BadImport("the text is not a neutral decision forest of a version that this program knows")
        try:
            trees = [Tree(**tree) for tree in body.pop("trees")]
            return cls(trees=trees, **body).check()
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise BadImport(f"the neutral decision forest cannot be read: {error}") from error


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadImport: the text is none.
    """
    try:
        body = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadImport(f"the file is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadImport("the file is not a JSON object")
    return body


def _find_leaves(tree: Tree, rows: Floats) -> NDArray[np.int64]:
    feature, threshold = np.array(tree.feature), np.array(tree.threshold)
    left, right, missing = np.array(tree.left), np.array(tree.right), np.array(tree.missing)
    at = np.zeros(len(rows), np.int64)
    moving = np.arange(len(rows)) if feature[0] >= 0 else np.empty(0, np.int64)
    while moving.size:
        here = at[moving]
        values = rows[moving, feature[here]]
        following = np.where(values <= threshold[here], left[here], right[here])
        at[moving] = np.where(np.isnan(values), missing[here], following)
        moving = moving[feature[at[moving]] >= 0]
    return at


def _check_tree(number: int, tree: Tree, features: int, outputs: int) -> None:
    nodes = len(tree.feature)
    columns = (tree.threshold, tree.left, tree.right, tree.missing, tree.values)
    if nodes == 0 or any(len(column) != nodes for column in columns):
        raise BadImport(f"tree {number}: the columns of its nodes are not of one length")
    for node in range(nodes):
        values = tree.values[node]
        if not all(math.isfinite(float(value)) for value in (*values, tree.threshold[node])):
            raise BadImport(f"tree {number}: a number of node {node} is not finite")
        if tree.feature[node] < 0:
            if not values or tree.output < 0 or tree.output + len(values) > outputs:
                raise BadImport(f"tree {number}: the values of leaf {node} do not fit the outputs")
        elif tree.feature[node] >= features:
            raise BadImport(f"tree {number}: node {node} asks for feature {tree.feature[node]} of {features}")
        elif not all(0 <= column[node] < nodes for column in (tree.left, tree.right, tree.missing)):
            raise BadImport(f"tree {number}: a child of node {node} does not exist")
    # 0 not met, 1 on the way, 2 done: a child on the way closes a circle.
    met, stack = [0] * nodes, [(0, False)]
    while stack:
        node, done = stack.pop()
        if done:
            met[node] = 2
            continue
        if met[node]:
            continue
        met[node] = 1
        stack.append((node, True))
        for child in {tree.left[node], tree.right[node], tree.missing[node]} if tree.feature[node] >= 0 else ():
            if met[child] == 1:
                raise BadImport(f"tree {number}: node {child} is below itself")
            if not met[child]:
                stack.append((child, False))
