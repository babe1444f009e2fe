"""The binary array format, without a server."""

import struct

import numpy as np
import pytest

from scorer.arrays import Float8Array, Int4Array, parse_copy, parse_vectors
from scorer.arrays import _Float8Dumper as Float8Dumper
from scorer.arrays import _Int4Dumper as Int4Dumper


def test_vectors_come_back_as_they_were_dumped() -> None:
    """What the dumper writes, concatenated, is what the parser reads, bit for bit."""
    rows = np.array([[1.5, np.nan, -0.0], [np.inf, 5e-324, 1e308]])
    packed = b"".join(bytes(Float8Dumper(Float8Array).dump(Float8Array(row))) for row in rows)
    assert parse_vectors(packed, 3).tobytes() == rows.tobytes()


def test_an_empty_array_has_no_dimension() -> None:
    """Postgres refuses a dimension of length 0."""
    assert bytes(Int4Dumper(Int4Array).dump(Int4Array(np.array([], np.int32)))) == struct.pack(">iii", 0, 0, 23)


def test_half_a_vector_is_refused() -> None:
    """Bytes that are cut short never become rows."""
    packed = bytes(Float8Dumper(Float8Array).dump(Float8Array(np.ones(3))))
    with pytest.raises(ValueError):
        parse_vectors(packed[:-1], 3)


def test_copy_rows_are_read_between_signature_and_trailer() -> None:
    """The signature may have an extension; the trailer is no row."""
    cells = b"".join(struct.pack(">id", 8, value) for value in (1.0, 2.0))
    row = struct.pack(">h", 2) + cells
    data = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 4) + b"past" + row + row + struct.pack(">h", -1)
    assert parse_copy(data, 2).tolist() == [[1.0, 2.0], [1.0, 2.0]]
