"""A scorer that dies at any moment: no score missing, none twice, and the same to the last bit."""

import random
import signal
import time

import numpy as np

from tests.fixtures.plant import Plant, make_readings

ROWS = 6000


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


def test_killed_scorer_leaves_what_an_undisturbed_one_does(plant: Plant) -> None:
    """Kill -9 at random moments under small batches; then equal to a second model that one run scored in large batches."""
    plant.create_model("killed")
    fill(plant)
    moments = random.Random(11)
    for _ in range(6):
        before = plant.fetch("SELECT count(*) FROM scores")[0][0]
        process = plant.start({"SCORER__BATCH_ROWS": "5"})
        try:
            wait_for_rows(plant, min(ROWS, before + 1 + moments.randrange(300)))
            time.sleep(moments.random() * 0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        # Whatever the moment, the watermark says exactly what is scored.
        assert plant.fetch(
            "SELECT count(*) = w.rows_scored AND max(s.seq) = w.seq FROM scores s, watermarks w GROUP BY w.rows_scored, w.seq"
        ) == [(True,)]
    plant.catch_up()
    plant.create_model("undisturbed")
    plant.catch_up(SCORER__BATCH_ROWS="1000")
    for name, rows in plant.results().items():
        killed = [row[1:] for row in rows if row[0] == "killed"]
        assert killed == [row[1:] for row in rows if row[0] == "undisturbed"], name
        assert killed, name
    assert plant.fetch(
        "SELECT count(*) FROM plant.readings_new r JOIN scores s"
        " ON s.row_key = jsonb_build_object('id', r.id) AND s.seq = r._seq WHERE s.model = 'killed'"
    ) == [(ROWS,)]


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
