"""The oracle: a value that came by the stream, the same value copied by a snapshot, and what the server prints are one."""

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.column_types import Table, Type, tables
from tests.fixtures.pipeline import Pipeline
from tests.oracle import EXAMPLES, check, expected_raw, normal_source


@EXAMPLES
@given(made=st.lists(tables(), min_size=6, max_size=6))
def test_stream_and_copy_and_server_agree(pipeline: Pipeline, made: list[Table]) -> None:
    """Tables and values of all covered types."""
    check(pipeline, made)


def test_every_type_with_its_edges(pipeline: Pipeline) -> None:
    """Each kind of column, its extremes in one table each; 300 columns in another."""
    fixed = [
        [Type("TINYINT", "number", st.none()), Type("BIGINT UNSIGNED", "number", st.none())],
    ]
    rows = ((-128, 0), (127, 2**64 - 1), (None, None), (0, 2**63))
    check(pipeline, [Table(0, tuple(fixed[0]), rows), wide_table(300), latin1_table(), fraction_table()])


def wide_table(columns: int) -> Table:
    """More columns than one byte of bitmap, one byte of length."""
    types = tuple(Type("INT", "number", st.none()) for _ in range(columns))
    return Table(0, types, (tuple(range(columns)), (None,) * columns, tuple(None if n % 3 else -n for n in range(columns))))


def latin1_table() -> Table:
    """Every byte of latin1 but NUL, those without a character in cp1252 too."""
    text = bytes(range(1, 256)).decode("cp1252", "ignore")
    return Table(0, (Type("VARCHAR(300) CHARACTER SET latin1", "text", st.none()),), ((text,), ("a\0b",), ("",)))


def fraction_table() -> Table:
    """Every number of fractional digits, on both sides of zero."""
    types = tuple(Type(f"TIME({n})", "span", st.none()) for n in range(7))
    rows = tuple(
        (value,) * 7 for value in ("-00:00:00.1", "-00:00:00.9", "-01:02:03.456789", "00:00:00.5", "-838:59:59", "12:00:00")
    )
    return Table(0, types, rows)


def test_twin_normalises() -> None:
    """The comparison itself: spans in microseconds, fractions to six digits, NUL as its sign."""
    assert normal_source("span", "-00:00:00.10", 0) == "-100000"
    assert normal_source("span", "838:59:59", 0) == str((838 * 3600 + 59 * 60 + 59) * 1_000_000)
    assert normal_source("instant", "2024-01-01 00:00:00.5", 0) == "2024-01-01 00:00:00.500000"
    assert normal_source("text", "610062", 0) == "61E2908062"
    assert normal_source("bit", "5", 4) == "0101"
    assert expected_raw("date", "2024-00-10", None) == "2024-00-10"
    assert expected_raw("date", "2024-02-29", None) is None
    assert math.copysign(1, struct.unpack("!d", normal_source("float", -0.0, 0))[0]) == -1
