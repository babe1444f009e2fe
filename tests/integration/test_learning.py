"""Models that learn while they score: what they find is the detector's, over restarts and whatever the batches."""

import json

import numpy as np
import psycopg
import pytest

from scorer.detector import Detector
from scorer.score import prune_scores
from tests.fixtures.plant import FEATURES, Plant, make_readings
from warehouse.service import Stop

GATED = {"policy": "gated", "shingle": 3, "baseline_rows": 5, "threshold": "adaptive", "time_decay": 400}
STREAMING = {"policy": "streaming", "scale": "none", "threshold": "adaptive", "min_rows": 0}
# Cycles before those of the rows to come, which would be late else.
HISTORY = "SELECT unit, cycle - 10000 AS cycle, sensor_1, sensor_2, sensor_3 FROM plant.readings_historical"


def fill(plant: Plant, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Five units, of which unit 3 goes wrong after row 200."""
    values = make_readings(np.random.default_rng(1), rows)
    units = np.arange(rows) % 5
    values[(units == 3) & (np.arange(rows) >= 200), 0] += 40
    plant.insert("readings_new", 1, units, values)
    return values, units


def make_twin(plant: Plant, parameters: dict) -> Detector:
    """The detector that the model must be, fitted here."""
    own = {k: v for k, v in parameters.items() if k != "min_rows"}
    detector = Detector({"trees": 20, "samples": 64} | own, 3)
    if "min_rows" not in parameters:
        history = plant.fetch(f"SELECT unit::text, cycle, {', '.join(FEATURES)} FROM ({HISTORY}) AS h ORDER BY cycle")
        detector.fit(np.array([row[2:] for row in history]), [row[0] for row in history], [row[1] for row in history])
    return detector


@pytest.mark.parametrize(("name", "parameters"), [("gated", GATED), ("streaming", STREAMING)])
def test_what_a_learning_model_finds_is_what_its_detector_finds(plant: Plant, name: str, parameters: dict) -> None:
    """Rows in three runs of other batch sizes with and without checkpoints in between: every score, to the bit."""
    plant.create_model(name, parameters=parameters, query=HISTORY + " WHERE false" * ("min_rows" in parameters))
    values, units = fill(plant)
    plant.catch_up_here(SCORER__BATCH_ROWS="7", SCORER__CHECKPOINT_ROWS="50")
    assert plant.fetch("SELECT state FROM models") == [("READY",)]
    ((saved, last, logged),) = plant.fetch(
        "SELECT batch, last_batch, (SELECT count(*) FROM learned_batches) FROM forest_checkpoints"
    )
    assert 0 < saved < last and logged == last - saved
    more = make_readings(np.random.default_rng(2), 150)
    plant.insert("readings_new", 401, np.arange(150) % 5, more[:100])
    # The helper begins anew with cycle 0, which would be late.
    plant.conn.execute("UPDATE plant.readings_new SET cycle = id - 1")
    plant.catch_up_here(SCORER__BATCH_ROWS="3")
    detector = make_twin(plant, parameters)
    cycles = np.arange(500, dtype=float)
    found = detector.process(
        np.vstack([values, more[:100]]), [str(u) for u in [*units, *(np.arange(100) % 5)]], cycles if name == "gated" else None
    )
    stored = plant.fetch("SELECT (row_key ->> 'id')::int, score, reason FROM scores ORDER BY 1")
    scores = np.array([np.nan if score is None else score for _, score, _ in stored])
    assert scores.tobytes() == found.scores.tobytes()
    assert {reason for _, _, reason in stored} == {None}
    abnormal = [row[0] for row in plant.fetch("SELECT (row_key ->> 'id')::int FROM anomalies ORDER BY 1")]
    assert abnormal == (np.flatnonzero(found.anomalous) + 1).tolist() and abnormal
    ((score, total),) = plant.fetch(
        "SELECT a.score, sum(f.attribution) FROM anomalies a JOIN anomaly_features f ON anomaly_id = a.id"
        " GROUP BY a.id ORDER BY a.id LIMIT 1"
    )
    assert score == pytest.approx(total, abs=1e-9)


def test_a_learning_model_does_not_depend_on_batches(plant: Plant) -> None:
    """Two models of one definition, one in small batches over two runs: everything that they write is the same."""
    plant.create_model("one", parameters=GATED, query=HISTORY)
    fill(plant)
    plant.catch_up_here(SCORER__BATCH_ROWS="9", SCORER__CHECKPOINT_ROWS="30")
    plant.create_model("two", parameters=GATED, query=HISTORY)
    plant.catch_up_here()
    for name, rows in plant.results().items():
        first = [row[1:] for row in rows if row[0] == "one"]
        assert first == [row[1:] for row in rows if row[0] == "two"], name
        assert first, name


def test_late_and_updated_rows_are_not_learnt_again(plant: Plant) -> None:
    """A late row has no score and says so; an updated one is scored among its neighbours, and the forest stays as it was."""
    parameters = GATED | {"threshold": "quantile", "threshold_value": 0.99, "shingle": 2}
    plant.create_model(parameters=parameters, query=HISTORY)
    values, _ = fill(plant)
    plant.catch_up_here(SCORER__CHECKPOINT_ROWS="1")
    before = plant.fetch("SELECT state FROM forest_checkpoints")
    open_before = plant.fetch("SELECT count(*) FROM anomalies WHERE row_key = '{\"id\": 301}' AND status = 'open'")
    plant.update("readings_new", 301, sensor_2=9.0)
    plant.catch_up_here(SCORER__CHECKPOINT_ROWS="1")
    assert plant.fetch("SELECT state FROM forest_checkpoints") == before
    assert open_before == [(0,)]
    assert plant.fetch(
        "SELECT f.feature FROM anomalies a JOIN anomaly_features f ON anomaly_id = a.id"
        " WHERE row_key = '{\"id\": 301}' AND rank = 1"
    ) == [("sensor_2",)]
    plant.update("readings_new", 301, sensor_2=float(values[300, 1]))
    plant.catch_up_here()
    assert plant.fetch("SELECT status FROM anomalies WHERE row_key = '{\"id\": 301}'") == [("cleared",)]
    # Cycle 0 again, for units 0 and 1, which are at cycle 395 and later, and the first rows of a new unit.
    plant.insert("readings_new", 900, np.array([0, 1, 9, 9]), make_readings(np.random.default_rng(3), 4))
    plant.catch_up_here()
    found = plant.fetch("SELECT score, reason FROM scores WHERE (row_key ->> 'id')::int >= 900 ORDER BY row_key")
    assert found == [(None, "late")] * 2 + [(None, "not ready")] * 2
    assert plant.fetch("SELECT count(*) FROM scores") == [(404,)]


def test_a_learning_model_scores_and_explains_in_sql_and_by_the_command(plant: Plant) -> None:
    """They know the forest as it was when its rows were last written; a shingle takes all its values."""
    plant.create_model("stream", parameters={"policy": "streaming", "shingle": 2, "time_decay": 300}, query=HISTORY)
    plant.catch_up_here()
    twin = make_twin(plant, {"policy": "streaming", "shingle": 2, "time_decay": 300})
    pair = [101.0, 0.5, -3.0, 180.0, 0.5, -3.0]
    assert twin.scaler is not None
    scaled = twin.scaler.transform(np.reshape(pair, (2, 3))).reshape(1, -1)
    ((score, why),) = plant.fetch(f"SELECT scorer.score('stream', ARRAY{pair}), scorer.explain('stream', ARRAY{pair})")
    assert score == pytest.approx(twin.forest.score_samples(scaled)[0], abs=1e-6)
    assert why == twin.forest.explanation(scaled[0], FEATURES)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="oldest first"):
        plant.fetch("SELECT scorer.score('stream', ARRAY[1, 2, 3])")
    plant.create_model("simple", parameters={"policy": "gated"})
    plant.catch_up_here()
    found = json.loads(plant.run("explain", "simple", "[150.0, 0.5, -3.0]", "--json").stdout)
    assert found["features"][0]["feature"] == "sensor_1" and found["grade"] > 0


def test_a_dead_band_and_a_direction_silence_what_nobody_asked_for(plant: Plant) -> None:
    """The score stays, the anomaly does not come; Kinesis' names are taken."""
    plant.create_model("high", parameters={"direction": "high"})
    plant.create_model("band", parameters={"ignoreNearExpectedFromAbove": 60, "ignoreNearExpectedFromBelow": 5})
    plant.insert("readings_new", 1, np.zeros(2), np.array([[150.0, 0.5, -3.0], [50.0, 0.5, -3.0]]))
    plant.catch_up_here()
    assert plant.fetch("SELECT model, row_key ->> 'id' FROM anomalies ORDER BY 1") == [("band", "2"), ("high", "1")]
    assert plant.fetch("SELECT count(*) FROM scores s JOIN models m ON m.name = s.model WHERE s.score > m.threshold") == [(4,)]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"policy": "learning"}, 'parameter policy: "learning"'),
        ({"shingle": 129}, "parameter shingle: 129"),
        ({"shingle": 2, "shingleSize": 3}, "shingle is given twice"),
        ({"policy": "streaming", "min_rows": 0}, "min_rows is 0"),
        ({"threshold": "adaptive", "threshold_value": 1}, "parameter threshold_value: 1"),
        ({"hysteresis": 1}, "parameter hysteresis: 1"),
        ({"direction": "up"}, 'parameter direction: "up"'),
    ],
)
def test_wrong_parameters_are_refused(plant: Plant, parameters: dict, words: str) -> None:
    """With what was given and what is allowed."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        plant.create_model(parameters=parameters)
    assert words in str(caught.value)


def test_incidents_are_explained_acknowledged_and_labelled(plant: Plant) -> None:
    """Peak, duration and features of an episode; who listens is told as JSON when it opens, is seen, labelled and closed."""
    plant.create_model()
    listener = plant.database.connect(autocommit=True)
    listener.execute("LISTEN incidents")
    fault = np.array([[150.0, 0.5, -3.0], [190.0, 0.5, -3.0], [160.0, 0.5, -3.0]])
    plant.insert("readings_new", 1, np.ones(3), fault)
    plant.conn.execute("UPDATE plant.readings_new SET _committed_at = _committed_at + id * interval '1 minute'")
    plant.catch_up_here()
    ((number, *episode),) = plant.fetch(
        "SELECT id, state, entity, anomalies, top_features[1], peak_order_value, extract(epoch FROM duration)::int,"
        " peak_score = (SELECT max(score) FROM anomalies) FROM incident_info"
    )
    assert episode == ["open", "1", 3, "sensor_1", 1, 120, True]
    assert plant.fetch("SELECT feature, direction, share > 0.5, anomalies_led FROM incident_features WHERE rank = 1") == [
        ("sensor_1", "high", True, 3)
    ]
    plant.conn.execute("SELECT scorer.acknowledge(%s, 'on my way')", (number,))
    plant.conn.execute("SELECT scorer.acknowledge(%s)", (number,))
    plant.conn.execute("SELECT scorer.label(%s, 'true alarm')", (number,))
    plant.insert("readings_new", 4, np.ones(12), np.full((12, 3), [100.0, 0.5, -3.0]))
    plant.catch_up_here()
    assert plant.fetch("SELECT state, close_reason, label, note, acknowledged_by = current_user FROM incident_info") == [
        ("closed", "ordinary again", "true alarm", "on my way", True)
    ]
    heard = [json.loads(notice.payload) for notice in listener.notifies(timeout=10, stop_after=4)]
    assert [(m["event"], m["id"], m["entity"]) for m in heard] == [
        (event, number, "1") for event in ("opened", "acknowledged", "labelled", "closed")
    ]
    listener.close()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="'maybe'"):
        plant.conn.execute("SELECT scorer.label(%s, 'maybe')", (number,))
    for call in ("acknowledge(-1)", "label(-1, 'true alarm')"):
        with pytest.raises(psycopg.errors.UndefinedObject, match="no incident -1"):
            plant.conn.execute(f"SELECT scorer.{call}")


def test_pruned_scores_of_a_learning_model_leave_its_state(plant: Plant) -> None:
    """Retention takes scores only; the next rows go on from the same forest."""
    plant.create_model(parameters={"policy": "streaming"})
    fill(plant, 100)
    plant.catch_up_here()
    plant.conn.execute("UPDATE scorer.scores SET scored_at = now() - interval '3 days'")
    assert prune_scores(plant.conn, 2.0, Stop()) == 100
    plant.insert("readings_new", 101, np.zeros(1), make_readings(np.random.default_rng(5), 1))
    plant.catch_up_here()
    assert plant.fetch("SELECT sum(rows) FROM learned_batches") == [(101,)]


@pytest.mark.parametrize("policy", ["frozen", "gated", "streaming"])
def test_each_entity_has_a_forest_and_memory_is_bounded(plant: Plant, policy: str) -> None:
    """Two forests in memory, small batches, checkpoints and restarts, or all in memory at once: what is written is the same."""
    own = {"policy": policy, "forest_per": "entity", "entity_rows": 60, "threshold": "adaptive", "shingle": 2}
    query = f"{HISTORY} WHERE unit < 3 OR id <= 300"
    fill(plant)
    plant.create_model("tight", parameters=own, query=query)
    plant.catch_up_here(SCORER__BATCH_ROWS="19", SCORER__CHECKPOINT_ROWS="40", SCORER__FORESTS_IN_MEMORY="2")
    # Units 0 to 2 have 100 training rows each; 3 to 5 have 50 and get theirs from the stream, which has none of unit 5.
    shown = "SELECT entity_forests, forests_in_memory, forests_parked, forests_bound, entities_waiting FROM model_info"
    assert plant.fetch(shown) == [(5, 2, 3, 2, 1)]
    assert plant.fetch("SELECT entity FROM entity_forests ORDER BY 1") == [(str(unit),) for unit in range(5)]
    plant.create_model("roomy", parameters=own, query=query)
    plant.catch_up_here(SCORER__CHECKPOINT_ROWS="1", SCORER__FORESTS_IN_MEMORY="1000")
    for name, rows in plant.results().items():
        tight = [row[1:] for row in rows if row[0] == "tight"]
        assert tight == [row[1:] for row in rows if row[0] == "roomy"], name
        assert tight, name
    # One updated, one late, one of a unit that nobody knew.
    forests = "SELECT entity, state FROM entity_forests WHERE model = 'roomy' ORDER BY 1"
    before = plant.fetch(forests)
    plant.update("readings_new", 303, sensor_2=9.0)
    plant.insert("readings_new", 900, np.array([0, 9]), make_readings(np.random.default_rng(3), 2))
    plant.catch_up_here(SCORER__FORESTS_IN_MEMORY="1", SCORER__CHECKPOINT_ROWS="1")
    found = plant.fetch(
        "SELECT row_key ->> 'id', reason, score IS NULL FROM scores WHERE model = 'tight' AND seq > %s ORDER BY 1",
        plant.seq - 3,
    )
    assert found == [("303", None, False), ("900", "late", True), ("901", "not ready", True)]
    assert plant.fetch(
        "SELECT f.feature FROM anomalies a JOIN anomaly_features f ON anomaly_id = a.id AND rank = 1"
        " WHERE a.model = 'tight' AND row_key = '{\"id\": 303}' AND status = 'open'"
    ) == [("sensor_2",)]
    assert [row for row in plant.fetch(forests) if row[0] != "0"] == [row for row in before if row[0] != "0"]
    assert plant.fetch("SELECT DISTINCT entities_waiting FROM model_info") == [(2,)]


def test_forests_per_entity_are_asked_by_the_command(plant: Plant) -> None:
    """By a row's key or with the entity's name; in SQL they are refused with the reason, as is a model without entities."""
    own = {"forest_per": "entity", "entity_rows": 60}
    # Unit 0 runs hotter than all others.
    hotter = "sensor_1 + CASE WHEN unit = 0 THEN 60 ELSE 0 END AS sensor_1"
    query = f"SELECT unit, cycle, {hotter}, sensor_2, sensor_3 FROM plant.readings_historical"
    plant.create_model("own", parameters=own, query=query)
    plant.create_model("pooled", query=query)
    # What a trainer that was killed left behind.
    plant.conn.execute(
        "INSERT INTO entity_forests (model, version, entity, state, batch, rows_seen) VALUES ('own', 1, 'x', '', 0, 0)"
    )
    plant.insert("readings_new", 1, np.array([0, 1]), np.array([[160.0, 0.5, -3.0]] * 2))
    plant.catch_up_here()
    assert plant.fetch("SELECT model, entity FROM anomalies WHERE model = 'own'") == [("own", "1")]
    assert plant.fetch("SELECT entity FROM entity_forests ORDER BY 1") == [(str(unit),) for unit in range(6)]
    assert plant.fetch("SELECT count(*) FROM learned_batches") == [(0,)]
    by_key = json.loads(plant.run("explain", "own", '{"id": 2}', "--json").stdout)
    named = json.loads(plant.run("explain", "own", "[160, 0.5, -3]", "--entity", "1", "--json").stdout)
    assert by_key == named and by_key["grade"] > 0 and by_key["features"][0]["feature"] == "sensor_1"
    assert plant.fetch("SELECT score, threshold FROM anomalies WHERE model = 'own'") == [(by_key["score"], by_key["threshold"])]
    assert plant.fetch("SELECT threshold FROM entity_forests WHERE entity = '1'") == [(by_key["threshold"],)]
    assert plant.fetch("SELECT count(*) FROM forest_nodes WHERE model = 'own'") == [(0,)]
    for call in ("score('own', ARRAY[1, 2, 3])", "explain('own', ARRAY[1, 2, 3])", "score_rows('own', 'SELECT 1')"):
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="a forest for each entity"):
            plant.fetch(f"SELECT scorer.{call}")
    call = "SELECT scorer.create_model('none', 'plant.readings_new', 'SELECT 1', ARRAY['sensor_1'], parameters => %s)"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no entity column"):
        plant.conn.execute(call, ('{"forest_per": "entity"}',))
    for wrong in ({"entity_rows": 70}, {"forest_per": "unit"}, own | {"min_rows": 0}, own | {"entity_rows": 9}):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="parameter"):
            plant.create_model("none", parameters=wrong)
    plant.conn.execute("SELECT scorer.drop_model('own')")
    assert plant.fetch("SELECT count(*) FROM entity_forests") == [(0,)]
