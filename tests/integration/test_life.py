"""The life of a model: shadows, retraining by the clock, old rows behind new ones, forests as rows, and the command line."""

import itertools
import json

import numpy as np
import psycopg
import pytest

from scorer.__main__ import main
from scorer.models import Mirror, Model
from scorer.publish import publish_forests
from scorer.results import Batch
from scorer.score import ModelScorer
from tests.fixtures.plant import FEATURES, TRAINING_QUERY, Plant, make_readings
from warehouse.db import connect
from warehouse.service import Stop
from warehouse.settings_file import load_settings


def insert_faults(plant: Plant, first: int, faults: int = 3, seed: int = 1) -> None:
    """Twenty rows, the last of which are far off."""
    values = make_readings(np.random.default_rng(seed), 20)
    values[20 - faults :, 0] += 50
    plant.insert("readings_new", first, np.ones(20), values)


def test_a_new_version_watches_in_the_shadow_until_it_is_deployed(plant: Plant) -> None:
    """It scores what comes beside the deployed one, tells nobody, is compared with it, and takes over when asked."""
    plant.create_model()
    insert_faults(plant, 1)
    plant.catch_up_here()
    plant.create_model(parameters={"deploy": "shadow", "threshold": "quantile", "threshold_value": 0.9})
    plant.catch_up_here()
    assert plant.fetch("SELECT version, state FROM models ORDER BY 1") == [(1, "READY"), (2, "SHADOW")]
    listener = plant.database.connect(autocommit=True)
    listener.execute("LISTEN anomalies")
    insert_faults(plant, 21, seed=2)
    plant.catch_up_here()
    assert [json.loads(n.payload)["version"] for n in listener.notifies(timeout=1)] == [1]
    listener.close()
    ((rows, ours, theirs, both),) = plant.fetch(
        "SELECT rows_scored, deployed_anomalies, shadow_anomalies, common_anomalies FROM shadow_comparison"
    )
    counted = dict(plant.fetch("SELECT model_version, count(*) FROM anomalies WHERE seq > %s GROUP BY 1", plant.seq - 20))
    assert rows == 20 and (ours, theirs) == (counted[1], counted[2]) and both == ours < theirs
    (compared,) = (json.loads(line) for line in plant.run("compare", "--json").stdout.splitlines())
    assert (compared["deployed_anomalies"], compared["shadow_anomalies"], compared["common_anomalies"]) == (ours, theirs, both)
    assert {row[0] for row in plant.fetch("SELECT model_version FROM open_anomalies")} == {1}
    plant.conn.execute("SELECT scorer.deploy('turbofan', 2)")
    insert_faults(plant, 41, seed=3)
    plant.catch_up_here()
    assert plant.fetch("SELECT version, state FROM models ORDER BY 1") == [(1, "RETIRED"), (2, "READY")]
    assert plant.fetch("SELECT model_version, count(*) FROM scores GROUP BY 1 ORDER BY 1") == [(1, 40), (2, 40)]
    assert plant.fetch("SELECT scorer.rollback('turbofan')") == [(1,)]


def test_models_are_retrained_by_the_clock(plant: Plant) -> None:
    """Once the hours have passed, not before, and not while another version waits; a failure is tried again after them."""
    plant.create_model(parameters={"retrain_hours": 24})
    plant.catch_up_here()
    assert plant.fetch("SELECT scorer.retrain_due()") == [(0,)]
    plant.conn.execute("UPDATE models SET trained_at = now() - interval '25 hours'")
    plant.conn.execute("ALTER TABLE plant.readings_historical RENAME sensor_3 TO sensor_4")
    assert plant.run("run", "--until-caught-up").returncode == 3
    assert plant.fetch("SELECT version, state FROM models ORDER BY 1") == [(1, "READY"), (2, "FAILED")]
    plant.conn.execute("ALTER TABLE plant.readings_historical RENAME sensor_4 TO sensor_3")
    plant.catch_up_here()
    assert plant.fetch("SELECT version, state FROM models ORDER BY 1") == [(1, "READY"), (2, "FAILED")]
    plant.conn.execute("UPDATE models SET since = now() - interval '25 hours' WHERE version = 2")
    plant.catch_up_here()
    assert plant.fetch("SELECT version, state FROM models ORDER BY 1") == [(1, "RETIRED"), (2, "READY")]


