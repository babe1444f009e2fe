"""Forests of scikit-learn as neutral JSON: for use where the fitted object is, in the program that trained it.

    from scorer.sklearn_dump import dump_sklearn
    Path("churn.json").write_text(dump_sklearn(classifier))

Owns the reading of a fitted object's attributes. Never loads an object from a file: unpickling runs whatever the file says, so
the warehouse takes the JSON only. Needs no scikit-learn by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scorer.decisions import DecisionForest, Tree
from scorer.errors import BadImport

_AVERAGED = {"RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"}
_BOOSTED = {"GradientBoostingClassifier", "GradientBoostingRegressor"}
_HISTOGRAM = {"HistGradientBoostingClassifier", "HistGradientBoostingRegressor"}


def dump_sklearn(model: Any, features: Sequence[str] | None = None) -> str:
    """The neutral JSON of a fitted forest.

    Args:
        model: RandomForest, ExtraTrees, GradientBoosting or HistGradientBoosting, classifier or regressor of one target.
        features: names of the columns; default: those it was fitted with, else f0, f1, ...

    Raises:
        BadImport: another kind of model, or one with something that is not covered.
    """
    kind = type(model).__name__
    count = int(model.n_features_in_)
    names = list(features if features is not None else getattr(model, "feature_names_in_", [f"f{i}" for i in range(count)]))
    if len(names) != count:
        raise BadImport(f"{len(names)} names for {count} features")
    classes = [str(label) for label in model.classes_] if hasattr(model, "classes_") else None
    if kind in _AVERAGED:
        trees = [_read_tree(estimator.tree_, classes is not None) for estimator in model.estimators_]
        width = len(classes) if classes else 1
        forest = DecisionForest(names, classes, [0.0] * width, "identity", trees, average=True, float32=True)
    elif kind in _BOOSTED:
        forest = _read_boosted(model, names, classes)
    elif kind in _HISTOGRAM:
        forest = _read_histogram(model, names, classes)
    else:
        raise BadImport(f"{kind} is not covered", hint=f"Covered: {', '.join(sorted(_AVERAGED | _BOOSTED | _HISTOGRAM))}.")
    return forest.check().to_json()


def _read_tree(given: Any, is_class: bool, scale: float = 1.0, output: int = 0) -> Tree:
    tree = Tree.empty(output)
    if given.value.shape[1] != 1:
        raise BadImport("forests of several targets are not covered")
    default_left = getattr(given, "missing_go_to_left", np.zeros(given.node_count))
    for node in range(given.node_count):
        left, right = int(given.children_left[node]), int(given.children_right[node])
        if left < 0:
            values = given.value[node, 0]
            values = values / values.sum() if is_class else values * scale
            tree.add_leaf([float(value) for value in values])
        else:
            missing = left if default_left[node] else right
            tree.add_split(int(given.feature[node]), float(given.threshold[node]), left, right, missing)
    return tree


def _read_boosted(model: Any, names: list[str], classes: list[str] | None) -> DecisionForest:
    outputs = model.estimators_.shape[1]
    trees = [
        _read_tree(estimator.tree_, False, model.learning_rate, output)
        for a_round in model.estimators_
        for output, estimator in enumerate(a_round)
    ]
    if model.init_ == "zero" or isinstance(model.init_, str):
        base = [0.0] * outputs
    elif type(model.init_).__name__ == "DummyRegressor":
        base = [float(np.ravel(model.init_.constant_)[0])]
    elif type(model.init_).__name__ == "DummyClassifier":
        tiny = float(np.finfo(np.float32).eps)
        shares = np.clip(model.init_.class_prior_, tiny, 1.0 - tiny)
        if outputs == 1:
            # Half the log-odds where the loss is exponential.
            base = [math.log(shares[1] / (1.0 - shares[1])) * (0.5 if model.loss == "exponential" else 1.0)]
        else:
            base = [math.log(share) for share in shares]
    else:
        raise BadImport("a boosted forest that starts from another model is not covered", hint="Leave out init.")
    link = "identity" if classes is None else "sigmoid" if outputs == 1 else "softmax"
    scale = 2.0 if classes is not None and model.loss == "exponential" else 1.0
    return DecisionForest(names, classes, base, link, trees, scale, float32=True)


def _read_histogram(model: Any, names: list[str], classes: list[str] | None) -> DecisionForest:
    trees = []
    for a_round in model._predictors:
        for output, predictor in enumerate(a_round):
            tree = Tree.empty(output)
            for node in predictor.nodes:
                if node["is_leaf"]:
                    tree.add_leaf([float(node["value"])])
                elif node["is_categorical"]:
                    raise BadImport("categorical splits are not covered", hint="Train with one column per category.")
                else:
                    left, right = int(node["left"]), int(node["right"])
                    missing = left if node["missing_go_to_left"] else right
                    tree.add_split(int(node["feature_idx"]), float(node["num_threshold"]), left, right, missing)
            trees.append(tree)
    base = [float(value) for value in np.ravel(model._baseline_prediction)]
    if classes is not None:
        link = "sigmoid" if len(base) == 1 else "softmax"
    else:
        link = "exp" if model.loss in ("poisson", "gamma") else "identity"
    return DecisionForest(names, classes, base, link, trees)
