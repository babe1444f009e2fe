"""What the answers of information_schema say of a table's key."""

import pytest

from replicator.errors import SourceUnavailable
from replicator.information_schema import parse_key
from replicator.typemap import Column, Kind

COLUMNS = [Column(name, Kind.LONG) for name in ("a", "b", "c")]


def test_the_first_index_that_identifies_a_row_is_the_key() -> None:
    """Not one over an expression, nor one of which a column may be NULL; its columns in the index's order."""
    expression, nullable = [("e", None, ""), ("e", "a", "")], [("n", "a", ""), ("n", "b", "YES")]
    assert parse_key([*expression, *nullable, ("u", "c", ""), ("u", "a", ""), ("v", "b", "")], COLUMNS) == (2, 0)
    assert parse_key([*expression, *nullable], COLUMNS) == ()


def test_an_index_of_another_moment_is_told() -> None:
    """The table was altered between the two questions; the answers say nothing together."""
    with pytest.raises(SourceUnavailable):
        parse_key([("PRIMARY", "renamed", "")], COLUMNS)