def test_old_rows_come_behind_new_ones(plant: Plant) -> None:
    """A batch with new rows takes no old ones; in the end every row has a score, and old ones open no incidents."""
    for first in range(1, 201, 20):
        insert_faults(plant, first, seed=first)
    plant.create_model("behind", parameters={"backfill": "behind"})
    plant.create_model("none", parameters={"backfill": "none"})
    assert plant.run("train").returncode == 0
    environment = {k: v for k, v in plant.environment({"SCORER__BATCH_ROWS": "30"}).items() if k.startswith("TAILRACE__")}
    settings = load_settings(None, environment)
    with connect(settings.warehouse, "tests") as conn:
        scorer = ModelScorer(conn, settings.scorer)
        rounds: list[int] = []
        # Stops after the first round: the tables are known, and at most one batch of old rows is done.
        scorer.run(Stop(), lambda: len(rounds) == 1 or rounds.append(1) is not None)
        insert_faults(plant, 201, seed=7)
        rounds.clear()
        scorer.run(Stop(), lambda: len(rounds) == 1 or rounds.append(1) is not None)
    scored = "SELECT count(*) FROM scores WHERE model = 'behind' AND (row_key ->> 'id')::int"
    assert plant.fetch(f"{scored} > 200") == [(20,)]
    assert plant.fetch(f"{scored} <= 200")[0][0] <= 60
    plant.catch_up_here()
    assert plant.fetch("SELECT model, count(*) FROM scores GROUP BY 1 ORDER BY 1") == [("behind", 220), ("none", 20)]
    assert plant.fetch("SELECT rows_scored FROM watermarks ORDER BY model") == [(220,), (20,)]
    found = plant.fetch(
        "SELECT (row_key ->> 'id')::int > 200, count(*) >= 3, count(incident_id) FROM anomalies WHERE model = 'behind'"
        " GROUP BY 1 ORDER BY 1"
    )
    assert found == [(False, True, 0), (True, True, 3)]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="in order"):
        plant.create_model("learning", parameters={"backfill": "behind", "policy": "streaming"})


def test_no_old_row_is_scored_while_a_new_one_waits(plant: Plant) -> None:
    """Rows arrive behind every batch of old rows: whatever model they are for, they are scored before the next old row is, and
    a batch of old rows is a small one.
    """
    for first in range(1, 101, 20):
        insert_faults(plant, first, seed=first)
    for name in ("one", "two"):
        plant.create_model(name, parameters={"backfill": "behind"})
    assert plant.run("train").returncode == 0
    batches: list[tuple[str, bool, int]] = []

    class Arriving(ModelScorer):
        """Notes each batch; rows arrive behind those of old ones."""

        def _score(self, model: Model, mirrors: list[Mirror], *, old: bool = False) -> Batch:
            batch = super()._score(model, mirrors, old=old)
            batches.append((model.name, old, batch.rows))
            if old and (arrived := sum(was_old for _, was_old, _ in batches)) <= 4:
                rows = make_readings(np.random.default_rng(arrived), 3)
                plant.insert("readings_new", 1000 + 3 * arrived, np.ones(3), rows)
            return batch

    environment = {k: v for k, v in plant.environment({"SCORER__BATCH_ROWS": "200"}).items() if k.startswith("TAILRACE__")}
    settings = load_settings(None, environment)
    with connect(settings.warehouse, "tests") as conn:
        assert Arriving(conn, settings.scorer).run(Stop()) == 2 * (100 + 4 * 3)
    old = [i for i, (_, is_old, _) in enumerate(batches) if is_old]
    assert {batches[i][2] for i in old} == {20} and {batches[i][0] for i in old} == {"one", "two"}
    for first, second in itertools.pairwise(old[:5]):
        assert batches[first + 1 : second] == [("one", False, 3), ("two", False, 3)]


