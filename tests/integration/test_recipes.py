"""The recipes that people know from managed services, from beginning to end on real servers.

Turbofan engines, New York's taxis, a stream application in the manner of Kinesis, orders per day. (Churn is in
`test_imports.py`.) Real data is read where `../shared/data` lies beside the checkout; else generated data stands in.
"""

import csv
import gzip
import io
import json
from datetime import datetime

import numpy as np
import pytest

from demo.fleet import MEASUREMENTS, Engine, generate_fleet, parse_cmapss
from scorer.errors import TrainingFailed
from scorer.hotspots import find_hotspots
from scorer.schedule import catch_up
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.plant import ROOT, Plant
from warehouse.service import Progress, Stop

DATA = ROOT.parent / "shared" / "data"


def read_engines(count: int) -> list[Engine]:
    """Engines that run to failure: the first of FD001, or generated ones."""
    file = DATA / "train_FD001.txt.gz"
    return parse_cmapss(file)[:count] if file.exists() else list(generate_fleet(count, regimes=1, seed=3))


def test_turbofan_from_mysql_to_a_histogram_of_scores(mysql_pipeline: Pipeline) -> None:
    """Readings in MySQL, a forest trained on the first cycles, a derived view of the worst engines, scores as a histogram."""
    pipeline = mysql_pipeline
    folder = pipeline.folder / "views"
    folder.mkdir()
    database = pipeline.source.name
    (folder / "engine_worst.sql").write_text(
        "CREATE MATERIALIZED VIEW analytics.engine_worst AS"
        " SELECT entity, max(score) AS score FROM scorer.scores GROUP BY entity;"
        " CREATE UNIQUE INDEX ON analytics.engine_worst (entity);"
    )
    features = ", ".join(f"'{name}'" for name in MEASUREMENTS[3:])
    pipeline.configure(
        refresh={"directory": str(folder)},
        models=f"""
[[model]]
name = "turbofan"
relation = "{database}.readings"
training_query = "SELECT * FROM {database}.history"
features = [{features}]
entity = "unit"
order = "cycle"
""",
    )
    columns = ", ".join(f"{name} DOUBLE" for name in MEASUREMENTS)
    engines = read_engines(12)
    for table, cycles in (("history", slice(0, 50)), ("readings", slice(50, None))):
        pipeline.source.execute(f"CREATE TABLE {table} (unit INT, cycle INT, {columns}, PRIMARY KEY (unit, cycle))")
        rows = [
            f"({engine.unit}, {cycle}, {', '.join(map(repr, engine.values[cycle - 1].tolist()))})"
            for engine in engines
            for cycle in range(1, engine.cycles + 1)[cycles]
        ]
        pipeline.source.execute(f"INSERT INTO {table} VALUES {', '.join(rows)}")
    pipeline.catch_up()
    catch_up(pipeline.settings, Stop(), Progress())
    pipeline.assert_equal("history", "readings")
    scored = sum(engine.cycles - 50 for engine in engines)
    histogram = pipeline.fetch(
        "SELECT floor(s.score * 5) / 5, count(*), count(*) FILTER (WHERE s.score > m.threshold) FROM scores s"
        " JOIN models m ON (m.name, m.version) = (s.model, s.model_version) GROUP BY 1 ORDER BY 1"
    )
    assert sum(row[1] for row in histogram) == scored
    anomalous = sum(row[2] for row in histogram)
    assert 0 < anomalous == pipeline.fetch("SELECT count(*) FROM open_anomalies")[0][0] < scored / 2
    # The last cycles before a failure score above those before the wear.
    late, early = (
        np.mean([row[0] for row in pipeline.fetch(
            "SELECT s.score FROM scores s JOIN (SELECT unit, max(cycle) AS last FROM " + f'"{database}".readings'
            " GROUP BY unit) f ON f.unit::text = s.entity WHERE f.last - s.order_value BETWEEN %s AND %s", low, high)])
        for low, high in ((0, 14), (90, 1000))
    )  # fmt: skip
    assert late > 1.2 * early
    assert pipeline.fetch("SELECT count(*) FROM analytics.engine_worst") == [(12,)]


