"""Text of the source's character sets, where the servers' tables are not those of Python's codecs."""

import numpy as np
import pytest

from replicator import decode
from replicator.charsets import Charsets
from replicator.plan import Plans
from replicator.typemap import Column, Kind

CHARSETS = Charsets({}, {"latin1": ["", *map(chr, range(1, 256))]})


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("eucjpms", b"a\xa1\xc1\xa1\xddz", "a～－z"),
        ("eucjpms", b"\xad\xa1\xad\xfc\x8f\xf3\xf3\x8f\xf4\xfe", "①∪ⅰ黑"),
        ("eucjpms", b"\x8f\xa2\xb7~", "～~"),
        ("ujis", b"\xa1\xc0\xf5\xa1\x8f\xfe\xfe", "\\\ue000\ue757"),
        ("sjis", b"\x81\x5f\x5c", "\\\\"),
        ("gb18030", b"\xa8\xbc\x81\x35\xf4\x37", "ḿ\ue7c7"),
        ("big5", b"\xc7\xb3\xf9\xd6", "Ё碁"),
        ("big5", b"\xa2\xce\xa4\x51\xa1\xfe", "\N{REPLACEMENT CHARACTER}十\N{REPLACEMENT CHARACTER}"),
        ("euckr", b"\x81\x41\xb0\xa1", "갂가"),
        ("gbk", b"\xc4\xe3\xba\xc3", "你好"),
        ("utf16", b"\x4f\x60\xd8\x3d\xde\x00", "你😀"),
        ("utf16le", b"\x60\x4f", "你"),
        ("utf32", b"\x00\x01\xf6\x00", "😀"),
        ("ucs2", b"\x4f\x60", "你"),
    ],
)
def test_characters_are_those_of_the_server(charset: str, raw: bytes, text: str) -> None:
    """What MySQL 9.7 and MariaDB 10.11 print for these bytes."""
    assert CHARSETS.decode(raw, charset) == (text, True)


def test_a_byte_without_a_character_is_replaced_and_told() -> None:
    """Neither a table nor a codec may lose a byte in silence."""
    assert CHARSETS.decode(b"a\0", "latin1") == ("a\N{REPLACEMENT CHARACTER}", False)
    assert CHARSETS.decode(b"a\xff", "utf8mb4") == ("a\N{REPLACEMENT CHARACTER}", False)
    assert CHARSETS.decode(b"a\x80\xfdz", "cp932") == ("a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}z", False)
    text, exact = CHARSETS.decode(b"\x8f\xf4", "eucjpms")
    assert not exact
    assert "\N{REPLACEMENT CHARACTER}" in text


def test_a_label_in_an_unknown_character_set_stops_nobody() -> None:
    """Table maps of tables that nobody wants come along too, and their labels may be in any character set."""
    assert CHARSETS.decode_label(b"caf\xc3\xa9", "") == "café"
    assert CHARSETS.decode_label(b"caf\xe9", "") == "caf\N{REPLACEMENT CHARACTER}"


def test_labels_that_are_bytes_keep_every_byte() -> None:
    """The character set "binary" has no characters; each byte stands as the character of latin1 with its number."""
    raw = bytes(range(256))
    assert CHARSETS.decode_label(raw, "binary").encode("latin-1") == raw


def test_packed_table_leaves_nul_to_python() -> None:
    """The kernel's table has a length and three bytes for each byte; NUL, which Postgres cannot hold, has none."""
    packed = CHARSETS.packed("latin1")
    assert len(packed) == 1024
    assert packed[:4] == bytes(4)
    assert packed[4 * 0xE9 : 4 * 0xE9 + 4] == b"\x02\xc3\xa9\0"


