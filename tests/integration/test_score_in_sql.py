"""scorer.score() gives in plain SQL what the compiled forest gives."""

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from scorer import RandomCutForest
from scorer.arrays import Float8Array, register_arrays
from scorer.export import write_nodes
from scorer.features import RobustScaler
from scorer.models import Model
from tests.fixtures.plant import Plant, make_readings


def place_forest(plant: Plant, name: str, forest: RandomCutForest, scaler: RobustScaler) -> list[str]:
    """Put a forest of these features into the registry as a READY model; returns their names."""
    features = [f"f{i}" for i in range(len(scaler.center))]
    parameters = {"trees": forest.trees, "samples": forest.samples}
    plant.conn.execute("DELETE FROM scorer.models WHERE name = %s", (name,))
    plant.conn.execute(
        "INSERT INTO scorer.models (name, version, state, relation, feature_columns, training_query, parameters, scaler)"
        " VALUES (%s, 1, 'READY', 'plant.none', %s, 'SELECT 1', %s, %s)",
        (name, features, Jsonb(parameters), Jsonb(scaler.to_dict())),
    )
    version = Model(name, 1, "READY", ("plant.none",), None, None, tuple(features), "", parameters, None, scaler, None)
    register_arrays(plant.conn)
    write_nodes(plant.conn, version, forest)
    return features


