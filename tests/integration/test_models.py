"""Models are defined, trained, replaced and dropped in SQL; bad input gets a reason."""

import json
import subprocess
import time

import numpy as np
import psycopg
import pytest

from scorer.models import create_models
from tests.fixtures.plant import FEATURES, TRAINING_QUERY, Plant, make_readings
from warehouse.settings import ModelSettings


def states(plant: Plant) -> list[tuple[object, ...]]:
    """Name, version, state and reason of every version."""
    return plant.fetch("SELECT name, version, state, reason FROM model_info ORDER BY 1, 2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "Turbo fan"}, "cannot be called 'Turbo fan'"),
        ({"relation": "readings_new"}, "'readings_new' is not schema.table"),
        ({"relation": "plant.a, "}, "'' is not schema.table"),
        ({"features": []}, "at least one column"),
        ({"features": ["sensor_1", "sensor_1"]}, "named twice: sensor_1"),
        ({"query": "DELETE FROM plant.readings_historical"}, "must be a SELECT"),
        ({"query": "SELECT FROM WHERE"}, "not valid SQL"),
        ({"parameters": {"tree": 10}}, "no such parameter: tree"),
        ({"parameters": {"trees": 0}}, "parameter trees: 0 is not allowed"),
        ({"parameters": {"trees": "10"}}, 'parameter trees: "10" is not allowed'),
        ({"parameters": {"samples": 256.5}}, "parameter samples: 256.5"),
        ({"parameters": {"scale": "minmax"}}, 'parameter scale: "minmax"'),
        ({"parameters": {"threshold": "quantile", "threshold_value": 3}}, "parameter threshold_value: 3"),
        ({"parameters": {"threshold": None}}, "parameter threshold: null"),
    ],
)
def test_a_wrong_definition_is_refused(plant: Plant, change: dict[str, object], words: str) -> None:
    """The error says what was given and what is allowed, and no model is made."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        plant.create_model(**change)
    assert words in str(caught.value)
    assert states(plant) == []


def test_the_same_definition_is_the_same_version(plant: Plant) -> None:
    """A change makes a new version, which takes over once it is trained; the old one scores until then."""
    assert [plant.create_model(), plant.create_model()] == [1, 1]
    plant.insert("readings_new", 1, np.ones(10), make_readings(np.random.default_rng(1), 10))
    plant.catch_up_here()
    assert plant.create_model(parameters={"trees": 21}) == 2
    assert [row[2] for row in states(plant)] == ["READY", "PENDING"]
    plant.catch_up_here()
    assert [row[1:] for row in states(plant)] == [(1, "RETIRED", "version 2 was deployed"), (2, "READY", None)]
    assert plant.fetch("SELECT model_version, count(*) FROM scores GROUP BY 1 ORDER BY 1") == [(1, 10), (2, 10)]


def test_training_is_deterministic(plant: Plant) -> None:
    """The same rows in another order give the same bytes; another seed gives others."""
    plant.create_model("one")
    plant.create_model("two", query=f"{TRAINING_QUERY} ORDER BY md5(id::text);")
    plant.create_model("three", parameters={"seed": 1})
    plant.catch_up_here(SCORER__THREADS="2")
    forests = dict(plant.fetch("SELECT model, state FROM forest_checkpoints"))
    thresholds = dict(plant.fetch("SELECT name, threshold FROM models"))
    assert forests["one"] == forests["two"] != forests["three"]
    assert thresholds["one"] == thresholds["two"] != thresholds["three"]


def test_a_model_waits_for_its_rows(plant: Plant) -> None:
    """No table, an unfinished snapshot and too few rows are waited for, each with its reason; then it is trained."""
    plant.create_model(relation="plant.later_%", query="SELECT * FROM plant.later_history")
    plant.catch_up_here()
    assert states(plant) == [("turbofan", 1, "PENDING", "waits: no mirror table matches plant.later_%")]
    plant.create_table("later_new")
    plant.catch_up_here()
    assert states(plant)[0][3] == 'waits: relation "plant.later_history" does not exist'
    plant.create_table("later_history")
    plant.insert("later_history", 1, np.ones(70), make_readings(np.random.default_rng(1), 70))
    plant.conn.execute("UPDATE warehouse.tables SET state = 'Snapshotting' WHERE mirror = 'plant.later_history'")
    plant.catch_up_here()
    assert states(plant)[0][2:] == ("PENDING", "waits: plant.later_history is Snapshotting")
    plant.conn.execute("UPDATE warehouse.tables SET state = 'Synced'")
    plant.conn.execute("DELETE FROM plant.later_history WHERE id > 60")
    plant.catch_up_here()
    assert states(plant)[0][3] == "waits: the training query yields 60 rows, the parameter min_rows asks for 64"
    plant.insert("later_history", 61, np.ones(4), make_readings(np.random.default_rng(2), 4))
    plant.catch_up_here()
    assert states(plant) == [("turbofan", 1, "READY", None)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ["sensor_1", "sensor_9"]}, "has no column sensor_9"),
        ({"query": "SELECT sensor_1, sensor_2 FROM plant.readings_historical"}, "yields no column sensor_3"),
        ({"query": "SELECT sensor_1::text, sensor_2, sensor_3 FROM plant.readings_historical"}, "sensor_1 (text)"),
        ({"query": "SELECT * FROM plant.readings_historical WHERE 1/(id-1) >= 0"}, "division by zero"),
        ({"query": "SELECT * FROM plant.readings_historical WHERE nothing"}, 'column "nothing" does not exist'),
    ],
)
def test_a_model_that_cannot_be_trained_fails_with_the_reason(plant: Plant, change: dict[str, object], words: str) -> None:
    """The state says why, the command exits with 3, and other models are trained and scored all the same."""
    plant.create_model("good")
    plant.create_model("wrong", **change)
    plant.insert("readings_new", 1, np.ones(3), make_readings(np.random.default_rng(1), 3))
    done = plant.run("run", "--until-caught-up")
    assert done.returncode == 3 and words in done.stderr
    assert [row[2] for row in states(plant)] == ["READY", "FAILED"]
    assert words in str(states(plant)[1][3])
    assert plant.fetch("SELECT model, count(*) FROM scores GROUP BY 1") == [("good", 3)]
    plant.catch_up_here()


def test_a_failed_model_can_be_tried_again(plant: Plant) -> None:
    """What was missing appears, retrain tries the same version again."""
    plant.conn.execute("ALTER TABLE plant.readings_historical RENAME sensor_3 TO sensor_4")
    plant.create_model()
    assert plant.run("train").returncode == 3
    plant.conn.execute("ALTER TABLE plant.readings_historical RENAME sensor_4 TO sensor_3")
    assert plant.fetch("SELECT scorer.retrain('turbofan')") == [(1,)]
    done = plant.run("train", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == {"model": "turbofan", "version": 1, "state": "READY"}


def test_training_says_how_far_it_is(plant: Plant) -> None:
    """create_model returns at once; the reason of a version in TRAINING names the stage, and how many entities are done."""
    plant.conn.execute(
        "CREATE TABLE public.stages (n serial, model text, state text, reason text);"
        " CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.stages (model, state, reason) VALUES (new.name, new.state, new.reason); RETURN new; END $$;"
        " CREATE TRIGGER noted AFTER INSERT OR UPDATE ON scorer.models FOR EACH ROW EXECUTE FUNCTION note()"
    )
    plant.create_model("one")
    plant.create_model("own", parameters={"forest_per": "entity"})
    plant.catch_up_here()
    stages = plant.fetch("SELECT model, state, reason FROM public.stages ORDER BY n")
    wanted = [("PENDING", None), ("TRAINING", None), ("TRAINING", "reading rows"), ("TRAINING", "fitting 600 rows")]
    rest = [("TRAINING", "writing the forest"), ("READY", None)]
    assert [row[1:] for row in stages if row[0] == "one"] == wanted + rest
    each = [("TRAINING", f"fitting 600 rows, {done} of 6 entities") for done in range(6)]
    assert [row[1:] for row in stages if row[0] == "own"] == wanted + each + rest


def test_two_statements_never_run(plant: Plant) -> None:
    """A query that breaks out of its parentheses is refused by the scorer before anything of it runs."""
    plant.create_model()
    plant.conn.execute(
        "UPDATE models SET training_query = 'SELECT 1) AS t; CREATE TABLE public.broken_out (a int); SELECT * FROM (SELECT 1'"
    )
    assert plant.run("train").returncode == 3
    assert plant.fetch("SELECT to_regclass('public.broken_out')") == [(None,)]
    plant.conn.execute("UPDATE models SET state = 'PENDING', training_query = 'SELECT 1; DROP TABLE plant.readings_historical'")
    assert plant.run("train").returncode == 3
    assert "multiple commands" in str(states(plant)[0][3])
    assert plant.fetch("SELECT count(*) FROM plant.readings_historical") == [(600,)]


def test_retrain_rollback_and_drop(plant: Plant) -> None:
    """A rolled back version goes on where it stopped; dropping leaves nothing of a model and all of the others."""
    rng = np.random.default_rng(1)
    plant.create_model()
    plant.create_model("other")
    plant.insert("readings_new", 1, np.ones(5), make_readings(rng, 5) + 50)
    plant.catch_up_here()
    listener = plant.database.connect(autocommit=True)
    listener.execute("LISTEN incidents")
    assert plant.fetch("SELECT scorer.retrain('turbofan')") == [(2,)]
    plant.catch_up_here()
    told = [json.loads(notice.payload) for notice in listener.notifies(timeout=10, stop_after=1)]
    assert [told[0][name] for name in ("event", "version", "reason")] == ["closed", 1, "model retired"]
    listener.close()
    assert plant.fetch("SELECT close_reason FROM incidents WHERE model = 'turbofan' AND model_version = 1") == [
        ("model retired",)
    ]
    assert plant.fetch("SELECT scorer.rollback('turbofan')") == [(1,)]
    plant.insert("readings_new", 6, np.ones(5), make_readings(rng, 5))
    plant.catch_up_here()
    counts = "SELECT model, model_version, count(*) FROM scores GROUP BY 1, 2 ORDER BY 1, 2"
    assert plant.fetch(counts) == [("other", 1, 10), ("turbofan", 1, 10), ("turbofan", 2, 5)]
    assert plant.fetch("SELECT DISTINCT model_version FROM open_anomalies WHERE model = 'turbofan'") == [(1,)]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        plant.conn.execute("SELECT scorer.rollback('turbofan')")
    plant.conn.execute("SELECT scorer.deploy('turbofan', 2)")
    plant.conn.execute("SELECT scorer.drop_model('turbofan')")
    plant.catch_up_here()
    assert plant.fetch(counts) == [("other", 1, 10)]
    assert plant.fetch(
        "SELECT DISTINCT model FROM anomalies UNION SELECT model FROM watermarks UNION SELECT model FROM incidents"
    ) == [("other",)]
    for call in ("retrain('none')", "deploy('other', 9)", "drop_model('none')", "show_model('none')"):
        with pytest.raises(psycopg.errors.UndefinedObject, match="no model"):
            plant.conn.execute(f"SELECT scorer.{call}")


def test_models_of_the_settings_file(plant: Plant, tmp_path) -> None:
    """A [[model]] entry is made at the start, stays one version while it stays the same, and a bad one exits with 2."""
    text = f"""
