"""Positions as text and back, what covers what, and what is not a position."""

import pytest

from replicator.position import GtidSet, MariaDbGtids, Position, file_number, parse_gtids, parse_position

A = "00000000-0000-0000-0000-00000000000a"
B = "00000000-0000-0000-0000-00000000000b"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("", ""),
        (f"{A}:1", f"{A}:1"),
        (f"{A}:1-1", f"{A}:1"),
        (f"{A.upper()}:3:1-2", f"{A}:1-3"),
        (f"{A}:1-5:4-9:20", f"{A}:1-9:20"),
        (f"{B}:1,\n{A}:2", f"{A}:2,{B}:1"),
        (f"{A}:1-3:tag:5:other_1:2-3", f"{A}:1-3,{A}:other_1:2-3,{A}:tag:5"),
        (f"{A}:1,{A}:2", f"{A}:1-2"),
    ],
)
def test_gtid_sets_are_normalised(text: str, same: str) -> None:
    """Ranges ascend and do not touch, origins are sorted, tags are origins of their own."""
    found = GtidSet.parse(text)
    assert str(found) == same
    assert GtidSet.parse(str(found)) == found


@pytest.mark.parametrize("text", ["x", A, f"{A}:", f"{A}:0", f"{A}:3-2", f"{A}:a-b", f"{A}:-1", "1-2-3", f"{A}:1-"])
def test_what_is_no_gtid_set(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError):
        GtidSet.parse(text)


def test_adding_runs() -> None:
    """Runs join what they touch; the set before stays as it was."""
    before = GtidSet.parse(f"{A}:1-3")
    after = before.add([(A, 4, 6), (B, 1, 1), (A, 9, 9)])
    assert str(after) == f"{A}:1-6:9,{B}:1"
    assert str(before) == f"{A}:1-3"
    assert after.covers(before)
    assert not before.covers(after)


def test_a_gap_is_not_covered() -> None:
    """A range that reaches over a gap is not covered by the parts around it."""
    assert not GtidSet.parse(f"{A}:1-3:5-9").covers(GtidSet.parse(f"{A}:3-5"))
    assert GtidSet.parse(f"{A}:1-3:5-9").covers(GtidSet())
    assert not GtidSet.parse(f"{A}:tag:1").covers(GtidSet.parse(f"{A}:1"))


def test_mariadb_states() -> None:
    """One transaction per domain; another server of the same domain takes over."""
    state = MariaDbGtids.parse("1-7-20, 0-3-5")
    assert str(state) == "0-3-5,1-7-20"
    after = state.add([("0-3", 6, 9), ("0-4", 10, 10), ("2-1", 1, 1)])
    assert str(after) == "0-4-10,1-7-20,2-1-1"
    assert after.covers(state)
    assert not state.covers(after)
    assert str(MariaDbGtids.parse("")) == ""
    for bad in ("1-2", "1-2-3-4", "a-b-c"):
        with pytest.raises(ValueError):
            MariaDbGtids.parse(bad)


@pytest.mark.parametrize("flavor", ["mysql", "mariadb"])
def test_positions_as_text(flavor: str) -> None:
    """What str() wrote is read back the same."""
    gtids = parse_gtids(f"{A}:1-9:12" if flavor == "mysql" else "0-1-5,1-1-7", flavor)  # type: ignore[arg-type]
    for position in (Position("binlog.000012", 4567, gtids), Position("my log.000001", 4)):
        if " " not in position.file:
            assert parse_position(str(position), flavor) == position  # type: ignore[arg-type]


def test_positions_without_gtids_go_by_file_and_offset() -> None:
    """Files by their number, not by their name's letters: the million's file has a digit more."""
    early, late = Position("binlog.999999", 900), Position("binlog.1000000", 4)
    assert late.covers(early)
    assert not early.covers(late)
    assert early.covers(early)
    assert not Position("binlog.000001", 4).covers(Position("binlog.000001", 5))
    assert file_number("a.b.000042") == 42


def test_moving_a_position() -> None:
    """Without GTIDs only the place moves."""
    position = Position("binlog.000001", 4, GtidSet.parse(f"{A}:1"))
    moved = position.moved("binlog.000002", 99, [(A, 2, 3)])
    assert str(moved) == f"binlog.000002:99 {A}:1-3"
    assert Position("binlog.000001", 4).moved("binlog.000002", 5, [(A, 1, 1)]) == Position("binlog.000002", 5)


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (f"{A}:1-5,{B}:7", ""),
        (f"{A}:3", f"{A}:1-2:4-5,{B}:7"),
        (f"{A}:2:4-9,{B}:1-6", f"{A}:1:3,{B}:7"),
        (f"{A}:tag:1-9", f"{A}:1-5,{B}:7"),
        ("", f"{A}:1-5,{B}:7"),
    ],
)
def test_what_is_left_of_a_set(gone: str, left: str) -> None:
    """The difference of two sets."""
    assert str(GtidSet.parse(f"{A}:1-5,{B}:7").minus(GtidSet.parse(gone))) == left


def test_the_last_transaction_is_known() -> None:
    """A position knows which transaction was the last, and keeps knowing it where it moves without one."""
    position = Position("binlog.000001", 4, GtidSet.parse(f"{A}:1-5"))
    moved = position.moved("binlog.000001", 90, [(B, 1, 1), (A, 6, 8)]).moved("binlog.000002", 4)
    assert moved.last == f"{A}:8"
    assert moved == Position("binlog.000002", 4, GtidSet.parse(f"{A}:1-8,{B}:1"))
    assert Position("b.1", 4, MariaDbGtids()).moved("b.1", 9, [("0-1", 3, 5)]).last == "0-1-5"