@st.composite
def shapes(draw: Any) -> dict[str, Any]:
    """Forests of many shapes: few and many columns, duplicates, constant and empty columns, gaps, learnt or fitted."""
    return {
        "columns": draw(st.sampled_from([1, 2, 3, 7, 24, 101])),
        "trees": draw(st.integers(1, 4)),
        "samples": draw(st.integers(10, 40)),
        "rows": draw(st.integers(1, 90)),
        "distinct": draw(st.sampled_from([1, 3, 1000])),
        "missing": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "streamed": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(
    derandomize=True, max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=shapes())
def test_sql_equals_the_kernels_on_forests_of_many_shapes(plant: Plant, shape: dict[str, Any]) -> None:
    """Scores one by one and in sets, and the parts of each feature, are those of the compiled forest to 1e-6."""
    rng = np.random.default_rng(shape["seed"])
    rows = np.round(rng.normal(size=(shape["rows"], shape["columns"])) * shape["distinct"], 0 if shape["distinct"] < 10 else 3)
    rows[rng.random(rows.shape) < shape["missing"]] = np.nan
    if shape["columns"] > 2:
        rows[:, 1], rows[:, 2] = 5.0, np.nan
    scaler = RobustScaler.fit(rows)
    forest = RandomCutForest(trees=shape["trees"], samples=shape["samples"], seed=shape["seed"], policy="streaming")
    if shape["streamed"]:
        forest.update(scaler.transform(rows))
    else:
        forest.fit(scaler.transform(rows))
    features = place_forest(plant, "shaped", forest, scaler)
    asked = np.vstack([rows[:3], rows[:3] + 0.25, rng.normal(size=(2, shape["columns"])) * 1e6])
    asked[-1, rng.random(shape["columns"]) < 0.5] = np.nan
    wanted = forest.score_samples(scaler.transform(asked))
    high, low = forest.explain(scaler.transform(asked))
    for i, row in enumerate(asked):
        ((score,),) = plant.fetch("SELECT scorer.score('shaped', %s)", Float8Array(row))
        assert abs(score - wanted[i]) < 1e-6
        parts = np.array(plant.fetch("SELECT high, low FROM scorer.split_score('shaped', %s)", Float8Array(row)))
        assert np.abs(parts - np.column_stack([high[i], low[i]])).max() < 1e-6
    columns = ", ".join(f"(v.a)[{i + 1}] AS {feature}" for i, feature in enumerate(features))
    values = ", ".join("('{" + ",".join(repr(float(v)) for v in row) + "}'::float8[])" for row in asked)
    found = plant.fetch(
        "SELECT score FROM scorer.score_rows('shaped', %s)", f"SELECT {columns} FROM (VALUES {values}) AS v (a)"
    )
    assert np.abs(np.array(found)[:, 0] - wanted).max() < 1e-6


def test_explanations_have_the_shape_that_kinesis_users_read(plant: Plant) -> None:
    """The same object as the forest's own explanation: names, HIGH or LOW, numbers as text of four places."""
    rows = make_readings(np.random.default_rng(1), 300)
    scaler = RobustScaler.fit(rows)
    forest = RandomCutForest(trees=20, samples=64).fit(scaler.transform(rows))
    features = place_forest(plant, "explained", forest, scaler)
    for row in ([130.0, 0.5, -3.0], [100.0, 0.4, -3.0]):
        wanted = forest.explanation(scaler.transform([row])[0], features)
        assert plant.fetch("SELECT scorer.explain('explained', %s)", row) == [(wanted,)]


def test_a_set_of_rows_is_scored_in_the_order_of_its_query(plant: Plant) -> None:
    """More rows than a block holds, with the row beside its score; booleans and integers are numbers."""
    plant.create_model()
    plant.catch_up_here()
    plant.conn.execute(
        "CREATE TABLE public.asked AS SELECT i AS id, (i % 2 = 0) AS sensor_1, (i % 7)::smallint AS sensor_2,"
        " (i / 10.0)::numeric AS sensor_3 FROM generate_series(1, 1003) i"
    )
    # The query is read with the caller's search path, and with a comment at its end.
    found = plant.fetch("SELECT * FROM scorer.score_rows('turbofan', 'SELECT * FROM asked ORDER BY id DESC -- all')")
    assert [(n, row["id"]) for n, _, row in found] == [(i + 1, 1003 - i) for i in range(1003)]
    single = plant.fetch(
        "SELECT scorer.score('turbofan', ARRAY[sensor_1::int, sensor_2, sensor_3]) FROM asked WHERE id < 3 ORDER BY id DESC"
    )
    assert [score for _, score, _ in found[-2:]] == pytest.approx([score for (score,) in single], abs=1e-9)
    assert plant.fetch("SELECT * FROM scorer.score_rows('turbofan', 'SELECT * FROM asked WHERE false')") == []


def test_a_set_is_one_query_that_only_reads_with_the_caller_s_rights(plant: Plant) -> None:
    """Two statements, a change, or a table that the caller may not read are refused, and nothing happened."""
    plant.create_model()
    plant.catch_up_here()
    for query in (
        "SELECT * FROM plant.readings_historical) AS given; DROP TABLE plant.readings_historical; SELECT * FROM (SELECT 1",
        "WITH gone AS (DELETE FROM plant.readings_historical RETURNING *) SELECT * FROM gone",
    ):
        with pytest.raises(psycopg.Error):
            plant.conn.execute("SELECT * FROM scorer.score_rows('turbofan', %s)", (query,))
    assert plant.fetch("SELECT count(*) FROM plant.readings_historical") == [(600,)]
    plant.conn.execute("DROP ROLE IF EXISTS asker_of_scores")
    plant.conn.execute("CREATE ROLE asker_of_scores")
    try:
        plant.conn.execute("GRANT USAGE ON SCHEMA scorer TO asker_of_scores")
        plant.conn.execute("GRANT SELECT ON scorer.models, scorer.forest_nodes TO asker_of_scores")
        plant.conn.execute("SET ROLE asker_of_scores")
        values = "SELECT 100.0 AS sensor_1, 0.5 AS sensor_2, -3.0 AS sensor_3"
        assert len(plant.fetch("SELECT * FROM scorer.score_rows('turbofan', %s)", values)) == 1
        ((score, why),) = plant.fetch(
            "SELECT scorer.score('turbofan', v), scorer.explain('turbofan', v) FROM (VALUES (ARRAY[150.0, 0.5, -3.0])) AS t (v)"
        )
        assert score > 1 and why["sensor_1"]["DIRECTION"] == "HIGH"
        # That, and nothing else: neither what was found, nor any verb.
        for call in (
            "SELECT * FROM scorer.anomalies",
            "SELECT state FROM scorer.forest_checkpoints",
            "SELECT scorer.create_model('mine', NULL, 'SELECT 1 AS a', ARRAY['a'])",
            "SELECT scorer.retrain('turbofan')",
            "SELECT scorer.rollback('turbofan')",
            "SELECT scorer.drop_model('turbofan')",
            "SELECT scorer.acknowledge(1)",
            "SELECT scorer.create_function('mine', 'turbofan')",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                plant.conn.execute(call)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plant.conn.execute("SELECT * FROM scorer.score_rows('turbofan', 'SELECT * FROM plant.readings_historical')")
    finally:
        plant.conn.execute("RESET ROLE")
        plant.conn.execute("DROP OWNED BY asker_of_scores")
        plant.conn.execute("DROP ROLE asker_of_scores")


def test_sql_scores_equal_the_stored_ones(plant: Plant) -> None:
    """Ordinary rows, far ones, missing values and rows that the trees know: equal to 1e-6."""
    plant.create_model(query="SELECT nullif(sensor_1, 0) AS sensor_1, sensor_2, sensor_3 FROM plant.readings_historical")
    rng = np.random.default_rng(3)
    values = np.vstack([make_readings(rng, 60), make_readings(rng, 20) * 3, np.full((1, 3), np.nan)])
    values[rng.random(values.shape) < 0.15] = np.nan
    plant.insert("readings_new", 1, np.ones(len(values)), values)
    plant.conn.execute(
        "INSERT INTO plant.readings_new SELECT id + 1000, unit, cycle, sensor_1, sensor_2, sensor_3, _seq + 10000"
        " FROM plant.readings_historical WHERE id <= 30"
    )
    plant.catch_up_here()
    rows = plant.fetch(
        "SELECT s.score, scorer.score('turbofan', ARRAY[r.sensor_1, r.sensor_2, r.sensor_3])"
        " FROM scores s JOIN plant.readings_new r ON s.row_key = jsonb_build_object('id', r.id)"
    )
    assert len(rows) == len(values) + 30
    assert max(abs(stored - computed) for stored, computed in rows) < 1e-6


def test_more_features_than_a_cube_holds(plant: Plant) -> None:
    """Boxes of more than 100 features are split over several cubes; a feature that the training rows lack does not count."""
    features = [f"f{i}" for i in range(130)]
    for name, rows in (("wide_history", 80), ("wide_new", 10)):
        plant.create_table(name, features)
        values = np.random.default_rng(rows).normal(size=(rows, 130))
        values[:, 7] = np.nan if name == "wide_history" else 5.0
        plant.insert(name, 1, np.ones(rows), values)
    plant.create_model(relation="plant.wide_new", query="SELECT * FROM plant.wide_history", features=features)
    plant.catch_up_here()
    vector = ", ".join(f"r.{feature}" for feature in features)
    rows = plant.fetch(
        f"SELECT s.score, scorer.score('turbofan', ARRAY[{vector}])"
        " FROM scores s JOIN plant.wide_new r ON s.row_key = jsonb_build_object('id', r.id)"
    )
    assert len(rows) == 10 and max(abs(stored - computed) for stored, computed in rows) < 1e-6


def test_wrong_calls_say_what_is_wrong(plant: Plant) -> None:
    """No such model, a model that is not trained, and too few values."""
    plant.create_model()
    for model in ("none", "turbofan"):
        with pytest.raises(psycopg.errors.UndefinedObject, match="READY"):
            plant.conn.execute("SELECT scorer.score(%s, ARRAY[1.0, 2.0, 3.0])", (model,))
    plant.catch_up_here()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="2 values given, model turbofan has 3 features"):
        plant.conn.execute("SELECT scorer.score('turbofan', ARRAY[1.0, 2.0])")
    with pytest.raises(psycopg.errors.UndefinedColumn, match="sensor_2"):
        plant.conn.execute("SELECT * FROM scorer.score_rows('turbofan', 'SELECT 1 AS sensor_1')")
