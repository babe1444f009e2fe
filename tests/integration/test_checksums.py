"""Checksums of the binlog that are switched off and on while there are files of both kinds still to be read."""

import contextlib
from collections.abc import Iterator

from tests.fixtures.pipeline import Pipeline


@contextlib.contextmanager
def keeping_checksums(pipeline: Pipeline) -> Iterator[None]:
    """Give the server its setting back."""
    try:
        yield
    finally:
        pipeline.source.execute("SET GLOBAL binlog_checksum = CRC32")


def test_files_with_and_without_checksums(pipeline: Pipeline) -> None:
    """Whatever the setting is when the stream opens, files of both kinds are read to their end."""
    pipeline.source.execute("CREATE TABLE readings (id INT PRIMARY KEY, a INT)")
    pipeline.catch_up()
    number = 0
    with keeping_checksums(pipeline):
        for opened_with in ("CRC32", "NONE"):
            for written_with in ("NONE", "CRC32", "NONE"):
                number += 1
                statement = f"INSERT INTO readings VALUES ({number}, {number})"
                pipeline.source.execute(f"SET GLOBAL binlog_checksum = {written_with}", statement, "FLUSH BINARY LOGS")
            pipeline.source.execute(f"SET GLOBAL binlog_checksum = {opened_with}", "UPDATE readings SET a = a + 1")
            pipeline.catch_up()
            pipeline.assert_equal("readings")
