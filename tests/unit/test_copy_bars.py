"""Bars of copies: drawn on a terminal, with what is left, and never anywhere else."""

import io

from rich.console import Console

from replicator.copy_bars import Bar, CopyBars


def draw(*, is_terminal: bool) -> str:
    """What two tables, one of them then whole, leave on standard error."""
    out = io.StringIO()
    bars = CopyBars(Console(file=out, force_terminal=is_terminal, width=120))
    bars.show([Bar("plant.a", 250, 1000, 50.0), Bar("plant.b", 5, 4, 0.0, "the source has 40 threads running")])
    bars.show([Bar("plant.a", 1200, 1000, 50.0), Bar("plant.c", 0, 9, 0.0)])
    bars.show([])
    bars.close()
    return out.getvalue()


def test_on_a_terminal() -> None:
    """Share, rows, rate and time left; a table that waits says for what, and one larger than it was thought is at 100 %."""
    drawn = draw(is_terminal=True)
    assert "plant.a" in drawn
    assert "25%" in drawn
    assert "250 rows, 50/s, 0:15 left" in drawn
    assert "waits: the source has 40 threads running" in drawn
    assert "1,200 rows, 50/s, 0:00 left" in drawn
    assert "begins" in drawn


def test_elsewhere() -> None:
    """A file or a pipe gets nothing."""
    assert draw(is_terminal=False) == ""
