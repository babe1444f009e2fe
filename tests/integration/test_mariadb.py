"""What only MariaDB has: collations of several character sets, and times in their old layout."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.servers import MariaDBServer
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database


@pytest.fixture
def mariadb_pipeline(mariadb_server: MariaDBServer, database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """From MariaDB to an empty warehouse."""
    with make_source_database(mariadb_server) as source, make_pipeline(source, database, tmp_path) as made:
        yield made


def test_collations_of_several_character_sets(mariadb_pipeline: Pipeline) -> None:
    """Their numbers stand in the table map, but not in the usual list of collations."""
    mariadb_pipeline.source.execute(
        "CREATE TABLE words (id INT PRIMARY KEY, a VARCHAR(20) COLLATE utf8mb4_uca1400_ai_ci,"
        " b TEXT COLLATE ucs2_uca1400_as_cs, c ENUM('é', 'ü') COLLATE utf8mb3_uca1400_ai_ci)",
        "INSERT INTO words VALUES (1, 'größe', 'ж', 'é')",
    )
    mariadb_pipeline.catch_up()
    mariadb_pipeline.source.execute("INSERT INTO words VALUES (2, 'größe', 'ж', 'é')")
    mariadb_pipeline.catch_up()
    mariadb_pipeline.assert_equal("words")


def test_times_in_their_old_layout(mariadb_pipeline: Pipeline) -> None:
    """Tables made with mysql56_temporal_format = OFF, as old servers left them, without fractions."""
    source = mariadb_pipeline.source
    try:
        source.execute(
            "SET GLOBAL mysql56_temporal_format = OFF",
            "CREATE TABLE old (id INT PRIMARY KEY, a TIME, b DATETIME, c TIMESTAMP NULL)",
        )
    finally:
        source.execute("SET GLOBAL mysql56_temporal_format = ON")
    values = "'-838:59:58', '2024-02-29 23:59:58', '2038-01-19 03:14:07'), ({}, '00:00:01', '0001-01-01 00:00:00', NULL)"
    source.execute("INSERT INTO old VALUES (1, " + values.format(2))
    mariadb_pipeline.catch_up()
    source.execute("INSERT INTO old VALUES (3, " + values.format(4), "UPDATE old SET id = 5 WHERE id = 3")
    mariadb_pipeline.catch_up()
    assert mariadb_pipeline.state("old") == ("Synced", None)
    printed = mariadb_pipeline.read_mirror("old", "id, extract(epoch FROM a)::bigint, b::text, c::text")
    first = (-(838 * 3600 + 59 * 60 + 58), "2024-02-29 23:59:58", "2038-01-19 03:14:07+00")
    second = (1, "0001-01-01 00:00:00", None)
    assert printed == [(1, *first), (2, *second), (4, *second), (5, *first)]
