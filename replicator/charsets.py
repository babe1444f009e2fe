"""Character sets of the source: from its bytes to text.

Single-byte sets come as tables from the server itself, so that their text is what the server prints. Pure: source.py
fills the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicator.errors import UnsupportedColumn
from replicator.typemap import UTF8

_CODECS = {
    "big5": "big5hkscs", "cp932": "cp932", "eucjpms": "euc_jp", "euckr": "euc_kr", "gb18030": "gb18030", "gb2312": "gb2312",
    "gbk": "gbk", "sjis": "shift_jis", "ucs2": "utf-16-be", "ujis": "euc_jp", "utf16": "utf-16-be", "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
} | dict.fromkeys(UTF8, "utf-8")  # fmt: skip
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Charsets:
    """What the source's server says of its character sets.

    Attributes:
        names: collation number -> name of the character set.
        tables: single-byte character set -> for each byte its character, empty where there is none.
    """

    names: Mapping[int, str]
    tables: Mapping[str, Sequence[str]]

    def decode(self, raw: bytes, charset: str) -> tuple[str, bool]:
        """Bytes as text, and whether nothing had to be replaced.

        Raises:
            UnsupportedColumn: the character set is not known.
        """
        if charset in self.tables:
            table = self.tables[charset]
            return "".join(table[byte] or _NO_CHARACTER for byte in raw), all(table[byte] for byte in raw)
        codec = _CODECS.get(charset)
        if codec is None:
            raise UnsupportedColumn(f"character set {charset or 'unknown'} is not covered")
        try:
            return raw.decode(codec), True
        except UnicodeDecodeError:
            return raw.decode(codec, "replace"), False

    def decode_label(self, raw: bytes, charset: str) -> str:
        """A label of an ENUM or SET as text."""
        return self.decode(raw, charset)[0] if charset else raw.decode("utf-8", "replace")

    def covers(self, charset: str) -> bool:
        """True where text in this character set can be read."""
        return charset in _CODECS or charset in self.tables

    def packed(self, charset: str) -> bytes:
        """The table as the kernel wants it: 256 entries of 4 bytes, the first of them the length of the UTF-8.

        NUL has length 0, because Postgres holds none: such a text is left to Python.
        """
        texts = [character.encode() for character in self.tables[charset]]
        return b"".join(bytes([0 if i == 0 else len(text)]) + text.ljust(3, b"\0") for i, text in enumerate(texts))