[[model]]
name = "filed"
relation = "plant.readings_new, plant.readings_m%"
training_query = "{TRAINING_QUERY}"
features = {FEATURES!r}
entity = "unit"
order = "cycle"
trees = 10
threshold = "quantile"
threshold_value = 0.99
"""
    file = tmp_path / "pipeline.toml"
    file.write_text(text)
    for _ in range(2):
        done: subprocess.CompletedProcess[str] = plant.run("run", "--until-caught-up", "-c", str(file))
        assert done.returncode == 0, done.stderr
    assert states(plant) == [("filed", 1, "READY", None)]
    assert plant.fetch("SELECT threshold = (training_scores -> 'quantiles' ->> '0.99')::float8 FROM models") == [(True,)]
    file.write_text(text.replace("trees = 10", "trees = 11"))
    assert plant.run("run", "--until-caught-up", "-c", str(file)).returncode == 0
    assert [row[1:3] for row in states(plant)] == [(1, "RETIRED"), (2, "READY")]
    # One that is only asked in SQL, and one with a forest for each entity.
    given = {"name": "asked", "relation": "", "training_query": TRAINING_QUERY, "features": FEATURES, "entity": "unit"}
    create_models(plant.conn, [ModelSettings(**given), ModelSettings(**given | {"name": "own", "forest_per": "entity"})])
    assert plant.fetch("SELECT relation, parameters ->> 'forest_per' FROM models WHERE name <> 'filed' ORDER BY name") == [
        ("", "model"),
        ("", "entity"),
    ]
    plant.conn.execute("SELECT scorer.drop_model('asked'), scorer.drop_model('own')")
    file.write_text(text.replace("SELECT", "DELETE"))
    done = plant.run("run", "--until-caught-up", "-c", str(file))
    assert done.returncode == 2 and "must be a SELECT" in done.stderr


def test_ordinary_grants_are_enough(plant: Plant) -> None:
    """A reader with USAGE and SELECT reads results and cannot define models; with INSERT and UPDATE on models it can."""
    plant.conn.execute("DROP ROLE IF EXISTS analyst_of_scores")
    plant.conn.execute("CREATE ROLE analyst_of_scores")
    plant.create_model()
    plant.insert("readings_new", 1, np.ones(2), make_readings(np.random.default_rng(1), 2) + 50)
    plant.catch_up_here()
    try:
        plant.conn.execute("GRANT USAGE ON SCHEMA scorer TO analyst_of_scores")
        plant.conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA scorer TO analyst_of_scores")
        plant.conn.execute("SET ROLE analyst_of_scores")
        assert plant.fetch("SELECT count(*) FROM anomalies") == [(2,)]
        assert ("state", "READY") in plant.fetch("SELECT * FROM scorer.show_model('turbofan')")
        assert plant.fetch("SELECT scorer.explanation(min(id)) -> 'sensor_1' ->> 'DIRECTION' FROM anomalies") == [("HIGH",)]
        acknowledge = "SELECT scorer.acknowledge(min(id)) FROM incidents"
        for refused in (lambda: plant.create_model("mine"), lambda: plant.conn.execute(acknowledge)):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                refused()
        plant.conn.execute("RESET ROLE")
        plant.conn.execute("GRANT INSERT, UPDATE ON scorer.models TO analyst_of_scores")
        plant.conn.execute("GRANT UPDATE ON scorer.incidents TO analyst_of_scores")
        plant.conn.execute("SET ROLE analyst_of_scores")
        plant.create_model("mine")
        plant.conn.execute(acknowledge)
        assert plant.fetch("SELECT acknowledged_by FROM incident_info") == [("analyst_of_scores",)]
        plant.conn.execute("RESET ROLE")
        assert plant.fetch("SELECT owner FROM models WHERE name = 'mine'") == [("analyst_of_scores",)]
    finally:
        plant.conn.execute("RESET ROLE")
        plant.conn.execute("DROP OWNED BY analyst_of_scores")
        plant.conn.execute("DROP ROLE analyst_of_scores")


def test_explain_of_a_row_and_of_values(plant: Plant) -> None:
    """The command explains a row by its key as the stored anomaly does, and values without a row."""
    plant.create_model()
    plant.insert("readings_new", 7, np.ones(1), np.array([[150.0, 0.5, -3.0]]))
    plant.catch_up_here()
    by_key = json.loads(plant.run("explain", "turbofan", '{"id": 7}', "--json").stdout)
    by_values = json.loads(plant.run("explain", "turbofan", "[150.0, 0.5, -3.0]", "--json").stdout)
    assert by_key == by_values
    stored = plant.fetch(
        "SELECT rank, feature, attribution, direction, value, expected_value FROM anomaly_features ORDER BY rank"
    )
    assert [tuple(item.values()) for item in by_key["features"]] == stored
    # What is kept of an anomaly has the shape, and the numbers, of what Kinesis' users know.
    ((kept, asked),) = plant.fetch(
        "SELECT scorer.explanation(id), scorer.explain('turbofan', ARRAY[150.0, 0.5, -3.0]) FROM anomalies"
    )
    assert {name: {key: why[key] for key in asked[name]} for name, why in kept.items()} == {name: asked[name] for name in kept}
    assert {key for why in asked.values() for key in why} == {"DIRECTION", "STRENGTH", "ATTRIBUTION_SCORE"}
    assert plant.fetch("SELECT score, grade FROM anomalies") == [(by_key["score"], by_key["grade"])]
    assert "sensor_1" in plant.run("explain", "turbofan", '{"id": 7}').stdout.splitlines()[1]
    for subject, code in (('{"id": 8}', 2), ('{"id": "x"}', 2), ("[1, 2]", 2), ("7", 2)):
        done = plant.run("explain", "turbofan", subject)
        assert done.returncode == code and done.stderr, subject
    assert plant.run("explain", "none", "[1]").returncode == 3


def test_a_table_that_changes_its_shape_is_left_out_with_the_reason(plant: Plant) -> None:
    """A feature that becomes text stops that table alone, the watermark says why, and it goes on once it is mended."""
    plant.create_table("readings_more")
    plant.create_model(relation="plant.readings_new, plant.readings_more")
    plant.catch_up_here()
    plant.conn.execute("ALTER TABLE plant.readings_more ALTER sensor_2 TYPE text")
    rows = make_readings(np.random.default_rng(1), 3)
    plant.insert("readings_new", 1, np.ones(3), rows)
    plant.insert("readings_more", 1, np.ones(3), rows)
    plant.conn.execute("UPDATE plant.readings_more SET sensor_2 = 'broken' WHERE id = 1")
    plant.catch_up_here()
    counts = "SELECT source_table, count(*) FROM scores GROUP BY 1 ORDER BY 1"
    assert plant.fetch(counts) == [("plant.readings_new", 3)]
    assert plant.fetch("SELECT tables_not_scored FROM model_info") == [
        ({"plant.readings_more": "not a number: sensor_2 (text)"},)
    ]
    plant.conn.execute("UPDATE plant.readings_more SET sensor_2 = '0.5' WHERE id = 1")
    plant.conn.execute("ALTER TABLE plant.readings_more ALTER sensor_2 TYPE double precision USING sensor_2::double precision")
    plant.catch_up_here()
    assert plant.fetch(counts) == [("plant.readings_more", 3), ("plant.readings_new", 3)]
    plant.conn.execute("DROP TABLE plant.readings_more")
    plant.catch_up_here()
    assert plant.fetch("SELECT tables_not_scored FROM model_info") == [({"plant.readings_more": "the table is gone"},)]


def test_a_table_that_changes_while_serving_does_not_stop_the_others(plant: Plant) -> None:
    """Between two looks at the catalog a feature is dropped: the running scorer goes on with the other table."""
    plant.create_table("readings_more")
    plant.create_model(relation="plant.readings_new, plant.readings_more")
    plant.catch_up_here()
    process = plant.start()
    try:
        rng = np.random.default_rng(1)
        for first in range(0, 60, 3):
            plant.insert("readings_new", first, np.ones(3), make_readings(rng, 3))
            if first == 30:
                plant.conn.execute("ALTER TABLE plant.readings_more DROP sensor_2")
            time.sleep(0.05)
        deadline = time.monotonic() + 60
        while plant.fetch("SELECT count(*) FROM scores") != [(60,)]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.terminate()
        assert process.wait(30) == 0
