"""Forests of scikit-learn, LightGBM and XGBoost predict here what they predict there."""

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import xgboost
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

from scorer.decisions import DecisionForest
from scorer.dumps import parse_dump
from scorer.errors import BadImport
from scorer.sklearn_dump import dump_sklearn
from tests.data.capture_lightgbm import FILE


def make_data(kind: str, missing: float = 0.0, rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training rows, target, rows to ask about) with values at the thresholds, zeros, and missing ones where asked for."""
    rng = np.random.default_rng(3)
    X = np.round(rng.normal(size=(rows, 5)), 2)
    X[rng.random(X.shape) < 0.1] = 0.0
    signal = X[:, 0] + np.abs(X[:, 1]) - X[:, 2] * X[:, 3] + rng.normal(size=rows) * 0.3
    y = {"binary": (signal > 0.8).astype(int), "classes": np.digitize(signal, [0, 1.2]), "number": signal}[kind]
    asked = np.vstack([X[:150], rng.normal(size=(50, 5)) * 3, X[:50] + 1e-9])
    for values in (X, asked):
        values[rng.random(values.shape) < missing] = np.nan
    return X, y, asked


def wanted_of(model: object, rows: np.ndarray) -> np.ndarray:
    """What the library says: probabilities, or values as one column."""
    return model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows).reshape(len(rows), -1)


@pytest.mark.parametrize(
    ("model", "kind", "missing"),
    [
        (RandomForestClassifier(20, random_state=0), "classes", 0.0),
        (RandomForestClassifier(20, random_state=0), "binary", 0.1),
        (ExtraTreesClassifier(10, random_state=0), "binary", 0.0),
        (RandomForestRegressor(20, random_state=0), "number", 0.1),
        (GradientBoostingClassifier(n_estimators=20, random_state=0), "binary", 0.0),
        (GradientBoostingClassifier(n_estimators=20, loss="exponential", random_state=0), "binary", 0.0),
        (GradientBoostingClassifier(n_estimators=10, init="zero", random_state=0), "classes", 0.0),
        (GradientBoostingClassifier(n_estimators=10, random_state=0), "classes", 0.0),
        (GradientBoostingRegressor(n_estimators=20, random_state=0), "number", 0.0),
        (HistGradientBoostingClassifier(max_iter=20), "binary", 0.1),
        (HistGradientBoostingClassifier(max_iter=10), "classes", 0.0),
        (HistGradientBoostingRegressor(max_iter=20), "number", 0.1),
    ],
)
def test_scikit_learn(model: object, kind: str, missing: float) -> None:
    """To 1e-9, over the neutral JSON."""
    X, y, asked = make_data(kind, missing)
    model.fit(X, y)
    forest = DecisionForest.from_json(dump_sklearn(model, list("abcde")))
    np.testing.assert_allclose(forest.predict(asked), wanted_of(model, asked), atol=1e-9)


CAPTURED = json.loads(gzip.decompress(FILE.read_bytes()))["cases"]


@pytest.mark.parametrize("name", sorted(CAPTURED))
@pytest.mark.parametrize("form", ["text", "json"])
def test_lightgbm(name: str, form: str) -> None:
    """To 1e-9: files and predictions that LightGBM made, of every kind of split, missing value and objective."""
    case = CAPTURED[name]
    asked = np.array([[np.nan if value is None else value for value in row] for row in case["asked"]])
    wanted = np.array(case["predicted"])
    found = parse_dump(case[form], "lightgbm").predict(asked)
    np.testing.assert_allclose(found[:, -wanted.shape[1] :], wanted, atol=1e-9)
    assert len(np.unique(wanted)) > 4
    assert ('"=="' in case["json"]) == (name == "categories")


@pytest.mark.parametrize(
    ("model", "kind", "missing"),
    [
        (xgboost.XGBClassifier(n_estimators=20, max_depth=4), "binary", 0.1),
        (xgboost.XGBClassifier(n_estimators=20, base_score=0.3, num_parallel_tree=2, subsample=0.7), "binary", 0.0),
        (xgboost.XGBClassifier(n_estimators=10), "classes", 0.1),
        (xgboost.XGBRegressor(n_estimators=20), "number", 0.1),
        (xgboost.XGBRegressor(n_estimators=20, objective="count:poisson"), "binary", 0.0),
        (xgboost.XGBClassifier(n_estimators=20, booster="dart", rate_drop=0.2), "binary", 0.0),
    ],
)
def test_xgboost(model: object, kind: str, missing: float, tmp_path: Path) -> None:
    """To 1e-6: it adds up in float32."""
    X, y, asked = make_data(kind, missing)
    model.set_params(random_state=0, n_jobs=1)
    model.fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.get_booster().save_model(tmp_path / "model.json")
    forest = parse_dump((tmp_path / "model.json").read_text(), "xgboost")
    np.testing.assert_allclose(forest.predict(asked), wanted_of(model, asked), atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    """Files of another kind, cut ones, links that lead nowhere or round in circles, numbers that are none."""
    model = RandomForestClassifier(2, max_depth=2, random_state=0).fit(*make_data("binary")[:2])
    good = json.loads(dump_sklearn(model))
    changes = [
        lambda f: f.update(link="magic"),
        lambda f: f.update(features=["a"] * 5),
        lambda f: f.update(classes=["0", "1", "2"]),
        lambda f: f.update(surplus=1),
        lambda f: f["trees"][0]["left"].__setitem__(0, 99),
        lambda f: f["trees"][0]["left"].__setitem__(0, 0),
        lambda f: f["trees"][0]["feature"].__setitem__(0, 7),
        lambda f: f["trees"][0]["values"].pop(),
        lambda f: f["trees"][0].update(output=1),
    ]
    for change in changes:
        body = json.loads(json.dumps(good))
        change(body)
        with pytest.raises(BadImport):
            parse_dump(json.dumps(body), "neutral")
    for text, kind in (
        ("", "lightgbm"),
        ("{}", "xgboost"),
        ("[]", "neutral"),
        ("tree\nversion=v4\n", "lightgbm"),
        ("\x80", "neutral"),
    ):
        with pytest.raises(BadImport):
            parse_dump(text, kind)
    with pytest.raises(BadImport, match="DummyThing"):
        dump_sklearn(type("DummyThing", (), {"n_features_in_": 1})())
