"""Rows of both sides laid beside each other, against a slow twin; multisets."""

import random
import struct
from collections import Counter

import numpy as np

from replicator import decode
from replicator.compare import hash_changes
from replicator.rows import Match, Rows, match_rows, surplus

Values = tuple[bytes | None, ...]
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


def build(values: Values, seq: int = 1, raw: bytes | None = None, committed: bytes | None = None) -> bytes:
    """A COPY tuple of a mirror's row."""
    fields = (*values, struct.pack("!q", seq), committed, raw)
    parts = [struct.pack("!i", -1) if each is None else struct.pack("!i", len(each)) + each for each in fields]
    return struct.pack("!h", len(fields)) + b"".join(parts)


def parse(tuples: list[bytes], is_key: list[int], *, framed: bool = False) -> Rows:
    """Tuples as Rows; framed: as COPY sends them."""
    data = b"".join(tuples)
    if framed:
        return Rows.parse(HEADER + data + TRAILER, np.array(is_key, np.uint8), len(HEADER))
    return Rows.parse(data, np.array(is_key, np.uint8))


def match_slowly(source: list[tuple[Values, bytes | None]], mirror: list[tuple[Values, bytes | None]], key: list[int]) -> Match:
    """The slow twin of match_rows."""
    theirs = {tuple(row[0][i] for i in key): (n, row) for n, row in enumerate(mirror)}
    different, missing = [], []
    for n, row in enumerate(source):
        found = theirs.pop(tuple(row[0][i] for i in key), None)
        if found is None:
            missing.append(n)
        elif found[1] != row:
            different.append((n, found[0]))
    return Match(np.array(different).reshape(-1, 2), np.array(missing), np.array(sorted(n for n, _ in theirs.values())))


def test_match_beside_its_slow_twin() -> None:
    """Keys of one and of two columns, NULL beside the empty value, _raw: what is found is what a dictionary finds."""
    dice = random.Random(3)
    for _ in range(200):
        key = dice.choice([[0], [2], [0, 2]])
        sides: list[list[tuple[Values, bytes | None]]] = []
        for _ in range(2):
            rows: dict[tuple[bytes | None, ...], tuple[Values, bytes | None]] = {}
            for _ in range(dice.randrange(30)):
                values = (bytes([dice.randrange(4)]) * dice.randrange(3), dice.choice([None, b"", b"x"]), dice.randbytes(1))
                rows[tuple(values[i] for i in key)] = (values, dice.choice([None, None, b"\1{}"]))
            sides.append(list(rows.values()))
        is_key = [int(i in key) for i in range(3)]
        source = parse([build(values, 5, raw) for values, raw in sides[0]], is_key)
        mirror = parse([build(values, 7, raw, b"whenever") for values, raw in sides[1]], is_key, framed=True)
        found, expected = match_rows(source, mirror), match_slowly(sides[0], sides[1], key)
        assert found.different.tolist() == expected.different.tolist()
        assert found.missing.tolist() == expected.missing.tolist()
        assert found.extra.tolist() == expected.extra.tolist()
        assert set(mirror.seqs.tolist()) <= {7}


def test_keys_as_tuples() -> None:
    """The key's fields in the columns' order, and the number behind them."""
    rows = parse([build((b"a", b"bb", b"ccc")), build((b"", None, b"c"))], [1, 0, 1])
    expected = struct.pack("!hi", 3, 0) + struct.pack("!i", 1) + b"c" + struct.pack("!iq", 8, -9)
    assert rows.keys(np.array([1]), np.array([-9])) == expected
    assert rows.tuples(np.array([1, 0])) == build((b"", None, b"c")) + build((b"a", b"bb", b"ccc"))
    assert len(rows.choose(np.array([], np.int64))) == 0


def test_keys_of_changes_have_the_same_hash() -> None:
    """What the stream touches is recognized among the rows of both sides: the key before and the key after."""
    rows = parse([build((b"k1", b"v")), build((b"k2", b"v"))], [1, 0])
    keys = np.frombuffer(b"".join(struct.pack("!i", 2) + each for each in (b"k1", b"k2")), np.uint8)
    changes = np.zeros(2, decode.CHANGE)
    changes["old_key"], changes["old_key_bytes"] = [0, 0], [6, 0]
    changes["key"], changes["key_bytes"] = [6, 6], [6, 0]
    hashes = np.empty(4, np.uint64)
    assert hash_changes(changes, np.arange(2), keys, hashes) == 2
    assert set(hashes[:2].tolist()) == set(rows.hashes.tolist())


def test_surplus_beside_counters() -> None:
    """Of equal rows as many are surplus as there are too many."""
    dice = np.random.default_rng(5)
    for _ in range(100):
        ours, theirs = (dice.integers(0, 6, dice.integers(0, 20)).astype(np.uint64) for _ in range(2))
        found = ours[surplus(ours, theirs)]
        assert Counter(found.tolist()) == Counter(ours.tolist()) - Counter(theirs.tolist())


def test_whole_rows_are_hashed_where_there_is_no_key() -> None:
    """_seq does not count, _raw does, and so does which field a byte is in."""
    tuples = [
        build((b"a", b"b"), 1), build((b"a", b"b"), 2), build((b"a", b"b"), 1, b"\1{}"), build((b"ab", b""), 1),
        build((b"ab", None), 1),
    ]  # fmt: skip
    hashes = parse(tuples, [0, 0]).hashes.tolist()
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
