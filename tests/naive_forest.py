"""A random cut forest that is slow and obvious: the twin that the kernels are compared with.

Owns its own random numbers, trees of objects, recursion instead of loops, and scores by the textbook recursion from the
leaf up. Shares with `scorer.kernels` only what is a contract: which number of which stream decides what, and the order in
which gaps are added.
"""

# ruff: noqa: D102 - the methods are those of the forest, and do what they do there

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
LANES = 8


def mix(z: int) -> int:
    """Finaliser of splitmix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def random_stream(seed: int, tree: int, row: int) -> int:
    """Key of the numbers that a row uses in a tree."""
    key = mix((seed + GOLDEN) & MASK)
    key = mix((key + (tree + 1) * GOLDEN) & MASK)
    return mix((key + (row + 1) * GOLDEN) & MASK)


def uniform(stream: int, draw: int) -> float:
    """The draw-th number of a stream, in (0, 1)."""
    return ((mix((stream + (draw + 1) * GOLDEN) & MASK) >> 11) + 0.5) * 2.0**-53


def add(values: list[float]) -> float:
    """Sum in the order that is laid down: LANES partial sums, folded in halves."""
    lanes = [0.0] * LANES
    for i, value in enumerate(values):
        lanes[i % LANES] += value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


def add_gaps(values: list[float]) -> float:
    """Sum of gaps as it is laid down: in float32, 2 * LANES partial sums of whole groups, halved, then the rest; folded in
    float64.
    """
    with np.errstate(over="ignore"):
        padded = np.array(values + [0.0] * (-len(values) % LANES)).astype(np.float32)
    whole = len(padded) // (2 * LANES) * (2 * LANES)
    sums = np.zeros(2 * LANES, np.float32)
    with np.errstate(over="ignore"):
        for first in range(0, whole, 2 * LANES):
            sums = sums + padded[first : first + 2 * LANES]
        lanes = sums[:LANES] + sums[LANES:]
        if whole < len(padded):
            lanes = lanes + padded[whole:]
    return add([float(lane) for lane in lanes]) if np.isfinite(lanes).all() else add(values)


def positive(x: float) -> float:
    """The number if above 0, else 0; 0 for NaN."""
    return x if x > 0.0 else 0.0


@dataclass
class Node:
    """A leaf (children None) or an internal node."""

    low: list[float]
    high: list[float]
    mass: int = 1
    cut_dim: int = -1
    cut_value: float = math.nan
    left: Node | None = None
    right: Node | None = None
    parent: Node | None = field(default=None, repr=False)

    @property
    def is_leaf(self) -> bool:
        return self.left is None

    def range_sum(self) -> float:
        return add([positive(b - a) for a, b in zip(self.low, self.high, strict=True)])

    def gaps_above(self, x: list[float]) -> list[float]:
        return [positive(p - b) for p, b in zip(x, self.high, strict=True)]

    def gaps_below(self, x: list[float]) -> list[float]:
        return [positive(a - p) for p, a in zip(x, self.low, strict=True)]

    def gaps(self, x: list[float]) -> list[float]:
        return [a + b for a, b in zip(self.gaps_above(x), self.gaps_below(x), strict=True)]

    def gap_sum(self, x: list[float]) -> float:
        """In float32, unless something is missing."""
        known = not any(math.isnan(v) for v in [*self.low, *self.high, *x])
        return add_gaps(self.gaps(x)) if known else add(self.gaps(x))

    def child(self, x: list[float]) -> Node:
        value = x[self.cut_dim]
        if math.isnan(value):
            return self.left if self.left.mass >= self.right.mass else self.right
        return self.left if value <= self.cut_value else self.right

    def join(self) -> None:
        self.low = [np.fmin(a, b) for a, b in zip(self.left.low, self.right.low, strict=True)]
        self.high = [np.fmax(a, b) for a, b in zip(self.left.high, self.right.high, strict=True)]


def same(x: list[float], y: list[float]) -> bool:
    """Equal, where NaN equals NaN."""
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(x, y, strict=True))


class NaiveTree:
    """One tree: insert, delete, score, attribute."""

    def __init__(self) -> None:
        self.root: Node | None = None

    def insert(self, x: list[float], stream: int) -> Node:
        if self.root is None:
            self.root = Node(x, x)
            return self.root
        node, draw = self.root, 0
        while True:
            draw += 1
            gaps = node.gaps(x)
            total = node.gap_sum(x)
            offset = uniform(stream, draw) * (node.range_sum() + total)
            if total > 0.0 and (offset < total or node.is_leaf):
                return self.splice(node, x, *self.place_cut(node, x, gaps, offset))
            if node.is_leaf:
                if same(node.low, x):
                    node.mass += 1
                    return node
                differs = [math.isnan(a) != math.isnan(b) for a, b in zip(node.low, x, strict=True)]
                return self.splice(node, x, differs.index(True), math.inf)
            child = node.child(x)
            node.low = [np.fmin(a, p) for a, p in zip(node.low, x, strict=True)]
            node.high = [np.fmax(a, p) for a, p in zip(node.high, x, strict=True)]
            node.mass += 1
            node = child

    @staticmethod
    def place_cut(node: Node, x: list[float], gaps: list[float], offset: float) -> tuple[int, float]:
        last = max(i for i, gap in enumerate(gaps) if gap > 0.0)
        for dim, gap in enumerate(gaps):
            if gap > 0.0 and (offset < gap or dim == last):
                start, end = (x[dim], node.low[dim]) if x[dim] < node.low[dim] else (node.high[dim], x[dim])
                value = float(np.float32(start + offset))
                if value >= end:
                    value = float(np.nextafter(np.float32(end), np.float32(start)))
                return dim, max(value, start)
            offset -= gap
        raise AssertionError("no gap")

    def splice(self, node: Node, x: list[float], dim: int, value: float) -> Node:
        leaf = Node(x, x)
        first, second = (leaf, node) if x[dim] <= value else (node, leaf)
        above = Node([], [], node.mass + 1, dim, value, first, second, node.parent)
        self.replace(node, above)
        leaf.parent = node.parent = above
        above.join()
        return leaf

    def replace(self, old: Node, new: Node) -> None:
        if old.parent is None:
            self.root = new
        elif old.parent.left is old:
            old.parent.left = new
        else:
            old.parent.right = new
        new.parent = old.parent

    def delete(self, leaf: Node) -> None:
        leaf.mass -= 1
        node = leaf.parent
        if leaf.mass == 0:
            if node is None:
                self.root = None
                return
            self.replace(node, node.right if node.left is leaf else node.left)
            node = node.parent
        while node is not None:
            node.mass -= 1
            node.join()
            node = node.parent

    def attribute(self, x: list[float]) -> tuple[list[float], list[float]]:
        """(high, low); their sum is nearly the score. From the leaf up, as the score is defined."""
        if self.root is None:
            return [0.0] * len(x), [0.0] * len(x)
        path = [self.root]
        while not path[-1].is_leaf:
            path.append(path[-1].child(x))
        leaf, total_mass = path.pop(), self.root.mass
        depth, total = len(path), leaf.gap_sum(x)
        if total > 0.0:
            high = [gap / total / (depth + 1) for gap in leaf.gaps_above(x)]
            low = [gap / total / (depth + 1) for gap in leaf.gaps_below(x)]
        else:
            value = (1 - leaf.mass / (2 * total_mass)) / (depth + math.log2(1 + leaf.mass))
            if all(node.gap_sum(x) == 0.0 for node in path):
                high, low = self.attribute_seen(leaf, x, value)
            else:
                high, low = self.spread(x, value)
        for node in reversed(path):
            total = node.gap_sum(x)
            if total > 0.0:
                high, low = self.mix_in(node, x, depth, high, low)
            depth -= 1
        scale = math.log2(1 + total_mass)
        return [scale * v for v in high], [scale * v for v in low]

    @staticmethod
    def mix_in(node: Node, x: list[float], depth: int, high: list[float], low: list[float]) -> tuple[list[float], list[float]]:
        """One step of the recursion; `depth` is that of the children of `node`."""
        total = node.gap_sum(x) + node.range_sum()
        q = node.gap_sum(x) / total
        high = [gap / total / depth + (1 - q) * v for gap, v in zip(node.gaps_above(x), high, strict=True)]
        low = [gap / total / depth + (1 - q) * v for gap, v in zip(node.gaps_below(x), low, strict=True)]
        return high, low

    @staticmethod
    def spread(x: list[float], value: float) -> tuple[list[float], list[float]]:
        present = [not math.isnan(p) for p in x]
        present = present if any(present) else [True] * len(x)
        share = [value / (2 * sum(present)) if p else 0.0 for p in present]
        return share, list(share)

    def attribute_seen(self, leaf: Node, x: list[float], value: float) -> tuple[list[float], list[float]]:
        depth, node = 0, leaf
        while node.parent is not None:
            node, depth = node.parent, depth + 1
        high, low = self.spread(x, 1 / (depth + 1))
        node, shadow = leaf, None
        while node.parent is not None:
            sibling = node.parent.right if node.parent.left is node else node.parent.left
            if shadow is None:
                shadow = Node(sibling.low, sibling.high)
            else:
                shadow = Node([], [], left=shadow, right=sibling)
                shadow.join()
            node = node.parent
            if shadow.gap_sum(x) == 0.0:
                break
            high, low = self.mix_in(shadow, x, depth, high, low)
            depth -= 1
        scale = value / (sum(high) + sum(low))
        return [scale * v for v in high], [scale * v for v in low]

    def score(self, x: list[float]) -> float:
        """From the leaf up."""
        if self.root is None:
            return 0.0
        path = [self.root]
        while not path[-1].is_leaf:
            path.append(path[-1].child(x))
        leaf, total_mass = path.pop(), self.root.mass
        depth = len(path)
        value = 1 / (depth + 1)
        if leaf.gap_sum(x) == 0.0:
            value = (1 - leaf.mass / (2 * total_mass)) / (depth + math.log2(1 + leaf.mass))
        for node in reversed(path):
            total = node.gap_sum(x)
            if total > 0.0:
                q = total / (total + node.range_sum())
                value = q / depth + (1 - q) * value
            depth -= 1
        return value * math.log2(1 + total_mass)


class NaiveForest:
    """Trees with their reservoirs."""

    def __init__(self, trees: int, samples: int, time_decay: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.decay, self.decay_offset = 1.0 / time_decay, 0.0
        self.trees = [NaiveTree() for _ in range(trees)]
        self.slots: list[list[tuple[float, int, Node]]] = [[] for _ in range(trees)]
        self.rows_seen = 0

    def key(self, tree: int, row: int, age: float) -> float:
        return math.log(-math.log(uniform(random_stream(self.seed, tree, row), 0))) - age

    def fit(self, X: np.ndarray) -> None:
        rows = as_lists(X)
        for t, tree in enumerate(self.trees):
            keys = [(self.key(t, row, 0.0), row) for row in range(len(rows))]
            for key, row in sorted(sorted(keys)[: self.samples], key=lambda pair: pair[1]):
                leaf = tree.insert(rows[row], random_stream(self.seed, t, row))
                self.slots[t].append((key, row, leaf))
        self.rows_seen = len(rows)
        self.decay_offset = -len(rows) * self.decay

    def update(self, X: np.ndarray) -> np.ndarray:
        scores = []
        for x in as_lists(X):
            scores.append(self.score(x))
            for t in range(len(self.trees)):
                self.learn(t, x)
            self.rows_seen += 1
        return np.array(scores)

    def learn(self, t: int, x: list[float]) -> None:
        row = self.rows_seen
        key = self.key(t, row, row * self.decay + self.decay_offset)
        if len(self.slots[t]) == self.samples:
            worst = max(self.slots[t], key=lambda slot: slot[0])
            if key >= worst[0]:
                return
            self.slots[t].remove(worst)
            self.trees[t].delete(worst[2])
        self.slots[t].append((key, row, self.trees[t].insert(x, random_stream(self.seed, t, row))))

    def score(self, x: list[float]) -> float:
        return sum(tree.score(x) for tree in self.trees) / len(self.trees)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return np.array([self.score(x) for x in as_lists(X)])

    def explain(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = [[tree.attribute(x) for tree in self.trees] for x in as_lists(X)]
        mean = np.array(pairs).mean(axis=1)
        # Gaps are added up in float32 for the score: what rounding leaves is spread over the parts.
        sums = mean.sum(axis=(1, 2))
        mean *= (self.score_samples(X) / np.where(sums > 0.0, sums, 1.0))[:, np.newaxis, np.newaxis]
        return mean[:, 0], mean[:, 1]

    def score_training(self, X: np.ndarray) -> np.ndarray:
        """Score every row by trees from which it has been deleted."""
        scores = []
        for row, x in enumerate(as_lists(X)):
            total = 0.0
            for tree, slots in zip(self.trees, self.slots, strict=True):
                mine, leaves = copy.deepcopy((tree, [leaf for _, number, leaf in slots if number == row]))
                for leaf in leaves:
                    mine.delete(leaf)
                total += mine.score(x)
            scores.append(total / len(self.trees))
        return np.array(scores)

    def unfold(self, t: int) -> object:
        return unfold_naive(self.trees[t].root)


def as_lists(X: np.ndarray) -> list[list[float]]:
    """Rows as lists of float32 values, -0.0 as 0.0."""
    return [[float(v) + 0.0 for v in row] for row in np.asarray(X, np.float32)]


def plain(values: object) -> tuple[float | None, ...]:
    """Numbers that can be compared with ==: NaN as None."""
    return tuple(None if math.isnan(v) else float(v) for v in values)


def unfold_naive(node: Node | None) -> object:
    """A tree as nested tuples."""
    if node is None:
        return None
    if node.is_leaf:
        return ("leaf", node.mass, plain(node.low))
    children = unfold_naive(node.left), unfold_naive(node.right)
    return (node.mass, node.cut_dim, float(node.cut_value), plain(node.low), plain(node.high), node.range_sum(), *children)


def unfold(forest, t: int) -> object:
    """A tree of a RandomCutForest as the same nested tuples; checks parent links on the way."""
    nodes, corners, columns = forest._nodes[t], forest._corners[t], forest.columns
    first_leaf = forest.samples - 1

    def visit(node: int, parent: int) -> object:
        record = nodes[node]
        assert record["parent"] == parent
        if node >= first_leaf:
            return ("leaf", int(record["mass"]), plain(corners[node + first_leaf][:columns]))
        low, high = plain(corners[2 * node][:columns]), plain(corners[2 * node + 1][:columns])
        children = visit(int(record["left"]), node), visit(int(record["right"]), node)
        cut = int(record["cut_dim"]), float(record["cut_value"])
        return (int(record["mass"]), *cut, low, high, float(record["range_sum"]), *children)

    root = int(forest._tree_records[t]["root"])
    return None if root == -1 else visit(root, -1)
