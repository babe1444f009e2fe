"""Which column types hold every value of which others, as what the mirror has them, and what defaults of them are worth.

What is said of a type as it is written, without the table around it. Pure.
"""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal, InvalidOperation

from replicator.definition import ColumnType, Definition
from replicator.typemap import BINARY, KINDS, UUID_WIDTH, Column, Kind

_RANGES = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
# Of what a text type holds, in characters or bytes.
TEXT_BYTES = {"tinytext": 255, "text": 65_535, "mediumtext": 16_777_215, "longtext": 4_294_967_295}
_BLOB_BYTES = {"tinyblob": 255, "blob": 65_535, "mediumblob": 16_777_215, "longblob": 4_294_967_295}
MOST_CHARACTER_BYTES = 4
_INTEGER = re.compile("-?[0-9]{1,20}")
WITH_CHARSET = frozenset({Kind.TEXT, Kind.ENUM, Kind.SET})
# What a column that must have a value, and has no default, gets in the rows that are there.
IMPLICIT = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double"), "0"),
    **dict.fromkeys(("varchar", "char", "tinytext", "text", "mediumtext", "longtext", "set"), ""),
}


def find_mirror_type(type_: ColumnType) -> str | None:
    """The mirror's type; None where the name alone does not say it."""
    kind = KINDS[type_.base]
    first = type_.numbers[0] if type_.numbers else 0
    if kind in WITH_CHARSET and type_.charset == BINARY:
        return None
    precision, scale = type_.numbers if kind is Kind.DECIMAL else (0, 0)
    width = first if kind is Kind.BIT else UUID_WIDTH if kind is Kind.UUID else 0
    return Column("", kind, type_.unsigned, precision=precision, scale=scale, width=width).mirror_type


def _range(type_: ColumnType) -> tuple[int, int]:
    bits = _RANGES[type_.base]
    return (0, 2**bits - 1) if type_.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def is_same(old: ColumnType | None, new: ColumnType) -> bool:
    """Whether a type is another one, whatever its character set."""
    return old is not None and replace(old, charset="") == replace(new, charset="")


def holds(old: ColumnType, new: ColumnType) -> bool:
    """Whether every value of the old type is the same value in the new one."""
    if is_same(old, new):
        return True
    if old.base in _RANGES and new.base in _RANGES:
        (low, high), (new_low, new_high) = _range(old), _range(new)
        return new_low <= low and high <= new_high
    if old.base == new.base == "decimal":
        (precision, scale), (new_precision, new_scale) = old.numbers, new.numbers
        return new_scale >= scale and new_precision - new_scale >= precision - scale and (old.unsigned or not new.unsigned)
    if old.base == new.base and old.base in ("datetime", "timestamp", "time"):
        return new.numbers[0] >= old.numbers[0]
    if old.base == new.base and old.base in ("enum", "set"):
        return new.labels[: len(old.labels)] == old.labels
    if old.base == new.base and old.base in ("char", "varchar", "varbinary"):
        return new.numbers[0] >= old.numbers[0]
    if old.base in ("varchar", *TEXT_BYTES) and new.base in TEXT_BYTES:
        had = TEXT_BYTES.get(old.base) or MOST_CHARACTER_BYTES * old.numbers[0]
        return TEXT_BYTES[new.base] >= had
    if old.base in ("varbinary", *_BLOB_BYTES) and new.base in _BLOB_BYTES:
        return _BLOB_BYTES[new.base] >= (_BLOB_BYTES.get(old.base) or old.numbers[0])
    return False


def evaluate(definition: Definition) -> str | None:
    """The value of a default that every server reads alike; None for all others.

    Only where the source does not say it, because the column was altered again since.
    """
    written, base = definition.default, definition.type.base
    if written is None:
        return None
    if base in _RANGES and _INTEGER.fullmatch(written):
        low, high = _range(definition.type)
        return written if low <= int(written) <= high else None
    if base in ("varchar", *TEXT_BYTES) and written.isascii() and written.isprintable():
        fits = len(written) <= (definition.type.numbers[0] if base == "varchar" else 255)
        return written if fits else None
    return None


def agree(written: str | None, found: str | None) -> bool:
    """Whether a default as the statement writes it is the one that the source has."""
    if written is None or found is None:
        return False
    if written == found:
        return True
    try:
        return Decimal(written) == Decimal(found)
    except InvalidOperation:
        return False
