"""scorer.score() gives in plain SQL what the compiled forest gives."""

import numpy as np
import psycopg
import pytest

from tests.fixtures.plant import Plant, make_readings


def test_sql_scores_equal_the_stored_ones(plant: Plant) -> None:
    """Ordinary rows, far ones, missing values and rows that the trees know: equal to 1e-9."""
    plant.create_model(query="SELECT nullif(sensor_1, 0) AS sensor_1, sensor_2, sensor_3 FROM plant.readings_historical")
    rng = np.random.default_rng(3)
    values = np.vstack([make_readings(rng, 60), make_readings(rng, 20) * 3, np.full((1, 3), np.nan)])
    values[rng.random(values.shape) < 0.15] = np.nan
    plant.insert("readings_new", 1, np.ones(len(values)), values)
    plant.conn.execute(
        "INSERT INTO plant.readings_new SELECT id + 1000, unit, cycle, sensor_1, sensor_2, sensor_3, _seq + 10000"
        " FROM plant.readings_historical WHERE id <= 30"
    )
    plant.catch_up()
    rows = plant.fetch(
        "SELECT s.score, scorer.score('turbofan', ARRAY[r.sensor_1, r.sensor_2, r.sensor_3])"
        " FROM scores s JOIN plant.readings_new r ON s.row_key = jsonb_build_object('id', r.id)"
    )
    assert len(rows) == len(values) + 30
    assert max(abs(stored - computed) for stored, computed in rows) < 1e-9


def test_more_features_than_a_cube_holds(plant: Plant) -> None:
    """Boxes of more than 100 features are split over several cubes; a feature that the training rows lack does not count."""
    features = [f"f{i}" for i in range(130)]
    for name, rows in (("wide_history", 80), ("wide_new", 10)):
        plant.create_table(name, features)
        values = np.random.default_rng(rows).normal(size=(rows, 130))
        values[:, 7] = np.nan if name == "wide_history" else 5.0
        plant.insert(name, 1, np.ones(rows), values)
    plant.create_model(relation="plant.wide_new", query="SELECT * FROM plant.wide_history", features=features)
    plant.catch_up()
    vector = ", ".join(f"r.{feature}" for feature in features)
    rows = plant.fetch(
        f"SELECT s.score, scorer.score('turbofan', ARRAY[{vector}])"
        " FROM scores s JOIN plant.wide_new r ON s.row_key = jsonb_build_object('id', r.id)"
    )
    assert len(rows) == 10 and max(abs(stored - computed) for stored, computed in rows) < 1e-9


def test_wrong_calls_say_what_is_wrong(plant: Plant) -> None:
    """No such model, a model that is not trained, and too few values."""
    plant.create_model()
    for model in ("none", "turbofan"):
        with pytest.raises(psycopg.errors.UndefinedObject, match="READY"):
            plant.conn.execute("SELECT scorer.score(%s, ARRAY[1.0, 2.0, 3.0])", (model,))
    plant.catch_up()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="2 values given, model turbofan has 3 features"):
        plant.conn.execute("SELECT scorer.score('turbofan', ARRAY[1.0, 2.0])")
