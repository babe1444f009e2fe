"""The character sets that the source's server has: which collation belongs to which, and what their bytes mean.

Owns the questions about them, and asks over the connection that it is given. What is decoded with the answers is in
charsets.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from replicator.charsets import Charsets
from replicator.position import Flavor
from replicator.typemap import BINARY


class Query(Protocol):
    """A question to the source; see Source.query."""

    def __call__(self, text: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer."""


def read_charsets(query: Query, flavor: Flavor) -> Charsets:
    """The server's character sets; tables of single bytes are asked for when they are first needed."""
    names = {int(row[0]): str(row[1]) for row in query(
        "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL"
        " AND CHARACTER_SET_NAME IS NOT NULL"
    )}  # fmt: skip
    if flavor == "mariadb":
        names |= _read_shared_collations(query)
    single = query("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS WHERE MAXLEN = 1")
    wanted = {str(row[0]) for row in single} - {BINARY, "ascii"}
    return Charsets(names, _CharacterTables(query, frozenset(wanted)))


def _read_shared_collations(query: Query) -> Mapping[int, str]:
    """MariaDB's collations that serve several character sets (uca1400) have a number with each, listed elsewhere."""
    known = "information_schema.COLUMNS WHERE TABLE_SCHEMA = 'information_schema'"
    table = "COLLATION_CHARACTER_SET_APPLICABILITY"
    if not query(f"SELECT 1 FROM {known} AND TABLE_NAME = %s AND COLUMN_NAME = 'ID'", (table,)):  # noqa: S608 - constants
        return {}
    rows = query(f"SELECT ID, CHARACTER_SET_NAME FROM information_schema.{table} WHERE ID IS NOT NULL")  # noqa: S608
    return {int(number): str(charset) for number, charset in rows}


class _CharacterTables(Mapping[str, Sequence[str]]):
    """Tables of the single-byte character sets, asked of the server when first needed."""

    def __init__(self, query: Query, names: frozenset[str]) -> None:
        self._query, self._names = query, names
        self._known: dict[str, Sequence[str]] = {}

    def __contains__(self, charset: object) -> bool:
        return charset in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, charset: str) -> Sequence[str]:
        if charset not in self._names:
            raise KeyError(charset)
        if charset not in self._known:
            # The names come from information_schema and are plain words; an introducer cannot be a parameter.
            assert charset.isalnum()
            parts = ", ".join(f"CONVERT(_{charset} X'{byte:02X}' USING utf8mb4)" for byte in range(256))
            row = self._query(f"SELECT {parts}")[0]
            # The server answers "?" for a byte without a character.
            self._known[charset] = [
                "" if text is None or (text == "?" and byte != 0x3F) else text for byte, text in enumerate(row)
            ]
        return self._known[charset]
