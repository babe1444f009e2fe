"""Text of the source's character sets, where the servers' tables are not those of Python's codecs."""

import pytest

from replicator.charsets import Charsets

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
