"""What an ALTER TABLE says: every clause that may be followed in place, and that a single unknown word means a copy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.alter import parse_alter
from replicator.definition import ColumnType, parse_type


def read(clauses: str, *, mariadb: bool = False) -> list[tuple[str, str, str]] | None:
    """Verb, name and new name of each clause."""
    found = parse_alter(f"ALTER TABLE d.`t` {clauses}", mariadb=mariadb)
    return None if found is None else [(clause.verb, clause.name, clause.new_name) for clause in found]


@pytest.mark.parametrize(
    ("clauses", "expected"),
    [
        ("ADD c INT", [("add", "c", "")]),
        ("ADD COLUMN (a INT, `b c` VARCHAR(3)), DROP d", [("add", "a", ""), ("add", "b c", ""), ("drop", "d", "")]),
        ("DROP COLUMN `index`, DROP INDEX i", [("drop", "index", ""), ("index", "", "")]),
        ("CHANGE a b INT AFTER c, MODIFY d DATE FIRST", [("change", "a", "b"), ("change", "d", "d")]),
        ("RENAME COLUMN a TO b, RENAME INDEX i TO j", [("rename", "a", "b"), ("nothing", "", "")]),
        ("DROP PRIMARY KEY, ADD PRIMARY KEY (a, b(10) DESC)", [("key", "", ""), ("key", "", "")]),
        ("CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", [("charset", "", "utf8mb4")]),
        ("COMMENT 'DROP COLUMN a', ENGINE=InnoDB ROW_FORMAT=DYNAMIC", [("nothing", "", "")] * 2),
        ("ADD CONSTRAINT c CHECK (a > 1), ADD UNIQUE KEY (a)", [("index", "", "")] * 2),
        ("REORGANIZE PARTITION p, q INTO (PARTITION r VALUES LESS THAN (9))", [("nothing", "", "")]),
        ("/* DROP a, */ ADD b INT -- , DROP c", [("add", "b", "")]),
    ],
)
def test_clauses(clauses: str, expected: list[tuple[str, str, str]]) -> None:
    """Verbs and names, whatever stands around them."""
    assert read(clauses) == expected


@pytest.mark.parametrize(
    "clauses",
    [
        "ADD c INT /*!80000 DEFAULT 3 */", "ADD c VARCHAR(3) DEFAULT 'a\\\\b'", "ADD c SERIAL", "ADD c INT MYSTERY",
        "RENAME TO u",
        "ENGINE=BLACKHOLE", "DROP PARTITION p", "TRUNCATE PARTITION p", "EXCHANGE PARTITION p WITH TABLE u",
        "DISCARD TABLESPACE",
        "ADD c FLOAT(30)", "ADD c TEXT(30)", "ADD", "ADD c", "ADD c ENUM(", "ADD c INT PRIMARY KEY", "ADD SYSTEM VERSIONING",
        "ORDER BY a, DROP b", "ADD c INT DEFAULT _latin1'x'", 'DROP "c"',
    ],
)  # fmt: skip
def test_unknown_words(clauses: str) -> None:
    """Nobody can say what these leave of the rows."""
    assert read(clauses) is None


def test_ignored_duplicates() -> None:
    """MariaDB's ALTER IGNORE takes rows away without logging them."""
    assert parse_alter("ALTER IGNORE TABLE t ADD UNIQUE (a)", mariadb=True) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int(11) unsigned zerofill", ColumnType("int", unsigned=True)),
        ("enum('a','b''c')", ColumnType("enum", labels=("a", "b'c"))),
        ("decimal(10,2)", ColumnType("decimal", (10, 2))),
        ("tinyint(1)", ColumnType("tinyint")),
        ("timestamp(3)", ColumnType("timestamp", (3,))),
        ("datetime /* mariadb-5.3 */", None),
        ("geometrycollection", ColumnType("geometrycollection")),
    ],
)
def test_types(text: str, expected: ColumnType | None) -> None:
    """Types as information_schema prints them."""
    assert parse_type(text, mariadb=False) == expected


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    """Whatever stands in a statement, it does not stop the stream."""
    parse_alter(f"ALTER TABLE t {text}", mariadb=True)
    parse_type(text, mariadb=False)


@given(
    st.lists(st.sampled_from(
        ["ADD", "COLUMN", "c", "`a b`", "INT", "VARCHAR", "(", "3", ")", ",", "DEFAULT", "NULL", "NOT", "DROP", "MODIFY",
         "CHANGE",
         "PRIMARY", "KEY", "FIRST", "AFTER", "'x'", "ENUM", "CONVERT", "TO", "CHARACTER", "SET", "=", "ENGINE", "-", "AS"]
    ), max_size=12)
)  # fmt: skip
def test_no_sequence_of_words_raises(words: list[str]) -> None:
    """Half clauses and nonsense made of the words that matter."""
    parse_alter("ALTER TABLE t " + " ".join(words), mariadb=False)
