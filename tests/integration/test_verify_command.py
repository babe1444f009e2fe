"""The command `replicator verify`: its exit codes and its report, beside a running replicator and without one."""

import json

from tests.fixtures.pipeline import Pipeline


def test_exit_codes(mysql_pipeline: Pipeline) -> None:
    """0 where all is equal, 3 where something differs, 0 again once it is repaired; 2 for a table that there is not."""
    pipeline = mysql_pipeline
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT, secret TEXT)")
    pipeline.source.execute("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, NULL)")
    # a column that is left out is no difference
    pipeline.configure(source={"excluded_columns": [f"{pipeline.source.name}.t.secret"]})
    pipeline.source.execute("CREATE TABLE u (v INT)")
    pipeline.catch_up()
    name, mirror = pipeline.source.name, f'"{pipeline.source.name}".t'
    # nobody replicates: the command does, as long as it takes
    pipeline.source.execute("INSERT INTO t VALUES (3, 3, 'c')")
    done = pipeline.run("replicator", "verify", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(each["table"], each["state"], each["rows"]) for each in found] == [
        (f"{name}.t", "Equal", 3),
        (f"{name}.u", "Equal", 0),
    ]
    assert pipeline.status("state") == "Stopped"
    with pipeline.following():
        pipeline.conn.execute(f"UPDATE {mirror} SET v = 7 WHERE id = 2")
        done = pipeline.run("replicator", "verify", f"{name}.t")
        assert done.returncode == 3
        assert f"{name}.t: Drifted, 3 rows" in done.stdout
        assert "1 different" in done.stdout
        assert "warehouse.drift" in done.stderr
        done = pipeline.run("replicator", "verify", "--repair", "--rows-per-s", "1000", f"{name}.t")
        assert done.returncode == 0, done.stderr
        assert "1 different, 1 repaired" in done.stdout
        assert pipeline.status("state") == "Streaming"
    assert pipeline.read_mirror("t") == [(1, 1, None), (2, 2, None), (3, 3, None)]
    assert pipeline.run("replicator", "verify", "no.such").returncode == 2
