"""Character sets of the source: from its bytes to text.

Single-byte sets come as tables from the server itself, so that their text is what the server prints. Sets of several
bytes use Python's codecs, corrected where the server's tables are others. Pure: source_charsets.py fills the tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from replicator.errors import UnsupportedColumn
from replicator.typemap import BINARY, UTF8

CODECS = {
    "big5": "big5", "cp932": "cp932", "eucjpms": "euc_jp", "euckr": "cp949", "gb18030": "gb18030", "gb2312": "gb2312",
    "gbk": "gbk", "sjis": "shift_jis", "ucs2": "utf-16-be", "ujis": "euc_jp", "utf16": "utf-16-be", "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
} | dict.fromkeys(UTF8, "utf-8")  # fmt: skip
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"

# Where the tables of MySQL and MariaDB differ from Python's: characters after decoding, and codes that Python lacks.
_AS_SERVER = {
    "gb18030": str.maketrans("\ue7c7\u1e3f", "\u1e3f\ue7c7"),
    "sjis": str.maketrans("\uff3c", "\\"),
    "ujis": str.maketrans("\uff3c", "\\"),
    "eucjpms": str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac\u00a6", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2\uffe4"),
}
# What Python reads for bytes that are no character to the server.
_UNASSIGNED = {"cp932": re.compile("[\x80\uf8f0-\uf8f3]")}
_EUC_CHARACTER = re.compile(rb"\x8f..|[\x80-\xff].|.", re.DOTALL)
_BIG5_CHARACTER = re.compile(rb"[\x80-\xff].|.", re.DOTALL)


def _user_defined() -> dict[bytes, str]:
    """Rows 85 to 94 of both planes, which lie in Unicode's private area."""
    cells = [(row, cell) for row in range(0xF5, 0xFF) for cell in range(0xA1, 0xFF)]
    codes = [bytes(pair) for pair in cells] + [b"\x8f" + bytes(pair) for pair in cells]
    return {code: chr(0xE000 + n) for n, code in enumerate(codes)}


def _vendor() -> dict[bytes, str]:
    """NEC's row 13, which cp932 has too, and IBM's characters of eucjpms."""
    row_13 = {bytes((0xAD, 0xA1 + n)): bytes((0x87, 0x40 + n + (n >= 0x3F))) for n in range(94)}
    found = {code: other.decode("cp932", "ignore") for code, other in row_13.items()}
    places = [(0xF3, cell) for cell in range(0xF3, 0xFF)] + [(0xF4, cell) for cell in range(0xA1, 0xFF)]
    found |= {b"\x8f" + bytes(place): character for place, character in zip(places, _IBM, strict=True)}
    return {code: character for code, character in found.items() if character} | {b"\x8f\xa2\xb7": "\uff5e"}


