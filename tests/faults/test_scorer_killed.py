"""A scorer that dies at any moment: no score missing, none twice, and the same to the last bit."""

import random
import signal
import subprocess
import sys
import time

import numpy as np

from tests.fixtures.plant import ROOT, Plant, make_readings

ROWS = 3000


def fill(plant: Plant) -> None:
    """Six engines of which two go wrong and one recovers."""
    values = make_readings(np.random.default_rng(5), ROWS)
    units, cycles = np.arange(ROWS) % 6, np.arange(ROWS)
    values[(units == 2) & (cycles > ROWS // 2), 1] += 0.2
    values[(units == 4) & (cycles > ROWS // 3) & (cycles < ROWS // 2), 2] -= 20
    plant.insert("readings_new", 1, units, values)


def wait_for_rows(plant: Plant, wanted: int) -> None:
    """Return once so many rows are scored."""
    deadline = time.monotonic() + 60
    while plant.fetch("SELECT count(*) FROM scores")[0][0] < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


LEARNING = {"policy": "gated", "shingle": 2, "baseline_rows": 5, "threshold": "adaptive", "time_decay": 500}
KINDS = {
    "frozen": {},
    "gated": LEARNING,
    "entities": LEARNING | {"forest_per": "entity", "entity_rows": 60},
}


def create_models(plant: Plant, prefix: str) -> None:
    """A frozen model, one that learns, and one with a forest for each engine, of which two have too few rows at first; their
    history lies before the rows to come.
    """
    history = (
        "SELECT unit, cycle - 10000 AS cycle, sensor_1, sensor_2, sensor_3 FROM plant.readings_historical"
        " WHERE unit < 4 OR id <= 300"
    )
    for kind, parameters in KINDS.items():
        plant.create_model(f"{prefix}_{kind}", parameters=parameters, query=history)


def kill_at_commit(plant: Plant, number: int, moment: str, settings: dict[str, str]) -> None:
    """Run the scorer until it kills itself before or after this commit, or is done."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash_points", str(number), moment, "run", "--until-caught-up"],
        cwd=ROOT,
        env=plant.environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr


def assert_watermarks_are_true(plant: Plant) -> None:
    """Whatever the moment, the watermark says exactly what is scored, and every batch that was learnt is there."""
    assert {
        row[0]
        for row in plant.fetch("""
        SELECT (SELECT count(*) FROM scores s WHERE s.model = w.model) = w.rows_scored
           AND (SELECT coalesce(max(seq), 0) FROM scores s WHERE s.model = w.model) = w.seq FROM watermarks w""")
    } <= {True}
    assert (
        plant.fetch("""SELECT model FROM forest_checkpoints c
        WHERE last_batch - batch <> (SELECT count(*) FROM learned_batches l WHERE l.model = c.model AND l.batch > c.batch)""")
        == []
    )


def assert_killed_equals_undisturbed(plant: Plant) -> None:
    """Everything that all kinds of models wrote is the same, but for their names."""
    for name, rows in plant.results().items():
        for kind in KINDS:
            killed = [row[1:] for row in rows if row[0] == f"killed_{kind}"]
            assert killed == [row[1:] for row in rows if row[0] == f"undisturbed_{kind}"], (name, kind)
            assert killed, (name, kind)


def test_killed_scorer_leaves_what_an_undisturbed_one_does(plant: Plant) -> None:
    """Kill -9 just before and just after commits, and at random moments under small batches; then equal, to the last bit, to
    models of the same definitions that one run scored in large batches.
    """
    create_models(plant, "killed")
    fill(plant)
    moments = random.Random(11)
    for number in range(8):
        settings = {"SCORER__BATCH_ROWS": "5", "SCORER__CHECKPOINT_ROWS": "120", "SCORER__FORESTS_IN_MEMORY": "2"}
        if number % 4 == 3:
            before = plant.fetch("SELECT count(*) FROM scores")[0][0]
            process = plant.start(settings)
            try:
                wait_for_rows(plant, min(len(KINDS) * ROWS, before + 1 + moments.randrange(300)))
                time.sleep(moments.random() * 0.01)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        else:
            # The first commits are those of the catalog and of training.
            kill_at_commit(plant, moments.randrange(1, 40 + 20 * number), ("before", "after")[number % 2], settings)
        assert_watermarks_are_true(plant)
    plant.catch_up()
    create_models(plant, "undisturbed")
    plant.catch_up(SCORER__BATCH_ROWS="1000")
    assert_killed_equals_undisturbed(plant)
    assert plant.fetch(
        "SELECT s.model, count(*) FROM plant.readings_new r JOIN scores s"
        " ON s.row_key = jsonb_build_object('id', r.id) AND s.seq = r._seq WHERE s.model LIKE 'killed%%' GROUP BY 1 ORDER BY 1"
    ) == [(f"killed_{kind}", ROWS) for kind in sorted(KINDS)]


def test_two_scorers_share_the_work_of_one(plant: Plant) -> None:
    """The second stands by while the first works and takes over when it is killed; nothing is scored twice."""
    plant.create_model()
    first = plant.start({"SCORER__BATCH_ROWS": "50"})
    second = plant.start({"SCORER__BATCH_ROWS": "50"})
    try:
        fill(plant)
        wait_for_rows(plant, 100)
        assert plant.fetch(
            "SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE application_name = 'tailrace scorer score'"
        ) == [(1,)]
        holder = plant.fetch("SELECT client_port FROM pg_stat_activity WHERE application_name = 'tailrace scorer score'")
        assert holder
        first.send_signal(signal.SIGKILL)
        first.wait()
        wait_for_rows(plant, ROWS)
        assert plant.fetch("SELECT sum(rows_scored) FROM watermarks") == [(ROWS,)]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_scorer_survives_the_loss_of_its_connections(plant: Plant) -> None:
    """Every session of the scorer is ended by the server; it connects again and goes on."""
    plant.create_model()
    process = plant.start({"SCORER__BATCH_ROWS": "20"})
    try:
        fill(plant)
        wait_for_rows(plant, 100)
        plant.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tailrace scorer%'"
        )
        wait_for_rows(plant, ROWS)
        assert plant.fetch("SELECT sum(rows_scored) FROM watermarks") == [(ROWS,)]
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