def read_taxi() -> tuple[list[datetime], np.ndarray, list[tuple[datetime, datetime]]]:
    """Half hours, passengers, and labelled windows: New York's, or a generated series of the same rhythm."""
    if (DATA / "nyc_taxi.csv.gz").exists():
        text = gzip.decompress((DATA / "nyc_taxi.csv.gz").read_bytes()).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        windows = json.loads((DATA / "nyc_taxi_windows.json").read_text())["windows"]
        pairs = [(datetime.fromisoformat(first), datetime.fromisoformat(last)) for first, last in windows]
        return [datetime.fromisoformat(row["timestamp"]) for row in rows], np.array([float(r["value"]) for r in rows]), pairs
    count, rng = 10_320, np.random.default_rng(0)
    times = [datetime.fromtimestamp(1_404_172_800 + 1800 * i) for i in range(count)]
    day, week = 2 * np.pi * np.arange(count) / 48, 2 * np.pi * np.arange(count) / 336
    values = 15_000 - 8_000 * np.cos(day) + 2_000 * np.sin(week) + rng.normal(0, 500, count)
    windows = []
    for first in (5_800, 7_000, 8_400, 8_750, 9_900):
        values[first : first + 48] *= 0.3
        windows.append((times[first - 48], times[first + 96]))
    return times, values, windows


def test_taxi_days_scored_in_sql_with_a_cut_off_at_three_sigma(plant: Plant) -> None:
    """Load, create a model over days of 48 half hours, score a query, cut off at mean + 3 sigma: labelled windows are found."""
    times, values, windows = read_taxi()
    plant.conn.execute("CREATE TABLE public.taxi (at timestamp PRIMARY KEY, passengers double precision)")
    with plant.conn.cursor() as cursor, cursor.copy("COPY public.taxi FROM STDIN") as copy:
        for row in zip(times, values.tolist(), strict=True):
            copy.write_row(row)
    lags = ", ".join(f"lag(passengers, {47 - i}) OVER w AS h{i}" for i in range(48))
    plant.conn.execute(
        f"CREATE VIEW public.taxi_days AS SELECT at, {lags} FROM public.taxi WINDOW w AS (ORDER BY at) OFFSET 47"
    )
    plant.conn.execute(
        "SELECT scorer.create_model('taxi', NULL, 'SELECT * FROM public.taxi_days', %s, parameters => '{\"seed\": 1}')",
        ([f"h{i}" for i in range(48)],),
    )
    plant.catch_up_here()
    found = plant.fetch(
        """WITH scored AS (
            SELECT (row_values ->> 'at')::timestamp AS at, score
            FROM scorer.score_rows('taxi', 'SELECT * FROM public.taxi_days WHERE extract(hour FROM at)::int % 6 = 0
                                             AND extract(minute FROM at) = 0')
        ), cut AS (SELECT avg(score) + 3 * stddev(score) AS off FROM scored)
        SELECT at FROM scored, cut WHERE score > off ORDER BY at"""
    )
    assert 0 < len(found) < 60
    assert sum(any(first <= at <= last for (at,) in found) for first, last in windows) >= 3


