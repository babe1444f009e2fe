"""The command `replicator` where something is missing."""

from tests.fixtures.pipeline import Pipeline


def test_run_before_migrate(mysql_pipeline: Pipeline) -> None:
    """A warehouse without the schema is an operator's matter, named as such."""
    with mysql_pipeline.database.connect(autocommit=True) as conn:
        conn.execute("DROP SCHEMA warehouse, scorer, analytics CASCADE")
    ended = mysql_pipeline.run("replicator", "run", "--until-caught-up")
    assert ended.returncode == 3
    assert "warehouse migrate" in ended.stderr


def test_snapshot_of_an_unknown_table(mysql_pipeline: Pipeline) -> None:
    """A table that the warehouse does not know is refused with where to look; a known one is asked for."""
    mysql_pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    mysql_pipeline.catch_up()
    ended = mysql_pipeline.run("replicator", "snapshot", "nowhere.t")
    assert (ended.returncode, "table_status" in ended.stderr) == (2, True)
    ended = mysql_pipeline.run("replicator", "snapshot", "--json", f"{mysql_pipeline.source.name}.t")
    assert (ended.returncode, '"requested": "snapshot"' in ended.stdout) == (0, True)
