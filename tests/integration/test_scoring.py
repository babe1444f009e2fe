"""Rows of a mirror become scores, anomalies and incidents on a real Postgres."""

import json
import signal
import time

import numpy as np
import pytest

from scorer.fit import fit_model
from scorer.forest import RandomCutForest
from scorer.score import prune_scores
from tests.fixtures.plant import FEATURES, Plant, make_readings
from warehouse.service import Stop


@pytest.fixture
def ready(plant: Plant) -> Plant:
    """A trained model and 400 rows, of which unit 3 goes wrong after its 40th row."""
    plant.create_model()
    values = make_readings(np.random.default_rng(1), 400)
    units = np.arange(400) % 5
    values[(units == 3) & (np.arange(400) >= 200), 0] += 40
    plant.insert("readings_new", 1, units, values)
    plant.catch_up_here()
    return plant


def test_every_row_has_one_score_and_it_is_the_forest_s(ready: Plant) -> None:
    """Scores equal those of a forest that is fitted here on the same rows, bit for bit."""
    columns = ", ".join(FEATURES)
    training = np.array(ready.fetch(f"SELECT {columns} FROM plant.readings_historical"), float)
    training = training[np.lexsort(training.T[::-1])]
    (parameters,) = ready.fetch("SELECT parameters FROM scorer.models")[0]
    trained = fit_model(training, parameters, threads=1)
    rows = np.array(ready.fetch(f"SELECT {columns} FROM plant.readings_new ORDER BY id"), float)
    wanted = RandomCutForest.from_bytes(trained.forest.to_bytes()).score_samples(trained.scaler.transform(rows))
    found = ready.fetch("SELECT (row_key ->> 'id')::int, score, seq FROM scores ORDER BY 1")
    assert [row[0] for row in found] == list(range(1, 401))
    assert np.array([row[1] for row in found]).tobytes() == wanted.tobytes()
    assert [row[2] for row in found] == [seq for (seq,) in ready.fetch("SELECT _seq FROM plant.readings_new ORDER BY id")]


def test_anomalies_name_the_row_the_sensor_and_the_incident(ready: Plant) -> None:
    """All rows of the fault are open anomalies of one incident, explained by the sensor that went up."""
    faulty = ready.fetch("SELECT * FROM anomalies WHERE entity = '3' AND order_value >= 200")
    assert len(faulty) == 40
    assert ready.fetch(
        "SELECT count(DISTINCT incident_id), count(DISTINCT status), min(grade) FROM anomalies WHERE entity = '3'"
        " AND order_value >= 200 GROUP BY direction HAVING direction = 'high'"
    )[0][:2] == (1, 1)
    worst = ready.fetch(
        "SELECT f.feature, f.direction, f.value > 120, abs(f.expected_value - 100) < 1 FROM anomaly_features f"
        " JOIN anomalies a ON a.id = f.anomaly_id WHERE a.entity = '3' AND a.order_value >= 200 AND f.rank = 1"
    )
    assert set(worst) == {("sensor_1", "high", True, True)}
    sums = ready.fetch(
        "SELECT a.score, sum(f.attribution) FROM anomalies a JOIN anomaly_features f ON f.anomaly_id = a.id GROUP BY a.id"
    )
    assert sums and all(abs(score - total) < 1e-9 for score, total in sums)
    assert ready.fetch(
        "SELECT first_order_value, last_order_value, anomalies, closed_at FROM incidents WHERE entity = '3' AND anomalies > 5"
    ) == [(203, 398, 40, None)]


def test_threshold_separates_anomalies_from_scores(ready: Plant) -> None:
    """A row is an anomaly exactly if its score is above the threshold of its model."""
    assert ready.fetch(
        "SELECT count(*) FROM scores s JOIN models m ON m.name = s.model AND m.version = s.model_version"
        " FULL JOIN anomalies a ON a.row_key = s.row_key WHERE (s.score > m.threshold) IS DISTINCT FROM (a.id IS NOT NULL)"
    ) == [(0,)]
    ((mean, sigma, threshold),) = ready.fetch(
        "SELECT training_scores ->> 'mean', training_scores ->> 'sigma', threshold FROM model_info"
    )
    assert threshold == pytest.approx(float(mean) + 3 * float(sigma))


