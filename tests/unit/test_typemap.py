"""Mirror types, and names that are too long for Postgres."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.typemap import BINARY, Column, Kind, mirror_identifier


@pytest.mark.parametrize(
    ("column", "mirror"),
    [
        (Column("c", Kind.TINY), "smallint"),
        (Column("c", Kind.TINY, unsigned=True), "smallint"),
        (Column("c", Kind.SHORT, unsigned=True), "integer"),
        (Column("c", Kind.INT24, unsigned=True), "integer"),
        (Column("c", Kind.LONG, unsigned=True), "bigint"),
        (Column("c", Kind.LONGLONG), "bigint"),
        (Column("c", Kind.LONGLONG, unsigned=True), "numeric(20,0)"),
        (Column("c", Kind.DECIMAL, precision=65, scale=30), "numeric(65,30)"),
        (Column("c", Kind.DECIMAL, unsigned=True, precision=5, scale=2), "numeric(5,2)"),
        (Column("c", Kind.FLOAT, unsigned=True), "real"),
        (Column("c", Kind.TIME, scale=6), "interval"),
        (Column("c", Kind.TIMESTAMP), "timestamptz"),
        (Column("c", Kind.DATETIME), "timestamp"),
        (Column("c", Kind.TEXT, charset="gbk"), "text"),
        (Column("c", Kind.BYTES, charset=BINARY), "bytea"),
        (Column("c", Kind.BIT, width=11), "bit(11)"),
        (Column("c", Kind.YEAR), "smallint"),
        (Column("c", Kind.UNSUPPORTED), None),
    ],
)
def test_mirror_types(column: Column, mirror: str | None) -> None:
    """Wide enough for every value, and none for what is not covered."""
    assert column.mirror_type == mirror


def test_old_times_become_what_the_new_ones_do() -> None:
    """A table keeps its mirror when its server rebuilds it with the newer layout."""
    pairs = ((Kind.OLD_TIME, Kind.TIME), (Kind.OLD_DATETIME, Kind.DATETIME), (Kind.OLD_TIMESTAMP, Kind.TIMESTAMP))
    for old, new in pairs:
        assert Column("c", old).mirror_type == Column("c", new).mirror_type


def test_only_the_unknown_kind_has_no_mirror() -> None:
    """The table of types is total."""
    assert [kind for kind in Kind if Column("c", kind).mirror_type is None] == [Kind.UNSUPPORTED]


@given(st.text(min_size=1, max_size=64), st.text(min_size=1, max_size=64))
def test_names_stay_distinct_and_fit(first: str, second: str) -> None:
    """At most 63 bytes of UTF-8, short names unchanged, different names different."""
    for name in (first, second):
        assert len(mirror_identifier(name).encode()) <= 63
        if len(name.encode()) <= 63:
            assert mirror_identifier(name) == name
    assert (mirror_identifier(first) == mirror_identifier(second)) == (first == second)


def test_long_names_that_differ_at_their_end() -> None:
    """64 characters, which MySQL allows: Postgres alone would cut both to the same."""
    first, second = "x" * 63 + "1", "x" * 63 + "2"
    assert mirror_identifier(first) != mirror_identifier(second)
    assert mirror_identifier("é" * 64).startswith("é" * 27 + "_")
