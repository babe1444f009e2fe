"""MySQL's binary JSON: what the server printed for these bytes, and bytes that are no document."""

import json
import random
import struct
from pathlib import Path

import pytest

from replicator.errors import MalformedValue
from replicator.json_binary import DEEPEST, print_json

CAPTURED = json.loads((Path(__file__).parent.parent / "data/documents.json").read_text())


@pytest.mark.parametrize(("stored", "printed"), CAPTURED, ids=[text[:30] for _, text in CAPTURED])
def test_text_is_the_servers(stored: str, printed: str) -> None:
    """Byte for byte what MySQL 9.7 printed."""
    assert print_json(bytes.fromhex(stored)).decode() == printed


def test_an_empty_value_is_null() -> None:
    """What the server stores where a NOT NULL column got no value; it prints null, too."""
    assert print_json(b"") == b"null"


def test_holes_are_passed_over() -> None:
    """An update in place leaves bytes behind that no offset names."""
    document = bytes.fromhex("02 0100 0900 0c 0700") + b"gap"[:0] + b"\x01x" + b"?"
    assert print_json(document[:8] + b"\x01x") == b'["x"]'
    longer = bytes.fromhex("02 0100 0c00 0c 0a00") + b"old" + b"\x01x"
    assert print_json(longer) == b'["x"]'


def nest(depth: int) -> bytes:
    """Arrays in arrays."""
    body = struct.pack("<HH", 0, 4)
    for _ in range(depth - 1):
        body = struct.pack("<HHBH", 1, 7 + len(body), 2, 7) + body
    return b"\x02" + body


def test_nesting_ends_where_the_servers_does() -> None:
    """One level more than the server takes is an error, not a deep recursion."""
    assert print_json(nest(DEEPEST)) == b"[" * DEEPEST + b"]" * DEEPEST
    with pytest.raises(MalformedValue, match="nested"):
        print_json(nest(DEEPEST + 1))


def test_a_document_that_names_itself_twice_ends() -> None:
    """Arrays whose elements all are the same array would print two to the power of their depth of elements."""
    levels = 60
    body = struct.pack("<HH", 0, 4)
    for _ in range(levels):
        body = struct.pack("<HHBHBH", 2, 10 + len(body), 2, 10, 2, 10) + body
    with pytest.raises(MalformedValue, match="overlap"):
        print_json(b"\x02" + body)


def test_large_containers_have_wider_offsets() -> None:
    """Documents beyond 64 KB: offsets and sizes of four bytes, and integers of four bytes in the entry itself."""
    long = b"x" * 70_000
    # head 8, one key entry of 6, two value entries of 5 in the array
    array = struct.pack("<IIBiBI", 2, 18 + 3 + len(long), 7, -70_000, 12, 18) + b"\xf0\xa2\x04" + long
    document = b"\x01" + struct.pack("<IIIHBI", 1, 19 + 1 + len(array), 19, 1, 3, 20) + b"k" + array
    assert print_json(document) == b'{"k": [-70000, "' + long + b'"]}'


@pytest.mark.parametrize(
    "stored",
    ["0c05616263", "0cffffffffffff", "0403", "02ffff0400", "020100080000", "0b0000", "63", "0ff60104", "0f0c0100", "0501",
     "000100090005000100" + "0500"],
)  # fmt: skip
def test_what_is_no_document_is_told(stored: str) -> None:
    """Lengths that reach too far, types and literals that are none, decimals and times of the wrong size."""
    with pytest.raises(MalformedValue, match="JSON"):
        print_json(bytes.fromhex(stored))


def test_damaged_documents_never_crash() -> None:
    """Turned bits and cut ends of real documents: some text or a typed error, and no more text than there can be."""
    rng = random.Random(9)
    small = [bytes.fromhex(stored) for stored, _ in CAPTURED if len(stored) < 2000]
    errors = 0
    for _ in range(20_000):
        document = bytearray(rng.choice(small))
        for _ in range(rng.randrange(1, 4)):
            document[rng.randrange(len(document))] = rng.randrange(256)
        data = bytes(document[: rng.randrange(1, len(document) + 1)] if rng.random() < 0.3 else document)
        try:
            # six bytes for an escaped one, and 331 for a number of eight
            assert len(print_json(data)) < 400 * len(data)
        except MalformedValue:
            errors += 1
    assert errors > 1000