def test_updated_rows_are_scored_again(ready: Plant) -> None:
    """An ordinary update clears the anomaly, an abnormal one keeps it up to date, and a new fault makes a new one."""
    before = dict(ready.fetch("SELECT (row_key ->> 'id')::int, id FROM anomalies"))
    assert {399, 394} <= before.keys() and 1 not in before
    ready.update("readings_new", 399, sensor_1=100.0, sensor_2=0.5, sensor_3=-3.0)
    ready.update("readings_new", 394, sensor_1=10.0)
    ready.update("readings_new", 1, sensor_3=30.0)
    ready.catch_up_here()
    assert ready.fetch("SELECT count(*), count(DISTINCT row_key) FROM scores") == [(400, 400)]
    after = {
        row[0]: row[1:]
        for row in ready.fetch(
            "SELECT (row_key ->> 'id')::int, id, status, direction, seq FROM anomalies"
            " WHERE (row_key ->> 'id')::int IN (1, 394, 399)"
        )
    }
    assert after[399][:2] == (before[399], "cleared")
    assert after[394] == (before[394], "open", "low", ready.seq - 1)
    assert after[1][1:] == ("open", "high", ready.seq)
    assert ready.fetch(
        "SELECT f.feature, f.direction FROM anomaly_features f WHERE anomaly_id = %s AND rank = 1", before[394]
    ) == [("sensor_1", "low")]
    # Wrong again after it was cleared: a new anomaly, and the old one stays as history.
    ready.update("readings_new", 399, sensor_1=150.0)
    ready.catch_up_here()
    assert ready.fetch("SELECT status FROM anomalies WHERE row_key = '{\"id\": 399}' ORDER BY id") == [("cleared",), ("open",)]


def test_deleted_rows_lose_their_score_and_mark_their_anomaly(ready: Plant) -> None:
    """The anomaly stays with its status, the score goes; an incident without open anomalies is closed."""
    ready.delete("readings_new", 399)
    ready.delete("readings_new", 2)
    ready.catch_up_here()
    assert ready.fetch("SELECT count(*) FROM scores") == [(398,)]
    assert ready.fetch("SELECT status FROM anomalies WHERE row_key = '{\"id\": 399}'") == [("source_deleted",)]
    for (row_id,) in ready.fetch("SELECT (row_key ->> 'id')::int FROM anomalies WHERE status = 'open' AND entity = '3'"):
        ready.delete("readings_new", row_id)
    ready.catch_up_here()
    assert ready.fetch("SELECT close_reason FROM incidents WHERE entity = '3' ORDER BY id DESC LIMIT 1") == [
        ("anomalies withdrawn",)
    ]
    # A new row under the key of a deleted one is a new row.
    ready.insert("readings_new", 399, np.array([3]), np.array([[150.0, 0.5, -3.0]]))
    ready.catch_up_here()
    assert ready.fetch("SELECT status FROM anomalies WHERE row_key = '{\"id\": 399}' ORDER BY id") == [
        ("source_deleted",),
        ("open",),
    ]


