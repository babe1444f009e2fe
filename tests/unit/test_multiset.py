"""Tables without a key: what the decoder makes of their rows, what cancels, and what a copy already holds."""

import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator import decode
from replicator.changes import Batch
from replicator.check import may_lock
from replicator.copied import leave_out_copied
from replicator.multiset import net, pack
from replicator.plan import Plans
from replicator.position import GtidSet, MariaDbGtids, Position
from tests.decoding import CHARSETS, read_tuple

ROWS = st.tuples(
    st.sampled_from([None, b"", b"a", b"ab"]), st.sampled_from([None, b"", b"b", b"bb"]), st.sampled_from([None, b"r"])
)


def make_changes(made: list[tuple[bool, tuple[bytes | None, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    """Changes (an insertion or not, and two columns with _raw) as the decoder leaves them."""
    changes = np.zeros(len(made), decode.CHANGE)
    out = b""
    for n, (is_insertion, (first, second, raw)) in enumerate(made):
        fields = (first, second, struct.pack("!q", n + 1), struct.pack("!q", 7 * n), raw)
        image = struct.pack("!h", 5) + b"".join(
            struct.pack("!i", -1) if field is None else struct.pack("!i", len(field)) + field for field in fields
        )
        changes[n]["op"] = decode.INSERT if is_insertion else decode.DELETE
        changes[n]["seq"], changes[n]["image"], changes[n]["image_bytes"] = n + 1, len(out), len(image)
        out += image
    return changes, np.frombuffer(out + bytes(8), np.uint8).copy()


@given(st.lists(st.tuples(st.booleans(), ROWS), min_size=1, max_size=60))
@settings(max_examples=300, deadline=None)
def test_net_is_that_of_counting(made: list[tuple[bool, tuple[bytes | None, ...]]]) -> None:
    """Insertions minus deletions of each row are as before; of equal rows only one kind is left, the latest ones."""
    changes, out = make_changes(made)
    inserted, deleted, groups = net(np.arange(len(made)), changes, out, 2)
    count: Counter[tuple[bytes | None, ...]] = Counter()
    for is_insertion, row in made:
        count[row] += 1 if is_insertion else -1
    assert Counter(made[i][1] for i in inserted) == +count
    assert Counter(made[i][1] for i in deleted) == -count
    assert all(made[i][0] for i in inserted)
    assert not any(made[i][0] for i in deleted)
    assert list(inserted) == sorted(inserted)
    of_group = {int(group): made[i][1] for i, group in zip(deleted, groups, strict=True)}
    assert len(set(of_group.values())) == len(of_group)
    assert all(of_group[int(group)] == made[i][1] for i, group in zip(deleted, groups, strict=True))


@given(st.lists(st.tuples(st.booleans(), ROWS), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None)
def test_hash_is_that_of_the_columns(made: list[tuple[bool, tuple[bytes | None, ...]]]) -> None:
    """Rows with the same columns have the same hash, whatever their _seq, time and _raw; others have another one."""
    changes, out = make_changes(made)
    tuples = bytes(pack(np.arange(len(made)), changes, out, 2, np.arange(len(made), dtype=np.int64)[:, None]))
    hashes: dict[bytes | None, tuple[bytes | None, ...]] = {}
    at = 0
    for n, (_, row) in enumerate(made):
        size = int(changes[n]["image_bytes"]) + 24
        fields = read_tuple(tuples[at : at + size])
        assert fields[:2] == row[:2]
        assert fields[6] == struct.pack("!q", n)
        assert hashes.setdefault(fields[5], row[:2]) == row[:2]
        at += size
    assert len(hashes) == len({row[:2] for _, row in made})


UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.mark.parametrize(
    ("position", "left"),
    [
        (Position("b.000001", 100, None), [1, 2, 3, 4, 5]),
        (Position("b.000001", 199, None), [1, 2, 3, 4, 5]),
        (Position("b.000001", 200, None), [3, 4, 5]),
        (Position("b.000002", 4, None), [3, 4, 5]),
        (Position("b.000002", 150, None), []),
        (Position("b.000001", 4, GtidSet.parse(f"{UUID}:1-5")), [1, 2, 3, 4, 5]),
        (Position("b.000001", 4, GtidSet.parse(f"{UUID}:1-5:7")), [1, 2]),
        (Position("b.000001", 4, GtidSet.parse(f"{UUID}:1-6")), [3, 4, 5]),
        (Position("b.000001", 4, MariaDbGtids.parse("0-1-6")), [3, 4, 5]),
        (Position("b.000001", 4, MariaDbGtids.parse("1-1-9")), [1, 2, 3, 4, 5]),
    ],
)
def test_copy_between_transactions(position: Position, left: list[int]) -> None:
    """A batch of two transactions, with the position of a copy before, between, and behind them."""
    transactions = np.zeros(2, decode.TRANSACTION)
    transactions["changes_end"], transactions["end_pos"], transactions["file"] = (3, 6), (200, 150), (0, 1)
    if position.gtids is not None:
        transactions["number"] = 6, 7
        transactions["origin"] = np.frombuffer(bytes.fromhex(UUID.replace("-", "")), np.uint8)
        transactions["server"] = 1
    end = Position("b.000002", 150, None if position.gtids is None else type(position.gtids)())
    if isinstance(position.gtids, GtidSet):
        end = Position("b.000002", 150, GtidSet.parse(f"{UUID}:1-7"))
    if isinstance(position.gtids, MariaDbGtids):
        end = Position("b.000002", 150, MariaDbGtids.parse("0-1-7"))
    nothing = np.empty(0, np.uint8)
    batch = Batch(
        np.zeros(6, decode.CHANGE), transactions, nothing, nothing, Plans(CHARSETS), end, 6, files=("b.000001", "b.000002")
    )
    assert leave_out_copied(batch, np.array([1, 2, 3, 4, 5]), position).tolist() == left


@pytest.mark.parametrize(
    ("grant", "is_enough"),
    [
        ("GRANT SELECT, LOCK TABLES ON `SHOP`.* TO `U`@`%`", True),
        ("GRANT LOCK TABLES ON *.* TO `U`@`%`", True),
        ("GRANT ALL PRIVILEGES ON `SHOP`.* TO `U`@`%`", True),
        ("GRANT SELECT, RELOAD ON *.* TO `U`@`%`", True),
        ("GRANT LOCK TABLES ON `SH\\_P`.* TO `U`@`%`", False),
        ("GRANT LOCK TABLES ON `SH_P`.* TO `U`@`%`", True),
        ("GRANT LOCK TABLES ON `S%`.* TO `U`@`%`", True),
        ("GRANT LOCK TABLES ON `OTHER`.* TO `U`@`%`", False),
        ("GRANT SELECT ON `SHOP`.* TO `U`@`%`", False),
        ("GRANT SELECT ON `SHOP`.`LOCK TABLES` TO `U`@`%`", False),
    ],
)
def test_grants_that_allow_a_lock(grant: str, is_enough: bool) -> None:
    """SHOW GRANTS tells whether a table may be locked."""
    assert may_lock([grant], "shop") is is_enough