def test_a_stream_application_in_the_manner_of_kinesis(plant: Plant) -> None:
    """Transcoding jobs: a streaming forest under Kinesis' names with shingle, decay and direction, a baseline for each codec,
    explanations in Kinesis' shape, hotspots; a text column as a feature is refused with the reason.
    """
    features = ["seconds", "megabytes", "errors"]
    plant.create_table("jobs", features)
    plant.conn.execute(
        "ALTER TABLE plant.jobs ADD COLUMN codec text"
        " GENERATED ALWAYS AS (CASE WHEN unit = 0 THEN 'h264' ELSE 'av1' END) STORED"
    )
    rng = np.random.default_rng(4)
    codec = rng.integers(0, 2, 1200)
    size = rng.lognormal(3.0, 0.3, 1200)
    rows = np.column_stack([size * np.where(codec == 0, 2.0, 9.0) + rng.normal(0, 2, 1200), size, rng.poisson(0.2, 1200)])
    rows[1000:1010, 0] *= 4.0  # slow
    rows[1100:1110, 0] *= 0.1  # suspiciously fast: of no interest
    target = "COPY plant.jobs (id, unit, cycle, seconds, megabytes, errors, _seq) FROM STDIN"
    with plant.conn.cursor() as cursor, cursor.copy(target) as copy:
        for i, (unit, row) in enumerate(zip(codec.tolist(), rows.tolist(), strict=True)):
            copy.write_row((i + 1, unit, i, *row, plant.seq + i + 1))
    plant.seq += 1200
    parameters = {"numberOfTrees": 50, "subSampleSize": 128, "timeDecay": 2000, "shingleSize": 2, "policy": "streaming",
                  "direction": "high", "baseline_rows": 20, "threshold": "adaptive", "min_rows": 300}  # fmt: skip
    create = (
        "SELECT scorer.create_model(%s, 'plant.jobs', 'SELECT * FROM plant.jobs WHERE id <= 300', %s,"
        " entity => 'codec', order_by => 'cycle', parameters => %s)"
    )
    plant.conn.execute(create, ("transcoding", features, json.dumps(parameters | {"backfill": "none"})))
    plant.conn.execute(create, ("textual", [*features, "codec"], "{}"))
    with pytest.raises(TrainingFailed, match="codec"):
        plant.catch_up_here()
    assert "codec (text)" in plant.fetch("SELECT reason FROM models WHERE name = 'textual'")[0][0]
    plant.conn.execute("SELECT scorer.drop_model('textual')")
    # The rows that the model was not trained on arrive again, as new ones.
    plant.conn.execute("UPDATE plant.jobs SET _seq = _seq + 10000, cycle = cycle + 10000 WHERE id > 300")
    plant.catch_up_here()
    found = plant.fetch(
        "SELECT a.id, (a.row_key ->> 'id')::int, a.direction, f.feature FROM anomalies a"
        " JOIN anomaly_features f ON f.anomaly_id = a.id AND f.rank = 1 ORDER BY 2"
    )
    assert sum(1001 <= number <= 1010 for _, number, _, _ in found) >= 5
    assert not any(1101 <= number <= 1110 for _, number, _, _ in found)
    assert {direction for _, _, direction, _ in found} == {"high"}
    slow = next(row for row in found if 1001 <= row[1] <= 1010)
    assert slow[3] == "seconds"
    ((why,),) = plant.fetch("SELECT scorer.explain('transcoding', ARRAY[0, 0, 0, 300, 0, 0])")
    assert set(why) == set(features) and why["seconds"]["DIRECTION"] == "HIGH"
    assert set(why["seconds"]) == {"DIRECTION", "STRENGTH", "ATTRIBUTION_SCORE"}
    ours = np.array(plant.fetch("SELECT ln(seconds), ln(megabytes) FROM plant.jobs ORDER BY _seq DESC LIMIT 1000"), float)
    spots = find_hotspots(ours, window_size=1000, scan_radius=0.15, minimum_points=20)
    assert len(spots) >= 2 and spots[0].points >= 20


def test_orders_per_day_are_scored_inside_a_statement(mysql_pipeline: Pipeline) -> None:
    """Orders in MySQL, a model over a query that groups them by day, scored in the same kind of query: one day stands out."""
    pipeline = mysql_pipeline
    database = pipeline.source.name
    rng = np.random.default_rng(2)
    pipeline.source.execute(
        "CREATE TABLE orders (id INT PRIMARY KEY AUTO_INCREMENT, ordered_at DATETIME, amount DECIMAL(10, 2))"
    )
    rows = []
    for day in range(120):
        for _ in range(int(rng.normal(30, 3)) * (3 if day == 100 else 1)):
            at = f"2026-{1 + day // 28:02}-{1 + day % 28:02} {rng.integers(0, 24):02}:{rng.integers(0, 60):02}:00"
            rows.append(f"('{at}', {rng.gamma(4.0, 12.0):.2f})")
    pipeline.source.execute(f"INSERT INTO orders (ordered_at, amount) VALUES {', '.join(rows)}")
    pipeline.catch_up()
    days = f'SELECT ordered_at::date AS day, count(*) AS orders, avg(amount) AS basket FROM "{database}".orders GROUP BY 1'
    pipeline.conn.execute(
        "SELECT scorer.create_model('orders_per_day', NULL, %s, ARRAY['orders', 'basket'],"
        ' parameters => \'{"samples": 64, "min_rows": 100}\')',
        (days,),
    )
    catch_up(pipeline.settings, Stop(), Progress())
    found = pipeline.fetch(
        f"SELECT day, orders, score FROM ({days}) AS d, scorer.score('orders_per_day', ARRAY[orders, basket]) AS score"
        " WHERE score > (SELECT threshold FROM models WHERE name = 'orders_per_day') ORDER BY score DESC"
    )
    assert str(found[0][0]) == "2026-04-17" and found[0][1] > 70 and len(found) < 8
    assert pipeline.fetch("SELECT state, tables FROM model_info") == [("READY", None)]