def test_forests_as_rows_are_there_for_versions_that_may_be_asked(plant: Plant) -> None:
    """Those of models that learn are written afresh, those long retired cleared, and written again when one is deployed."""
    plant.create_model(parameters={"policy": "streaming", "time_decay": 100})
    insert_faults(plant, 1)
    plant.catch_up_here(SCORER__CHECKPOINT_ROWS="1")
    ask = "SELECT scorer.score('turbofan', ARRAY[150, 0.5, -3])"
    before = plant.fetch(ask)
    assert publish_forests(plant.conn) == 1 and publish_forests(plant.conn) == 0
    assert plant.fetch(ask) != before
    for _ in range(2):
        plant.conn.execute("SELECT scorer.retrain('turbofan')")
        plant.catch_up_here()
    publish_forests(plant.conn)
    assert plant.fetch("SELECT DISTINCT version FROM forest_nodes ORDER BY 1") == [(2,), (3,)]
    plant.conn.execute("SELECT scorer.deploy('turbofan', 1)")
    plant.catch_up_here()
    assert plant.fetch("SELECT DISTINCT version FROM forest_nodes ORDER BY 1") == [(1,), (2,), (3,)]
    assert plant.fetch(ask) != before


def test_the_verbs_are_commands(plant: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Create, list, show, retrain, deploy, roll back, incidents, labels, drop; refusals have their exit codes."""

    def ask(*arguments: str, code: int = 0) -> list[dict]:
        capsys.readouterr()
        # In this process, which saves its start.
        assert main([*arguments, "--json"]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    # The log would keep this test's captured output.
    monkeypatch.setattr("warehouse.service.configure_log", lambda *_, **__: None)
    for name, value in plant.environment().items():
        if name.startswith("TAILRACE__"):
            monkeypatch.setenv(name, value)

    definition = ["--relation", "plant.readings_new", "--query", TRAINING_QUERY, "--features", ", ".join(FEATURES)]
    assert ask("create", "hot", *definition, "--entity", "unit", "--parameters", '{"trees": 10, "samples": 64}') == [
        {"model": "hot", "version": 1}
    ]
    insert_faults(plant, 1)
    plant.catch_up_here()
    (listed,) = ask("models")
    assert (listed["name"], listed["state"], listed["rows_scored"]) == ("hot", "READY", 20)
    assert "threshold" in plant.run("show", "hot").stdout
    (incident,) = ask("incidents")
    assert incident["top_features"][0] == "sensor_1"
    ask("acknowledge", str(incident["id"]), "--note", "seen")
    ask("label", str(incident["id"]), "false")
    assert plant.fetch("SELECT label, note FROM incidents") == [("false alarm", "seen")]
    assert ask("retrain", "hot") == [{"model": "hot", "version": 2}]
    plant.catch_up_here()
    assert ask("rollback", "hot") == [{"model": "hot", "version": 1}]
    ask("deploy", "hot", "2")
    assert ask("function", "is_hot", "hot")[0]["function"].startswith("is_hot(")
    assert plant.fetch("SELECT scorer.is_hot(150, 0.5, -3) = scorer.score('hot', ARRAY[150, 0.5, -3])") == [(True,)]
    scored = ask("score", "hot", "SELECT * FROM plant.readings_new ORDER BY id LIMIT 2")
    assert [(row["number"], row["row"]["id"]) for row in scored] == [(1, 1), (2, 2)] and scored[0]["score"] > 0
    ask("score", "hot", "SELECT 1 AS sensor_1", code=2)
    ask("score", "hot", "SELECT FROM WHERE", code=2)
    ask("function", "score", "hot", code=2)
    ask("predict", "hot", "[1, 2, 3]", code=2)
    ask("create", "hot", *definition, "--parameters", '{"trees": 0}', code=2)
    ask("deploy", "hot", "9", code=3)
    ask("drop", "hot")
    ask("drop", "hot", code=3)
    assert ask("models") == []
