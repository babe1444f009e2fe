"""Bars on a terminal for the tables that are being copied; off a terminal nothing, for there the log says it.

Owns what is drawn. Log lines appear above it; see warehouse/log.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn


@dataclass(frozen=True)
class Bar:
    """A table on its way: rows dealt with, about how many there are, rows per second, and why nothing is read just now."""

    name: str
    done: int
    estimate: int
    rows_per_s: float
    waits_for: str | None = None

    @property
    def left_s(self) -> int | None:
        """About how many seconds are left; None before the first row."""
        return round(max(0, self.estimate - self.done) / self.rows_per_s) if self.rows_per_s > 0 else None

    @property
    def note(self) -> str:
        """What stands behind the bar."""
        if self.waits_for is not None:
            return f"waits: {self.waits_for}"
        if self.left_s is None:
            return "begins"
        minutes, seconds = divmod(self.left_s, 60)
        return f"{self.done:,} rows, {self.rows_per_s:,.0f}/s, {minutes}:{seconds:02} left"


class CopyBars:
    """Drawn from one thread, whenever it is told to.

    Args:
        console: where to; default: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, bars: Sequence[Bar]) -> None:
        """Draw these bars in place of those before; none: take them away."""
        if not self._console.is_terminal:
            return
        if not bars:
            self.close()
            return
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
            # Without a thread of its own: whoever copies says when there is something new.
            self._progress = Progress(*columns, console=self._console, auto_refresh=False, transient=True)
            self._progress.start()
        for name in self._tasks.keys() - {bar.name for bar in bars}:
            self._progress.remove_task(self._tasks.pop(name))
        for bar in bars:
            if bar.name not in self._tasks:
                self._tasks[bar.name] = self._progress.add_task(bar.name, note="")
            total = max(1, bar.estimate, bar.done)
            self._progress.update(self._tasks[bar.name], completed=bar.done, total=total, note=bar.note)
        self._progress.refresh()

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}
