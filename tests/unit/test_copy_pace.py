"""How much of a copy is written at once, and when, so that the stream beside it stays fresh."""

from replicator.copy_pace import Pace

MAX_LAG_MS = 5_000


def test_a_slow_write_makes_the_next_one_smaller_at_once() -> None:
    """Where rows take ten times as long the next write has a tenth of them, and more again only by and by."""
    pace = Pace(MAX_LAG_MS)
    for _ in range(50):
        pace.note_rows(1_000, 0.001, is_busy=True)
    full = pace.most_rows(is_busy=True)
    pace.note_rows(1_000, 0.01, is_busy=True)
    small = pace.most_rows(is_busy=True)
    pace.note_rows(1_000, 0.001, is_busy=True)
    assert small <= full / 9
    assert small < pace.most_rows(is_busy=True) < full / 2


def test_more_is_written_while_the_stream_is_idle() -> None:
    """Nobody waits then, and long writes cost less."""
    pace = Pace(MAX_LAG_MS)
    for _ in range(50):
        pace.note_rows(1_000, 0.001, is_busy=True)
        pace.note_rows(1_000, 0.001, is_busy=False)
    assert pace.most_rows(is_busy=False) > 9 * pace.most_rows(is_busy=True)


def test_what_a_busy_stream_slows_does_not_slow_an_idle_one() -> None:
    """Rows take longer while the stream is written, too, so each has a rate of its own."""
    pace = Pace(MAX_LAG_MS)
    before = pace.most_rows(is_busy=False)
    pace.note_rows(100, 1.0, is_busy=True)
    assert pace.most_rows(is_busy=False) == before


def test_a_copy_never_stands_still() -> None:
    """However slow the warehouse is, some rows are written."""
    pace = Pace(MAX_LAG_MS)
    pace.note_rows(1, 60.0, is_busy=True)
    assert pace.most_rows(is_busy=True) >= 100


def test_a_busy_stream_is_left_alone_after_each_write() -> None:
    """As long as half of the write took; an idle one needs no rest."""
    pace = Pace(MAX_LAG_MS)
    pace.note_write(10.0, 10.004, is_busy=True)
    assert not pace.may_write(10.005, 0)
    assert 0 < pace.rest_s(10.005) < 0.0011
    assert pace.may_write(10.0061, 0)
    pace.note_write(20.0, 20.03, is_busy=False)
    assert pace.may_write(20.03, 0)
    assert pace.rest_s(20.03) == 0


def test_while_the_stream_is_far_behind_something_is_written_now_and_then() -> None:
    """Once a second; in between nobody asks again and again."""
    pace = Pace(MAX_LAG_MS)
    pace.note_write(10.0, 10.001, is_busy=False)
    assert pace.may_write(10.1, MAX_LAG_MS)
    assert not pace.may_write(10.1, MAX_LAG_MS + 1)
    assert pace.rest_s(10.1) > 0
    assert pace.may_write(11.1, MAX_LAG_MS + 1)
