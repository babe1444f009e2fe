"""Character sets of several bytes: every character, and keys with codes of every length."""

from collections.abc import Sequence
from typing import Any

import pytest

from replicator.charsets import Charsets
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.servers import SourceServer


@pytest.mark.parametrize("charset", ["big5", "eucjpms", "euckr", "gb18030", "gb2312", "gbk", "sjis", "ujis", "cp932"])
def test_every_character_is_the_servers(source_server: SourceServer, charset: str, source_database: Any) -> None:
    """Every character of the basic plane that a set of several bytes has, from the server's bytes to its text."""
    known = {name for (name,) in source_database.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
    if charset not in known:
        assert (source_server.name, charset) == ("mariadb", "gb18030")
        return
    limit = "max_recursive_iterations" if source_server.name == "mariadb" else "cte_max_recursion_depth"
    with source_database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SET SESSION sql_mode = '', {limit} = 70000")
        cursor.execute(
            "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 65535), c (x, b) AS ("
            f"SELECT x, CONVERT(CHAR(x USING ucs2) USING {charset}) FROM n WHERE x NOT BETWEEN 55296 AND 57343)"
            " SELECT x, HEX(b), HEX(CONVERT(b USING utf8mb4)) FROM c"
        )
        rows = cursor.fetchall()
    charsets = Charsets({}, {})
    checked = 0
    for x, stored, printed in rows:
        if stored is None or (printed == "3F" and x != 0x3F):
            continue
        text = bytes.fromhex(printed).decode()
        if text == "\N{REPLACEMENT CHARACTER}":
            # seven codes of big5, which the server itself cannot print
            continue
        assert charsets.decode(bytes.fromhex(stored), charset) == (text, True), (hex(x), stored)
        checked += 1
    assert checked > 6000


# Of each set characters with codes of one, two, three and four bytes, user-defined and supplementary ones among them.
LONG_CODES = {
    "ujis": {1: "az", 2: "あｱ彁", 3: "é丂\ue3ac\ue757"},
    "eucjpms": {1: "az", 2: "あｱ①", 3: "é丂ⅰ黑\ue3ac"},
    "gb18030": {1: "az", 2: "中€", 4: "ñ㐅\ue7c7\uffff\U00010000😀\U0010ffff"},
}


@pytest.mark.parametrize("charset", LONG_CODES)
def test_keys_with_codes_of_every_length(pipeline: Pipeline, charset: str) -> None:
    """Rows are copied, inserted, changed, re-keyed and deleted by such keys; pages and comparisons go on from them."""
    source = pipeline.source
    known = {name for (name,) in source.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
    if charset not in known:
        assert (source.server.name, charset) == ("mariadb", "gb18030")
        return
    texts = [text for size, texts in LONG_CODES[charset].items() for text in texts if measure(pipeline, charset, text) == size]
    assert len(texts) == sum(map(len, LONG_CODES[charset].values()))
    pipeline.configure(replicator={"snapshot_page_rows": 2, "snapshot_slice_rows": 2})
    for name in ("c", "s"):
        source.execute(f"CREATE TABLE {name} (k VARCHAR(9) CHARACTER SET {charset} COLLATE {charset}_bin PRIMARY KEY, n INT)")
    insert_texts(pipeline, "c", texts)
    pipeline.catch_up()
    insert_texts(pipeline, "s", texts)
    source.execute("UPDATE s SET n = n + 1", "UPDATE s SET k = CONCAT(k, k) WHERE n % 2 = 0", "UPDATE c SET k = CONCAT(k, 'x')")
    source.execute("DELETE FROM c WHERE n % 3 = 0", "DELETE FROM s WHERE n % 3 = 0")
    with pipeline.following():
        pipeline.sync()
        for name in ("c", "s"):
            pipeline.fetch("SELECT warehouse.verify(%s)", f"{source.name}.{name}")
        pipeline.wait_until(lambda: pipeline.fetch("SELECT state FROM warehouse.verifications") == [("Equal",)] * 2)
    pipeline.assert_equal("c", "s", order="n")
    assert pipeline.fetch("SELECT count(*) FROM warehouse.quarantine") == [(0,)]


def measure(pipeline: Pipeline, charset: str, text: str) -> int:
    """How many bytes a character takes in a set."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT LENGTH(CONVERT(%s USING {charset}))", (text,))
        return int(cursor.fetchone()[0])


def insert_texts(pipeline: Pipeline, table: str, texts: Sequence[str]) -> None:
    """A row for each text, and one where it stands between others."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        for n, text in enumerate(texts):
            cursor.execute(f"INSERT INTO {table} VALUES (%s, %s), (%s, %s)", (text, n, f"q{text}q", 100 + n))
