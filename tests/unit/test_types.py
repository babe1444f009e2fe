"""The table of types: whole, consistent, and what docs/types.md says."""

import subprocess
import sys
from pathlib import Path

import pytest

from replicator.typemap import INET_WIDTHS, KINDS, RULES, Column, Kind, Rule, recognize

ROOT = Path(__file__).parent.parent.parent
# Manuals of MySQL 9.7 and MariaDB 10.11, "Data Types", as information_schema.COLUMNS.DATA_TYPE names them.
DATA_TYPES = (
    "tinyint smallint mediumint int bigint decimal float double bit year date time datetime timestamp"
    " char varchar binary varbinary tinytext text mediumtext longtext tinyblob blob mediumblob longblob enum set json vector"
    " geometry point linestring polygon multipoint multilinestring multipolygon geomcollection geometrycollection"
    " uuid inet4 inet6"
)


def test_page_is_made_from_the_table() -> None:
    """docs/types.md is what the tool prints."""
    command = [sys.executable, str(ROOT / "tools/make-types")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/types.md").read_text() == printed, "run: .venv/bin/python tools/make-types > docs/types.md"


def test_every_type_of_the_servers_has_a_rule() -> None:
    """No type of either server is missing, and the table names none that they lack."""
    assert set(KINDS) == set(DATA_TYPES.split())


def test_every_kind_has_a_rule() -> None:
    """A kind without a rule would be a column without a mirror."""
    assert {rule.kind for rule in RULES} == set(Kind) - {Kind.UNSUPPORTED}
    assert len({(rule.kind, rule.variant) for rule in RULES}) == len(RULES)
    assert Column("c", Kind.UNSUPPORTED).mirror_type is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind.name} {rule.variant}".strip())
def test_a_column_finds_its_rule(rule: Rule) -> None:
    """By its kind, its sign and its labels' character set."""
    charset = "binary" if rule.variant == "binary" else "utf8mb4"
    column = Column("c", rule.kind, unsigned=rule.variant == "unsigned", charset=charset, width=3, precision=10, scale=2)
    assert column.rule is rule
    assert "{" not in str(column.mirror_type)


def test_an_unsigned_column_without_a_rule_of_its_own_is_like_the_signed_one() -> None:
    """DECIMAL UNSIGNED, DOUBLE UNSIGNED and YEAR have nothing to gain."""
    for kind in (Kind.DECIMAL, Kind.DOUBLE, Kind.FLOAT, Kind.YEAR):
        assert Column("c", kind, unsigned=True).mirror_type == Column("c", kind).mirror_type


def test_types_that_table_maps_do_not_tell_apart() -> None:
    """BINARY(16), UUID and INET6 are the same in the binlog; what information_schema said decides."""
    fixed = [Column(name, Kind.BYTES, charset="binary", width=16) for name in ("b", "u", "i", "new")]
    short = [Column(name, Kind.BYTES, charset="binary", width=4) for name in ("b4", "i4", "u4")]
    known = {"b": "bytea", "u": "uuid", "i": "inet", "b4": "bytea", "i4": "inet", "u4": "uuid"}
    kinds = {column.name: column.kind for column in recognize([*fixed, *short], known)}
    assert kinds == {
        "b": Kind.BYTES, "u": Kind.UUID, "i": Kind.INET, "new": Kind.BYTES, "b4": Kind.BYTES, "i4": Kind.INET,
        # four bytes are no UUID: the column was another one, and the table map does not fit the mirror
        "u4": Kind.BYTES,
    }  # fmt: skip
    assert set(INET_WIDTHS.values()) == {4, 16}
    text = Column("u", Kind.TEXT, charset="utf8mb4", width=16)
    assert recognize([text], known) == (text,)
