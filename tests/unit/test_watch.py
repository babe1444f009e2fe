"""What the loop and `verify` tell each other; the pace of a comparison."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from replicator import decode
from replicator.position import Position
from replicator.rows import Rows
from replicator.verification import Tally, Verification
from replicator.watch import Watch


def make_batch(table: int, keys: list[bytes]) -> Any:
    """A batch of insertions into one table."""
    changes = np.zeros(len(keys), decode.CHANGE)
    fields = [len(key).to_bytes(4, "big") + key for key in keys]
    changes["key_bytes"] = [len(each) for each in fields]
    changes["key"] = np.cumsum([0, *changes["key_bytes"][:-1]])
    plans = SimpleNamespace(tables=[table])
    return SimpleNamespace(changes=changes, keys=np.frombuffer(b"".join(fields), np.uint8), plans=plans)


def hashes_of(keys: list[bytes]) -> set[int]:
    """What Rows makes of rows with these keys."""
    own = (8).to_bytes(4, "big") + bytes(8) + b"\xff" * 8
    tuples = b"".join(b"\0\4" + len(key).to_bytes(4, "big") + key + own for key in keys)
    return set(Rows.parse(tuples, np.ones(1, np.uint8)).hashes.tolist())


def test_keys_that_are_touched() -> None:
    """Those of the watched table are known, before they are written; a new watch forgets them."""
    watch = Watch()
    with watch.applying(make_batch(3, [b"early"]), lambda: False):
        pass
    watch.begin(3, lambda: None)
    with watch.applying(make_batch(4, [b"other"]), lambda: False):
        assert not len(watch.touched())
    with watch.applying(make_batch(3, [b"a", b"bb"]), lambda: False):
        assert set(watch.touched().tolist()) == hashes_of([b"a", b"bb"])
    watch.begin(3, lambda: None)
    assert not len(watch.touched())


def test_a_watch_begins_between_transactions() -> None:
    """While parts of a transaction are written that were not noted, it waits; and can be stopped."""
    watch = Watch()
    with watch.applying(make_batch(3, [b"part"]), lambda: True):
        pass

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.begin(3, stop)
    begun = threading.Event()

    def begin() -> None:
        watch.begin(3, lambda: None)
        begun.set()

    thread = threading.Thread(target=begin)
    thread.start()
    assert not begun.is_set()
    with watch.applying(make_batch(3, [b"end"]), lambda: False):
        pass
    thread.join(60)
    assert begun.is_set()
    with watch.applying(make_batch(3, [b"rolled back"]), lambda: True):
        pass
    watch.moved(Position("binlog.000001", 4))
    watch.begin(3, stop)


def test_positions_count_by_file_and_offset_too() -> None:
    """A position that the stream has not come to is waited for; the loop learns what went wrong in the other thread."""
    watch = Watch()
    assert not watch.wait_applied(Position("binlog.000002", 4), 0)
    watch.moved(Position("binlog.000002", 100))
    assert watch.wait_applied(Position("binlog.000001", 900), 0)
    assert watch.wait_applied(Position("binlog.000002", 100), 0)
    assert not watch.wait_applied(Position("binlog.000002", 101), 0)
    watch.fail(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        watch.moved(Position("binlog.000002", 200))


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many rows the comparison waits until their time has come; chunks are no larger than a second's rows."""
    settings: Any = SimpleNamespace(chunk_rows=20_000)
    side: Any = SimpleNamespace(source=SimpleNamespace(position=lambda: Position("binlog.000001", 4)))
    monkeypatch.setattr("replicator.verification.time", SimpleNamespace(monotonic=lambda: 1000.0, sleep=None))
    work = Verification(1, side, side, Watch(), settings, repair=False, rows_per_s=500.0, stopping=lambda: False, kept=None)
    waited: list[float] = []
    monkeypatch.setattr(work, "sleep", waited.append)
    assert work.chunk_rows == 500
    work.tally.rows = 1500
    work.keep_pace()
    assert waited == [3.0]


@pytest.mark.parametrize(
    ("tally", "expected"),
    [
        (Tally(rows=5), "Equal"), (Tally(missing=1, extra=1, repaired=2), "Repaired"),
        (Tally(missing=2, repaired=1), "Drifted"),
        (Tally(unsettled=1), "Unsettled"), (Tally(different=1, unsettled=1), "Drifted"),
    ],
)  # fmt: skip
def test_outcomes(tally: Tally, expected: str) -> None:
    """What a tally means."""
    settings: Any = SimpleNamespace(chunk_rows=10)
    side: Any = SimpleNamespace(source=SimpleNamespace(position=lambda: Position("binlog.000001", 4)))
    work = Verification(1, side, side, Watch(), settings, repair=True, rows_per_s=1.0, stopping=lambda: False, kept=None)
    work.tally = tally
    assert work.outcome()[0] == expected
