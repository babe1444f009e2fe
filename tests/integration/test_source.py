"""Questions to the source."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from demo.servers import MariaDBServer, MySQLServer
from replicator.errors import SourceUnavailable
from replicator.source import Source
from tests.fixtures.pipeline import Pipeline
from warehouse.settings import SourceSettings


def test_threads_share_the_connection_for_questions(mysql_pipeline: Pipeline) -> None:
    """The stream's thread and the main one ask at the same time; each gets its own answer."""
    source = Source(mysql_pipeline.settings.source)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: source.query("SELECT %s", (number,)), range(400)))
    finally:
        source.close()
    assert answers == [[(number,)] for number in range(400)]


def test_the_version_is_asked_once_over_each_connection(mysql_server: MySQLServer, mariadb_server: MariaDBServer) -> None:
    """Nothing is asked for it again on the same connection; behind the next one another server may answer."""

    def connect(server: MySQLServer | MariaDBServer) -> Source:
        password = SecretStr(server.password)
        return Source(SourceSettings(host=server.host, port=server.port, user=server.user, password=password))

    def count_questions() -> int:
        return int(source.query("SHOW SESSION STATUS LIKE 'Questions'")[0][1])

    source, other = connect(mysql_server), connect(mariadb_server)
    try:
        assert source.flavor == "mysql"
        before = count_questions()
        assert (source.flavor, source.version) == ("mysql", source.version)
        assert count_questions() == before + 1
        # the same address, behind which another server has taken over
        source.settings, source.server = other.settings, other.server
        with pytest.raises(SourceUnavailable):
            source.query("KILL CONNECTION_ID()")
        assert source.flavor == "mariadb"
        source.settings = connect(mysql_server).settings
        source.use(source.settings.servers[0])
        assert source.flavor == "mysql"
    finally:
        source.close()
