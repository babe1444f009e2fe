"""Model files of LightGBM and XGBoost, read as text: what these libraries write themselves, without needing them.

Owns the meaning of their fields. Never loads a library's objects. Sources: LightGBM's include/LightGBM/tree.h (decision types,
missing values, categories), XGBoost's JSON schema of saved models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from scorer.decisions import DecisionForest, Tree, parse_object
from scorer.errors import BadImport

_ZERO = float(np.float32(1e-35))  # LightGBM takes values up to here for zero
_SIGMOIDS = {"binary", "cross_entropy", "xentropy", "multiclassova"}
_EXPONENTIALS = {"poisson", "gamma", "tweedie"}
_XGB_LINKS = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "binary:logitraw": "identity",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:quantileerror": "identity",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}


def parse_dump(text: str, kind: str) -> DecisionForest:
    """The forest in a file of this kind: `lightgbm`, `xgboost`, or `neutral` (see `scorer.sklearn_dump`).

    Raises:
        BadImport: the text is not such a file, or has something in it that is not covered.
    """
    parsers: dict[str, Callable[[str], DecisionForest]] = {
        "lightgbm": parse_lightgbm,
        "xgboost": parse_xgboost,
        "neutral": DecisionForest.from_json,
    }
    try:
        return parsers[kind](text).check()
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, BadImport):
            raise
        raise BadImport(f"the file is not a whole {kind} model: {type(error).__name__} {error}") from error


# --- LightGBM ----------------------------------------------------------------------------------------


def parse_lightgbm(text: str) -> DecisionForest:
    """A model file of LightGBM (`save_model`), or its JSON (`dump_model`)."""
    if text.lstrip().startswith("{"):
        head = parse_object(text)
        trees = [_lightgbm_json_tree(info["tree_structure"]) for info in head["tree_info"]]
        names, average = head["feature_names"], bool(head.get("average_output"))
        a_round, objective = int(head["num_tree_per_iteration"]), str(head.get("objective", "regression"))
    else:
        blocks = text.split("\n\nTree=")
        fields = dict(line.split("=", 1) for line in blocks[0].splitlines() if "=" in line)
        trees = [_lightgbm_text_tree(block.split("\n\n", 1)[0]) for block in blocks[1:]]
        # The size of the last block is not told: it ends at an empty line, like the others.
        names, average = fields["feature_names"].split(), "average_output" in blocks[0].splitlines()
        a_round, objective = int(fields["num_tree_per_iteration"]), fields.get("objective", "regression")
    for number, tree in enumerate(trees):
        tree.output = number % a_round
    kind, *options = objective.split()
    given = dict(option.split(":", 1) for option in options if ":" in option)
    link, scale, classes = "identity", 1.0, None
    if kind in _SIGMOIDS:
        link, scale = "sigmoid", float(given.get("sigmoid", 1.0))
    elif kind == "multiclass":
        link = "softmax"
    elif kind in _EXPONENTIALS:
        link = "exp"
    elif "sqrt" in options:
        raise BadImport("LightGBM's reg_sqrt is not covered")
    if kind in ("binary", "multiclass", "multiclassova"):
        classes = [str(number) for number in range(max(2, a_round))]
    if average:
        # Each output has its own trees, so their mean is that of a round.
        scale *= a_round
    return DecisionForest(list(names), classes, [0.0] * a_round, link, trees, scale, average)


def _lightgbm_text_tree(block: str) -> Tree:
    fields = dict(line.split("=", 1) for line in block.splitlines()[1:] if "=" in line)
    if fields.get("is_linear", "0") != "0":
        raise BadImport("LightGBM's linear trees are not covered")
    leaves = [float(value) for value in fields["leaf_value"].split()]
    tree = Tree.empty()
    if len(leaves) == 1:
        tree.add_leaf(leaves)
        return tree
    features = [int(value) for value in fields["split_feature"].split()]
    thresholds = [float(value) for value in fields["threshold"].split()]
    decisions = [int(value) for value in fields["decision_type"].split()]
    children = [[int(value) for value in fields[f"{side}_child"].split()] for side in ("left", "right")]
    bounds = [int(value) for value in fields.get("cat_boundaries", "").split()]
    words = [int(value) for value in fields.get("cat_threshold", "").split()]

    def place(number: int) -> int:
        if number < 0:
            return tree.add_leaf([leaves[~number]])
        left, right = (place(side[number]) for side in children)
        if decisions[number] & 1:
            first, last = bounds[int(thresholds[number])], bounds[int(thresholds[number]) + 1]
            bits = [32 * i + j for i, word in enumerate(words[first:last]) for j in range(32) if word >> j & 1]
            return _place_categories(tree, features[number], bits, left, right)
        missing = ("None", "Zero", "NaN")[decisions[number] >> 2 & 3]
        return _place_number(tree, features[number], thresholds[number], left, right, missing, bool(decisions[number] & 2))

    return _with_root(tree, place(0))


def _lightgbm_json_tree(structure: dict[str, Any]) -> Tree:
    tree = Tree.empty()

    def place(node: dict[str, Any]) -> int:
        if "leaf_value" in node and "split_feature" not in node:
            if node.get("leaf_features"):
                raise BadImport("LightGBM's linear trees are not covered")
            return tree.add_leaf([float(node["leaf_value"])])
        left, right = place(node["left_child"]), place(node["right_child"])
        if node["decision_type"] == "==":
            categories = [int(part) for part in str(node["threshold"]).split("||")]
            return _place_categories(tree, int(node["split_feature"]), categories, left, right)
        given = float(node["threshold"]), left, right, str(node["missing_type"]), bool(node["default_left"])
        return _place_number(tree, int(node["split_feature"]), *given)

    return _with_root(tree, place(structure))


def _place_number(tree: Tree, feature: int, threshold: float, left: int, right: int, missing: str, default_left: bool) -> int:
    """A split of LightGBM by a number; `missing` says what counts as missing: nothing (it is 0 then), zeros too, or NaN."""
    default = left if default_left else right
    if missing == "NaN":
        return tree.add_split(feature, threshold, left, right, default)
    split = tree.add_split(feature, threshold, left, right, left if threshold >= 0.0 else right)
    if missing == "None":
        return split
    zero = tree.add_split(feature, _ZERO, default, split, default)
    return tree.add_split(feature, math.nextafter(-_ZERO, -math.inf), split, zero, zero)


def _place_categories(tree: Tree, feature: int, categories: list[int], left: int, right: int) -> int:
    """A split of LightGBM by categories: those listed go left, all others right; values are cut to whole numbers."""
    runs: list[list[int]] = []
    for category in sorted(categories):
        if runs and runs[-1][1] == category:
            runs[-1][1] = category + 1
        else:
            runs.append([category, category + 1])
    node = right
    for first, end in reversed(runs):
        inside = tree.add_split(feature, math.nextafter(end, -math.inf), left, node, right)
        below = math.nextafter(first, -math.inf) if first else -1.0
        node = tree.add_split(feature, below, right, inside, right)
    return node


def _with_root(tree: Tree, root: int) -> Tree:
    """The tree with this node in place 0, which children are placed before."""
    order = [root, *(node for node in range(len(tree.feature)) if node != root)]
    number = {node: i for i, node in enumerate(order)} | {-1: -1}
    left, right, missing = ([number[column[node]] for node in order] for column in (tree.left, tree.right, tree.missing))
    features, thresholds = [tree.feature[n] for n in order], [tree.threshold[n] for n in order]
    return Tree(features, thresholds, left, right, missing, [tree.values[n] for n in order], tree.output)


# --- XGBoost -----------------------------------------------------------------------------------------


def parse_xgboost(text: str) -> DecisionForest:
    """A model of XGBoost saved as JSON (`save_model("model.json")`)."""
    learner = parse_object(text)["learner"]
    head, objective = learner["learner_model_param"], learner["objective"]["name"]
    if objective not in _XGB_LINKS:
        raise BadImport(f"XGBoost's objective {objective} is not covered", hint=f"Covered: {', '.join(_XGB_LINKS)}.")
    link = _XGB_LINKS[objective]
    booster, weights = learner["gradient_booster"], None
    if booster["name"] == "dart":
        weights = [float(weight) for weight in booster["weight_drop"]]
        booster = booster["gbtree"]
    elif booster["name"] != "gbtree":
        raise BadImport(f"XGBoost's booster {booster['name']} has no trees")
    model = booster["model"]
    outputs = max(1, int(head["num_class"]), int(head.get("num_target", 1)))
    # A number, or since version 3 a list of one number per output.
    given = [float(part) for part in str(head["base_score"]).strip("[]").split(",")]
    base = [_to_margin(value, link if objective != "binary:logitraw" else "sigmoid") for value in given]
    base = base * outputs if len(base) == 1 else base
    trees = []
    for number, (tree, output) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        trees.append(_xgboost_tree(tree, int(output), 1.0 if weights is None else weights[number]))
    features = list(learner.get("feature_names") or [f"f{i}" for i in range(int(head["num_feature"]))])
    classes = None
    if objective in ("binary:logistic", "multi:softprob", "multi:softmax"):
        classes = [str(number) for number in range(max(2, outputs))]
    return DecisionForest(features, classes, base, link, trees, float32=True)


def _to_margin(value: float, link: str) -> float:
    if link == "sigmoid":
        return -math.log(1.0 / value - 1.0)
    return math.log(value) if link == "exp" else value


def _xgboost_tree(given: dict[str, Any], output: int, weight: float) -> Tree:
    if any(given.get("split_type", [])):
        raise BadImport("XGBoost's categorical splits are not covered", hint="Train with numbers: one column per category.")
    if int(given["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise BadImport("XGBoost's trees with several outputs are not covered", hint="Train with one_output_per_tree.")
    tree = Tree.empty(output)
    nodes = zip(
        given["split_indices"], given["split_conditions"], given["left_children"], given["right_children"],
        given["default_left"], strict=True,
    )  # fmt: skip
    for feature, condition, left, right, default_left in nodes:
        if left == -1:
            tree.add_leaf([weight * float(np.float32(condition))])
            continue
        # x < t is x <= the float32 before t, because x is a float32 too.
        below = float(np.nextafter(np.float32(condition), np.float32(-np.inf)))
        tree.add_split(int(feature), below, int(left), int(right), int(left if default_left else right))
    return tree
