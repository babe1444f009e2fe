"""Questions to the source."""

from concurrent.futures import ThreadPoolExecutor

from replicator.source import Source
from tests.fixtures.pipeline import Pipeline


def test_threads_share_the_connection_for_questions(mysql_pipeline: Pipeline) -> None:
    """The stream's thread and the main one ask at the same time; each gets its own answer."""
    source = Source(mysql_pipeline.settings.source)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: source.query("SELECT %s", (number,)), range(400)))
    finally:
        source.close()
    assert answers == [[(number,)] for number in range(400)]