@pytest.mark.parametrize("charset", ["big5", "cp932", "eucjpms", "euckr", "gb18030", "gb2312", "gbk", "sjis", "ujis"])
def test_kernel_reads_two_bytes_as_the_codec_does(charset: str) -> None:
    """Every code of one and two bytes, alone and between others: the kernel's text is the codec's, or it is left to Python."""
    codes = [bytes([byte]) for byte in range(256)] + [bytes((lead, trail)) for lead in range(0x80, 256) for trail in range(256)]
    read = sum(check_kernel(charset, b"a" + code + b"z") for code in codes)
    assert read > 5000


@pytest.mark.parametrize("charset", ["eucjpms", "ujis", "gb18030"])
def test_kernel_reads_longer_codes_as_the_codec_does(charset: str) -> None:
    """Codes of three bytes, all that the sets have; of four bytes in steps, with the borders of the planes and what is none."""
    if charset == "gb18030":
        places = [*range(0, 39_420, 7), *range(39_400, 39_440), 188_999, 189_000, *range(189_000, 1_237_577, 9973), 1_237_575]
        codes = [gb18030_code(place) for place in (*places, 1_237_576, 1_587_599)]
        codes += [b"\x81\x30\x81", b"\x81\x30\x80\x30", b"\x81\x30\x81\x3a", b"\xff\x30\x81\x30", b"\x81\x30"]
    else:
        codes = [bytes((0x8F, lead, trail)) for lead in range(0x9F, 256) for trail in range(0x9F, 256)] + [b"\x8f\xa1", b"\x8f"]
    read = sum(check_kernel(charset, b"a" + code + b"z") + check_kernel(charset, code) for code in codes)
    assert read > 10_000


def gb18030_code(place: int) -> bytes:
    """The code of four bytes with this place in their order."""
    rest, fourth = divmod(place, 10)
    rest, third = divmod(rest, 126)
    return bytes((0x81 + rest // 10, 0x30 + rest % 10, 0x81 + third, 0x30 + fourth))


@pytest.mark.parametrize(
    ("charset", "codec"), [("utf16", "utf-16-be"), ("ucs2", "utf-16-be"), ("utf16le", "utf-16-le"), ("utf32", "utf-32-be")]
)
def test_kernel_reads_wide_characters_as_the_codec_does(charset: str, codec: str) -> None:
    """Characters of one to four bytes of UTF-8, the borders between them, lone surrogates, odd lengths and NUL."""
    texts = ["", "a", "\x7f\x80", "\u07ff\u0800", "\ud7ff\ue000\uffff", "\U00010000\U0010ffff", "你😀é"]
    for text in texts:
        assert check_kernel(charset, text.encode(codec))
    for text in ("\ud800", "a\udc00b", "\udc00\ud800", "\ud83d"):
        check_kernel(charset, text.encode(codec, "surrogatepass"))
    for raw in (b"\0", b"\0a\0", b"\0\0", b"\0\x11\0\0", b"\xff\xff\xff\xff", b"\0\0\0\0"):
        check_kernel(charset, raw)


def check_kernel(charset: str, raw: bytes) -> bool:
    """Whether the kernel read the text, which then is what the codec reads; what it leaves is not plain."""
    column = Column("c", Kind.TEXT, charset=charset, length_bytes=2)
    if charset not in PLANS:
        PLANS[charset] = Plans(CHARSETS)
        PLANS[charset].add((column,), (), wanted=True, table=0)
    plans = PLANS[charset]
    out = np.zeros(4 * len(raw) + 64, np.uint8)
    data = np.frombuffer(raw + bytes(8), np.uint8)
    end, left = decode._put_text(plans.columns[0], data, 0, len(raw), out, 0, plans.blob)
    text, exact = CHARSETS.decode(raw, charset)
    if left:
        assert out[:4].tobytes() == b"\xff\xff\xff\xff"
        return False
    assert exact
    assert out[4:end].tobytes() == text.encode()
    assert int.from_bytes(out[:4].tobytes(), "big") == end - 4
    return True


PLANS: dict[str, Plans] = {}
