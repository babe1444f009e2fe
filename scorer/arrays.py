"""Whole numpy arrays as Postgres parameters and results, in the binary format.

Owns the layout of one-dimensional arrays on the wire (PostgreSQL source, array_send and array_recv in arrayfuncs.c).
Never loops over elements in Python.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from psycopg import pq
from psycopg.adapt import Buffer, Dumper

from warehouse.db import Connection

_HEADER = struct.Struct(">iiIii")  # dimensions, has nulls, element type, length, lower bound
_EMPTY = struct.Struct(">iiI")
_FLOAT8 = 701


class PgArray:
    """A one-dimensional numpy array to be sent as a Postgres array; NaN stays NaN, nothing is NULL."""

    wire: ClassVar[np.dtype[Any]]
    element_oid: ClassVar[int]

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values


class Float8Array(PgArray):
    """double precision[]"""

    wire = np.dtype(">f8")
    element_oid = _FLOAT8


class Int8Array(PgArray):
    """bigint[]"""

    wire = np.dtype(">i8")
    element_oid = 20


class Int4Array(PgArray):
    """integer[]"""

    wire = np.dtype(">i4")
    element_oid = 23


class _ArrayDumper(Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: PgArray) -> Buffer:
        """The array as array_recv takes it."""
        if not len(obj.values):
            return _EMPTY.pack(0, 0, obj.element_oid)
        body = np.empty(len(obj.values), [("length", ">i4"), ("value", obj.wire)])
        body["length"] = obj.wire.itemsize
        body["value"] = obj.values
        return _HEADER.pack(1, 0, obj.element_oid, len(obj.values), 1) + body.tobytes()


class _Float8Dumper(_ArrayDumper):
    oid = 1022


class _Int8Dumper(_ArrayDumper):
    oid = 1016


class _Int4Dumper(_ArrayDumper):
    oid = 1007


def register_arrays(conn: Connection) -> None:
    """Let this connection take the classes above as parameters."""
    conn.adapters.register_dumper(Float8Array, _Float8Dumper)
    conn.adapters.register_dumper(Int8Array, _Int8Dumper)
    conn.adapters.register_dumper(Int4Array, _Int4Dumper)


def parse_vectors(data: bytes, width: int) -> NDArray[np.float64]:
    """Decode concatenated array_send() of double precision[] values of one length, none NULL.

    Args:
        data: the concatenation, in the order of the rows.
        width: elements of each array.

    Returns:
        Shape (rows, width), float64.

    Raises:
        ValueError: the bytes are not a whole number of such arrays.
    """
    record = np.dtype([("header", f"V{_HEADER.size}"), ("cells", [("length", ">i4"), ("value", ">f8")], (width,))])
    return np.frombuffer(data, record)["cells"]["value"].astype(np.float64)


def parse_copy(data: bytes, width: int) -> NDArray[np.float64]:
    """Decode COPY ... (FORMAT binary) of `width` double precision columns, none NULL.

    Args:
        data: everything that COPY sent: signature, rows, trailer.
        width: columns.

    Returns:
        Shape (rows, width), float64.

    Raises:
        ValueError: the bytes are not such rows.
    """
    extension = struct.unpack_from(">i", data, 15)[0]
    body = memoryview(data)[19 + extension : -2]
    record = np.dtype([("columns", ">i2"), ("cells", [("length", ">i4"), ("value", ">f8")], (width,))])
    return np.frombuffer(body, record)["cells"]["value"].astype(np.float64)
