"""Random DDL between random rows, with a fixed seed: nothing stops the stream, and both sides end equal."""

from tests.faults.ddl_fuzz import run_fuzz
from tests.fixtures.pipeline import Pipeline


def test_random_ddl(pipeline: Pipeline) -> None:
    """A few dozen statements, some while the replicator is away; ddl_fuzz.py is the long version."""
    fuzz = run_fuzz(pipeline, seed=1, statements=30, every=30)
    assert fuzz.ddl >= 30
    assert sum(fuzz.done.values()) > fuzz.ddl, "rows were changed, too"
