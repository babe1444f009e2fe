"""Decision forests that were trained elsewhere predict in SQL what their libraries predict, and are applied to new rows."""

import json
from pathlib import Path

import numpy as np
import psycopg
import pytest
import xgboost
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier

from scorer.arrays import Float8Array, register_arrays
from scorer.decisions import DecisionForest
from scorer.dumps import parse_dump
from scorer.imports import import_forest
from scorer.sklearn_dump import dump_sklearn
from tests.fixtures.plant import FEATURES, Plant


def make_data(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three features, of which two decide between three classes."""
    rng = np.random.default_rng(5)
    X = np.round(rng.normal(size=(rows, 3)), 2)
    return X, np.digitize(X[:, 0] + np.abs(X[:, 1]), [0.3, 1.3])


def ask(plant: Plant, model: str, row: np.ndarray) -> list[float]:
    """scorer.predict of one row; NaN is a missing value."""
    return plant.fetch(f"SELECT scorer.predict('{model}', %s)", Float8Array(row))[0][0]


def test_predictions_in_sql_equal_the_libraries(plant: Plant, tmp_path: Path) -> None:
    """Averages, sums, sigmoid and softmax, missing and enormous values, float32 thresholds: to 1e-6."""
    register_arrays(plant.conn)
    X, y = make_data()
    asked = np.vstack([X[:40], np.array([[1e300, -1e300, 1e-300], [3e38, 0.0, -0.0]])])
    holes = asked[:40].copy()
    holes[::3, 1] = np.nan
    models = {
        "forest": RandomForestClassifier(10, random_state=0).fit(X, y),
        "boosted": GradientBoostingClassifier(n_estimators=10, random_state=0).fit(X, y == 1),
        "values": HistGradientBoostingRegressor(max_iter=10).fit(np.where(X > 2, np.nan, X), y),
        "extreme": xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(np.where(X > 2, np.nan, X), y),
    }
    for name, model in models.items():
        if name == "extreme":
            model.get_booster().save_model(tmp_path / "model.json")
            forest = parse_dump((tmp_path / "model.json").read_text(), "xgboost")
        else:
            forest = DecisionForest.from_json(dump_sklearn(model, FEATURES))
        import_forest(plant.conn, name, forest, "neutral")
        rows = np.vstack([asked[:40], holes]) if name in ("values", "extreme") else asked[:40]
        wanted = model.predict(rows).reshape(-1, 1) if name == "values" else model.predict_proba(rows)
        found = np.array([ask(plant, name, row) for row in rows])
        assert np.abs(found - wanted).max() < 1e-6, name
        far = np.array([ask(plant, name, row) for row in asked[40:]])
        assert np.abs(far - forest.predict(asked[40:])).max() < 1e-9, name
    assert plant.fetch("SELECT scorer.predict_label('forest', ARRAY[-2, 0, 0])") == [("0",)]


def test_an_imported_model_is_called_by_name_and_applied_to_new_rows(plant: Plant, tmp_path: Path) -> None:
    """The churn recipe: trained outside, `will_churn(...)` in SQL for whoever was granted it, predictions as rows arrive."""
    X, y = make_data()
    churn = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(X, y == 1)
    file = tmp_path / "churn.json"
    file.write_text(dump_sklearn(churn))
    done = plant.run("import", "churn", str(file), "--format", "neutral", "--features", ",".join(FEATURES),
                     "--relation", "plant.readings_new", "--entity", "unit", "--function", "will_churn", "--json")  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout) == {"model": "churn", "version": 1, "state": "READY"}, done.stderr
    rows = X[:50]
    plant.insert("readings_new", 1, np.arange(50), rows)
    plant.catch_up_here()
    wanted = churn.predict_proba(rows)
    stored = plant.fetch("SELECT outputs, label, entity FROM predictions ORDER BY (row_key ->> 'id')::int")
    assert np.abs(np.array([row[0] for row in stored]) - wanted).max() < 1e-9
    assert [row[1] for row in stored] == [str(label) for label in churn.predict(rows)]
    assert [row[2] for row in stored] == [str(unit) for unit in range(50)]
    done = plant.run("predict", "churn", json.dumps(rows[0].tolist()), "--json")
    assert json.loads(done.stdout)["outputs"] == pytest.approx(wanted[0].tolist(), abs=1e-9), done.stderr
    done = plant.run("explain", "churn", json.dumps(rows[0].tolist()))
    assert done.returncode == 2 and "imported" in done.stderr
    plant.conn.execute("DROP ROLE IF EXISTS caller_of_churn")
    plant.conn.execute("CREATE ROLE caller_of_churn")
    try:
        call = "SELECT scorer.will_churn(sensor_1 => %s, sensor_2 => %s, sensor_3 => %s)"
        plant.conn.execute("GRANT USAGE ON SCHEMA scorer TO caller_of_churn")
        plant.conn.execute("SET ROLE caller_of_churn")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plant.conn.execute(call, rows[0].tolist())
        plant.conn.execute("RESET ROLE")
        plant.conn.execute("GRANT EXECUTE ON FUNCTION scorer.will_churn TO caller_of_churn")
        plant.conn.execute("SET ROLE caller_of_churn")
        assert plant.fetch(call, *rows[0].tolist())[0][0] == pytest.approx(wanted[0, 1], abs=1e-9)
    finally:
        plant.conn.execute("RESET ROLE")
        plant.conn.execute("DROP OWNED BY caller_of_churn")
        plant.conn.execute("DROP ROLE caller_of_churn")
    # Updates replace, deletions remove; the same file again is a new version, which predicts every row.
    plant.update("readings_new", 1, sensor_1=float(X[60, 0]), sensor_2=float(X[60, 1]), sensor_3=float(X[60, 2]))
    plant.delete("readings_new", 2)
    plant.catch_up_here()
    ((share,),) = plant.fetch("SELECT outputs[2] FROM predictions WHERE row_key = '{\"id\": 1}'")
    assert share == pytest.approx(churn.predict_proba(X[60:61])[0, 1], abs=1e-9)
    assert plant.fetch("SELECT count(*) FROM predictions") == [(49,)]
    version = import_forest(plant.conn, "churn", DecisionForest.from_json(file.read_text()), "neutral")
    assert version == 2 and [row[:2] for row in plant.fetch("SELECT version, state FROM models ORDER BY 1")] == [
        (1, "RETIRED"),
        (2, "READY"),
    ]
    plant.conn.execute("SELECT scorer.drop_model('churn')")
    assert plant.fetch("SELECT count(*) FROM predictions") == [(0,)]


def test_what_is_no_model_is_refused(plant: Plant, tmp_path: Path) -> None:
    """A pickle, a cut file, wrong names and a function of the warehouse's own: exit 2, and nothing is stored."""
    (tmp_path / "forest.pkl").write_bytes(b"\x80\x04\x95\xff")
    (tmp_path / "cut.json").write_text('{"format": "tailrace decision forest", "version"')
    for name in ("forest.pkl", "cut.json", "none.json"):
        done = plant.run("import", "bad", str(tmp_path / name), "--format", "neutral")
        assert done.returncode == 2 and done.stderr
    X, y = make_data(60)
    forest = DecisionForest.from_json(dump_sklearn(RandomForestClassifier(2, random_state=0).fit(X, y)))
    import_forest(plant.conn, "good", forest, "neutral")
    with pytest.raises(psycopg.errors.DuplicateFunction, match="of the warehouse itself"):
        plant.conn.execute("SELECT scorer.create_function('score', 'good')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no class 9"):
        plant.conn.execute("SELECT scorer.create_function('nine', 'good', '9')")
    plant.conn.execute("SELECT scorer.create_function('is_two', 'good', '2')")
    assert plant.fetch("SELECT scorer.is_two(3, 3, 3) > 0.5") == [(True,)]
    assert plant.fetch("SELECT name FROM models") == [("good",)]