_IBM = (
    "ⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ＇＂㈱№℡炻仼僴凬匇匤﨎咊坙﨏塚增寬峵嵓﨑德悅愠敎昻晥晴朗栁﨓﨔橫"
    "櫢淸淲瀨凞猪甁皂皞益礰礼神祥福竧靖精綠緖羽荢﨟薰蘒﨡蠇諸譿賴赶﨣﨤逸郞都鄕﨧﨨閒隆﨩霻靍靑飯飼館馞髙魲鶴黑"
)
_MISSING: dict[str, tuple[re.Pattern[bytes], dict[bytes, str]]] = {
    # The servers' table has U+FFFD for the codes whose character has another code too, or none in Unicode 1.
    "big5": (
        _BIG5_CHARACTER,
        {bytes((0xF9, 0xD6 + n)): character for n, character in enumerate("碁銹裏墻恒粧嫺")}
        | dict.fromkeys(map(bytes.fromhex, ("a15a", "a1c3", "a1c5", "a1fe", "a240", "a2cc", "a2ce")), _NO_CHARACTER),
    ),
    "ujis": (_EUC_CHARACTER, _user_defined()),
    "eucjpms": (_EUC_CHARACTER, _user_defined() | _vendor()),
}


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
        codec = CODECS.get(charset)
        if codec is None:
            raise UnsupportedColumn(f"character set {charset or 'unknown'} is not covered")
        try:
            text = _decode(raw, charset, codec)
        except UnicodeDecodeError:
            return raw.decode(codec, "replace"), False
        if charset in _UNASSIGNED and _UNASSIGNED[charset].search(text):
            return _UNASSIGNED[charset].sub(_NO_CHARACTER, text), False
        return text, True

    def decode_label(self, raw: bytes, charset: str) -> str:
        """A label of an ENUM or SET as text; in an unknown character set only for show, as its table is turned away.

        Labels in the character set "binary" are bytes: each becomes the character of latin1 with its number.
        """
        if charset == BINARY:
            return raw.decode("latin-1")
        return self.decode(raw, charset)[0] if self.covers(charset) else raw.decode("utf-8", "replace")

    def covers(self, charset: str) -> bool:
        """True where text in this character set can be read."""
        return charset in CODECS or charset in self.tables

    def packed(self, charset: str) -> bytes:
        """The table as the kernel wants it: 256 entries of 4 bytes, the first of them the length of the UTF-8.

        NUL has length 0, because Postgres holds none: such a text is left to Python.
        """
        return b"".join(_entry("" if i == 0 else character) for i, character in enumerate(self.tables[charset]))

    def packed_pairs(self, charset: str) -> bytes:
        """Tables of a set of several bytes for the kernel: 256 entries for single bytes, then 65,536 for two.

        Behind them ujis and eucjpms have 65,536 for the last two of three bytes, and gb18030 those of its codes of four bytes
        that are in the basic plane. What has length 0 is left to Python: NUL, and bytes that are no character.
        """
        if charset not in _PAIRS:
            singles = ["", *(self._character(bytes([byte]), charset) for byte in range(1, 256))]
            pairs = [
                "" if lead == 0 or singles[lead] else self._character(bytes((lead, trail)), charset)
                for lead in range(256)
                for trail in range(256)
            ]
            longer = [self._character(code, charset) for code in _longer_codes(charset)]
            _PAIRS[charset] = b"".join(map(_entry, singles + pairs + longer))
        return _PAIRS[charset]

    def _character(self, code: bytes, charset: str) -> str:
        """The character with this code; empty where there is none, or one beyond the basic plane."""
        text, exact = self.decode(code, charset)
        return text if exact and len(text) == 1 and text <= "\uffff" else ""


# So many codes of gb18030 with four bytes are characters of the basic plane; see decode.py.
_GB18030_BASIC = 39_420
# The tables are the same for every server, and take a moment to make.
_PAIRS: dict[str, bytes] = {}


def _longer_codes(charset: str) -> Iterator[bytes]:
    """The codes of more than two bytes that a table of the kernel has, in its order."""
    if charset in ("ujis", "eucjpms"):
        yield from (bytes((0x8F, lead, trail)) for lead in range(256) for trail in range(256))
    elif charset == "gb18030":
        for place in range(_GB18030_BASIC):
            rest, fourth = divmod(place, 10)
            rest, third = divmod(rest, 126)
            yield bytes((0x81 + rest // 10, 0x30 + rest % 10, 0x81 + third, 0x30 + fourth))


def _entry(character: str) -> bytes:
    """Four bytes: how many bytes of UTF-8, and these."""
    text = character.encode()
    return bytes([len(text)]) + text.ljust(3, b"\0")


def _decode(raw: bytes, charset: str, codec: str) -> str:
    """Bytes of a set of several bytes as the server would print them; raises UnicodeDecodeError."""
    if charset in _MISSING:
        character, missing = _MISSING[charset]
        parts = character.findall(raw)
        if not missing.keys().isdisjoint(parts):
            return "".join(missing[part] if part in missing else _decode(part, charset, codec) for part in parts)
    text = raw.decode(codec)
    return text.translate(_AS_SERVER[charset]) if charset in _AS_SERVER else text
