"""The replicator dies at its crash points under load, and every next one goes on: nothing lost, nothing twice.

All points, again and again and at random moments: `python -m tests.faults.soak --kills 200`.
"""

import random

from tests.fixtures.churn import Churn, assert_same
from tests.fixtures.pipeline import Pipeline

POINTS = ("decode", "after_rows", "before_commit", "after_commit", "truncate", "between_slices", "end_copy")


def test_crash_points(mysql_pipeline: Pipeline) -> None:
    """One death at each point, at the first or a later time, while rows come, go and are copied."""
    pipeline = mysql_pipeline
    pipeline.configure(replicator={"batch_rows": 50})
    moments = random.Random(5)
    churn = Churn(pipeline, seed=1)
    pipeline.catch_up()
    churn.start()
    for point in POINTS:
        if point in ("between_slices", "end_copy"):
            pipeline.conn.execute("SELECT resync(%s)", (f"{pipeline.source.name}.copied",))
        nth = 1 if point in ("between_slices", "end_copy") else moments.randint(1, 3)
        service = pipeline.start("replicator", "run", TAILRACE_CRASH_AT=f"{point}:{nth}")
        pipeline.wait_until(lambda service=service: service.process.poll() is not None)  # type: ignore[misc]
        assert service.process.returncode == -9, f"{point}: {service.read_log()}"
        assert "Traceback" not in service.read_log()
    churn.stop()
    pipeline.catch_up()
    assert_same(pipeline)