def test_an_idle_scorer_writes_no_anomalies(ready: Plant) -> None:
    """Without new rows and deletes no statement touches scorer.anomalies, so that views on it are not refreshed for ever."""
    ready.conn.execute(
        "CREATE TABLE public.touched (n int); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.touched VALUES (1); RETURN NULL; END $$;"
        " CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON scorer.anomalies FOR EACH STATEMENT EXECUTE FUNCTION note()"
    )
    process = ready.start({"SCORER__INTERVAL_S": "0.05"})
    try:
        deadline = time.monotonic() + 60
        # Not the session that caught up before, which may still be ending.
        while not ready.fetch(
            "SELECT FROM pg_stat_activity WHERE application_name = 'tailrace scorer' AND query LIKE 'LISTEN%%'"
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        # some twenty idle rounds
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert ready.fetch("SELECT count(*) FROM public.touched") == [(0,)]


def test_a_delete_before_its_row_was_scored_leaves_nothing(plant: Plant) -> None:
    """Insert, delete and insert again between two runs: one score, of the last row."""
    plant.create_model()
    plant.catch_up_here()
    plant.insert("readings_new", 1, np.array([1]), np.array([[900.0, 0.5, -3.0]]))
    plant.delete("readings_new", 1)
    plant.insert("readings_new", 1, np.array([1]), np.array([[100.0, 0.5, -3.0]]))
    plant.catch_up_here()
    assert plant.fetch("SELECT seq FROM scores") == [(plant.seq,)]
    assert plant.fetch("SELECT count(*) FROM anomalies") == [(0,)]


def test_missing_values_are_no_evidence(plant: Plant) -> None:
    """A row without values is ordinary; a missing sensor has no part in an anomaly."""
    plant.create_model()
    plant.insert("readings_new", 1, np.array([1, 1]), np.array([[np.nan, np.nan, np.nan], [200.0, np.nan, -3.0]]))
    plant.catch_up_here()
    assert plant.fetch("SELECT count(*) FROM scores") == [(2,)]
    assert plant.fetch("SELECT row_key, feature FROM anomalies JOIN anomaly_features ON anomaly_id = id WHERE rank = 1") == [
        ({"id": 2}, "sensor_1")
    ]
    assert plant.fetch("SELECT count(*) FROM anomaly_features WHERE feature = 'sensor_2'") == [(0,)]


def test_several_tables_are_scored_in_the_order_of_the_source(plant: Plant) -> None:
    """One model on two tables: each row once, and an incident spans tables; a table that appears later joins in."""
    plant.create_table("readings_more")
    plant.create_model(relation="plant.readings_new, plant.readings_m%")
    fault = np.full((3, 3), [200.0, 0.5, -3.0])
    plant.insert("readings_new", 1, np.ones(3), fault)
    plant.insert("readings_more", 1, np.ones(3), fault)
    plant.catch_up_here(SCORER__BATCH_ROWS="2")
    plant.create_table("readings_much_more")
    plant.insert("readings_much_more", 1, np.ones(3), fault)
    plant.catch_up_here()
    assert plant.fetch("SELECT source_table, count(*) FROM scores GROUP BY 1 ORDER BY 1") == [
        ("plant.readings_more", 3),
        ("plant.readings_much_more", 3),
        ("plant.readings_new", 3),
    ]
    assert plant.fetch("SELECT anomalies, entity FROM incidents") == [(9, "1")]


def test_batches_do_not_matter(ready: Plant) -> None:
    """A second model of the same definition, scored in batches of other sizes, finds the same in every detail."""
    ready.create_model("again")
    ready.catch_up_here(SCORER__BATCH_ROWS="7")
    found = {name: {"turbofan": [], "again": []} for name in ("scores", "anomalies", "features", "incidents")}
    for name, rows in ready.results().items():
        for row in rows:
            found[name][row[0]].append(row[1:])
    assert all(rows["turbofan"] == rows["again"] and rows["again"] for rows in found.values())


def test_serving_scores_at_once_and_tells_who_listens(ready: Plant) -> None:
    """A row committed while the scorer runs is an anomaly with a NOTIFY; SIGTERM ends the service with 0."""
    listener = ready.database.connect(autocommit=True)
    listener.execute("LISTEN anomalies")
    process = ready.start({"SCORER__INTERVAL_S": "3600"})
    try:
        deadline = time.monotonic() + 60
        while not ready.fetch(
            "SELECT FROM pg_stat_activity WHERE application_name = 'tailrace scorer' AND query LIKE 'LISTEN%%'"
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        ready.insert("readings_new", 1000, np.array([99]), np.array([[500.0, 0.5, -3.0]]))
        payload = json.loads(next(listener.notifies(timeout=60, stop_after=1)).payload)
        assert payload["model"] == "turbofan" and payload["anomalies"] == 1 and payload["incidents_opened"] == 1
        (incident,) = payload["incidents"]
        assert ready.fetch(
            "SELECT i.id, i.entity FROM incidents i JOIN anomalies a ON a.incident_id = i.id WHERE a.row_key = '{\"id\": 1000}'"
        ) == [(incident["id"], incident["entity"])]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        listener.close()


def test_catching_up_beside_a_running_scorer_waits_for_it(plant: Plant) -> None:
    """While another scorer serves, --until-caught-up returns once that one has trained and scored everything."""
    process = plant.start()
    try:
        deadline = time.monotonic() + 60
        while not plant.fetch("SELECT FROM pg_stat_activity WHERE application_name = 'tailrace scorer score'"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        plant.create_model()
        plant.insert("readings_new", 1, np.ones(2000), make_readings(np.random.default_rng(1), 2000))
        plant.catch_up()
        assert plant.fetch("SELECT count(*) FROM scores") == [(2000,)]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_payload_always_fits(plant: Plant) -> None:
    """A batch that opens very many incidents with long names still commits and notifies."""
    plant.conn.execute(
        "ALTER TABLE plant.readings_new ADD COLUMN label text GENERATED ALWAYS AS (repeat('ü', 300) || unit) STORED"
    )
    plant.conn.execute(
        "SELECT scorer.create_model('labels', 'plant.readings_new', 'SELECT * FROM plant.readings_historical', %s,"
        " entity => 'label', parameters => '{\"trees\": 10}')",
        (FEATURES,),
    )
    listener = plant.database.connect(autocommit=True)
    listener.execute("LISTEN anomalies")
    # The generated column comes last, so the helper's positions still hold.
    for unit in range(200):
        plant.seq += 1
        plant.conn.execute("INSERT INTO plant.readings_new VALUES (%s, %s, 1, 500, 1, 1, %s)", (unit, unit, plant.seq))
    plant.catch_up_here()
    payload = next(listener.notifies(timeout=30, stop_after=1)).payload
    listener.close()
    body = json.loads(payload)
    assert len(payload) < 8000 and body["incidents_opened"] == 200 and 0 < len(body["incidents"]) < 200
    assert plant.fetch("SELECT count(*) FROM incidents") == [(200,)]


def test_old_scores_are_pruned_and_not_made_again(ready: Plant) -> None:
    """Retention removes scores; the watermark stays, so nothing is scored a second time."""
    ready.conn.execute("UPDATE scorer.scores SET scored_at = now() - interval '3 days' WHERE (row_key ->> 'id')::int <= 300")
    assert prune_scores(ready.conn, 2.0, Stop(), limit=70) == 300
    ready.catch_up_here()
    assert ready.fetch("SELECT count(*) FROM scores") == [(100,)]
