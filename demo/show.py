"""What the demo shows: progress while it works, and the summary at its end.

Owns: layout, on a terminal and off it, and the queries behind the summary. Never: changes anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from warehouse.db import Connection

BINS = 16
BAR = 46
PLAIN_EVERY_S = 5.0

_MODEL = """SELECT name, version, rows_seen, threshold, rows_scored, open_anomalies, open_incidents, committed_at
FROM scorer.model_info WHERE state = 'READY' ORDER BY name LIMIT 1"""

_WORST = """
WITH engines AS (
    SELECT entity, count(*) AS anomalies, max(score) AS peak, max(order_value) AS last_cycle,
           (array_agg(id ORDER BY order_value DESC))[1:5] AS newest
    FROM scorer.open_anomalies WHERE model = %(model)s GROUP BY entity
)
SELECT e.entity, e.anomalies, e.peak, e.last_cycle::int,
       (SELECT string_agg(f.feature || ' ' || CASE f.direction WHEN 'high' THEN '+' ELSE '-' END, ', ' ORDER BY f.share DESC)
        FROM (SELECT feature, (array_agg(direction ORDER BY attribution DESC))[1] AS direction, sum(attribution) AS share
              FROM scorer.anomaly_features WHERE anomaly_id = ANY (e.newest) GROUP BY feature ORDER BY share DESC LIMIT 3) f)
FROM engines e ORDER BY e.peak DESC LIMIT 5"""


class Screen:
    """Progress bars on a terminal; off it, plain lines, at most one in five seconds for a step."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._is_terminal = self.console.is_terminal
        self._progress: Progress | None = None

    def say(self, line: str) -> None:
        """One plain line."""
        if self._is_terminal:
            self.console.print(line, markup=False, soft_wrap=True)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    @contextmanager
    def follow(self, title: str, total: int | None) -> Iterator[Follower]:
        """Show how a step gets on."""
        if not self._is_terminal:
            follower = Follower(self, title, total, None, None)
            yield follower
            follower.end()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, note="")
            yield Follower(self, title, total, progress, task)


class Follower:
    """One step's progress: numbers done, out of a total, with a note beside them."""

    def __init__(self, screen: Screen, title: str, total: int | None, progress: Progress | None, task: TaskID | None) -> None:
        self._screen, self._title, self._total = screen, title, total
        self._progress, self._task = progress, task
        self._last = ("", 0.0)

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show the numbers; total overrides the one that the step began with."""
        self._total = total if total is not None else self._total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total, note=note)
            return
        of = f" of {self._total:,}" if self._total is not None else ""
        self._line = f"{self._title}: {done:,}{of}{', ' + note if note else ''}"
        if time.monotonic() - self._last[1] >= PLAIN_EVERY_S:
            self._print()

    def end(self) -> None:
        """Off a terminal, print the last state if it was not yet."""
        if getattr(self, "_line", self._last[0]) != self._last[0]:
            self._print()

    def _print(self) -> None:
        self._screen.say(self._line)
        self._last = (self._line, time.monotonic())


def show_summary(screen: Screen, conn: Connection, source_rows: int, freshness: dict[str, NDArray[np.float64]]) -> None:
    """Print what happened: rows, model, worst engines, histogram, views, freshness."""
    say = screen.say
    mirror = conn.execute(
        "SELECT sum(rows)::bigint, (SELECT max(lag_ms) FROM warehouse.status), count(*) FROM warehouse.table_status"
    ).fetchone()
    assert mirror is not None, "an aggregate yields a row"
    say("")
    say("ROWS")
    say(f"  at the source       {source_rows:>9,}")
    say(f"  in the warehouse    {mirror[0] or 0:>9,}   in {mirror[2]} tables, lag {mirror[1] or 0:.0f} ms")
    model = conn.execute(_MODEL).fetchone()
    if model is not None:
        name, version, learned, threshold, scored, anomalies, incidents, _ = model
        say(f"  scored              {scored or 0:>9,}   by {name} version {version}, trained on {learned:,} rows")
        say(f"  anomalies           {anomalies:>9,}   score above {threshold:.3f}; {incidents} incidents are open")
        _show_worst(screen, conn, name)
        _show_histogram(screen, conn, name, version, threshold)
    _show_views(screen, conn)
    say("")
    say("FRESHNESS, from just before COMMIT at the source until a client is notified")
    for title, measured in freshness.items():
        say(f"  {title:<18} {describe_latency(measured)}")


def describe_latency(measured: NDArray[np.float64]) -> str:
    """Median and 99th percentile of latencies in ms, in words."""
    if not len(measured):
        return "nothing was measured"
    median, high = np.quantile(measured, [0.5, 0.99])
    return f"median {median:.0f} ms, 99 % within {high:.0f} ms, over {len(measured):,} rows"


def _show_worst(screen: Screen, conn: Connection, model: str) -> None:
    rows = conn.execute(_WORST, {"model": model}).fetchall()
    if not rows:
        return
    screen.say("")
    screen.say("WORST ENGINES")
    lines = [("engine", "anomalies", "peak score", "at cycle", "most unusual: + above, - below what is normal")]
    lines += [
        (str(entity), f"{count:,}", f"{peak:.3f}", str(cycle), sensors or "") for entity, count, peak, cycle, sensors in rows
    ]
    _print_columns(screen, lines)


def _show_views(screen: Screen, conn: Connection) -> None:
    rows = conn.execute("SELECT view, state, complete_to, refreshes FROM warehouse.view_watermarks ORDER BY view").fetchall()
    screen.say("")
    screen.say("DERIVED VIEWS")
    lines = [("view", "state", "refreshes", "complete to source commit")]
    lines += [(view, state, str(n), to.isoformat(" ", "milliseconds") if to else "-") for view, state, to, n in rows]
    _print_columns(screen, lines)


def _print_columns(screen: Screen, lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        screen.say("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show_histogram(screen: Screen, conn: Connection, model: str, version: int, threshold: float) -> None:
    query = "SELECT score FROM scorer.scores WHERE model = %s AND model_version = %s"
    scores = np.array([row[0] for row in conn.execute(query, (model, version))])
    if not len(scores):
        return
    screen.say("")
    screen.say("SCORES")
    for line in draw_histogram(scores, threshold):
        screen.say("  " + line)


def draw_histogram(scores: NDArray[np.float64], threshold: float) -> list[str]:
    """Bars of text, one a bin, on a logarithmic scale since anomalies are few; bins above the threshold are marked.

    Args:
        scores: shape (rows,), finite, at least one.
        threshold: a bin's edge, so that no bar mixes ordinary and anomalous rows.
    """
    low, high = float(min(scores.min(), threshold)), float(max(scores.max(), threshold))
    below = max(1, min(BINS - 1, round(BINS * (threshold - low) / (high - low)))) if high > low else 1
    edges = np.unique(np.concatenate([np.linspace(low, threshold, below + 1), np.linspace(threshold, high, BINS - below + 1)]))
    if len(edges) < 2:
        edges = np.array([low, low + 1e-9])
    # A score equal to the threshold is ordinary; numpy's bins are closed on the left.
    counts = np.diff(np.searchsorted(np.sort(scores), edges, side="right"))
    counts[0] += int((scores == edges[0]).sum())
    scale = BAR / np.log1p(counts.max())
    lines = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        mark = "anomalous" if left >= threshold and high > threshold else ""
        lines.append(f"{left:6.3f} to {right:6.3f} {count:>8,} {'#' * round(np.log1p(count) * scale):<{BAR}} {mark}".rstrip())
    return lines


def read_progress(conn: Connection) -> dict[str, Any]:
    """Rows mirrored, whether every table is whole, rows scored, the model's state and its reason, anomalies, lag in ms."""
    row = conn.execute(
        """SELECT (SELECT coalesce(sum(rows), 0)::bigint FROM warehouse.tables),
                  (SELECT count(*) FILTER (WHERE state = 'Synced' AND consistent_from IS NULL) FROM warehouse.tables),
                  (SELECT string_agg(table_name || ' is ' || state || coalesce(': ' || reason, ''), '; ')
                   FROM warehouse.tables WHERE state IN ('Failed', 'ResyncRequired')),
                  (SELECT coalesce(sum(rows_scored), 0)::bigint FROM scorer.model_info WHERE state = 'READY'),
                  (SELECT string_agg(state, ', ') FROM scorer.models WHERE state <> 'RETIRED'),
                  (SELECT string_agg(reason, '; ') FROM scorer.models WHERE state IN ('FAILED', 'PENDING')),
                  (SELECT count(*) FROM scorer.anomalies),
                  (SELECT max(lag_ms) FROM warehouse.status)"""
    ).fetchone()
    assert row is not None, "a SELECT without FROM yields a row"
    names = ("mirrored", "tables_whole", "trouble", "scored", "model_state", "model_reason", "anomalies", "lag_ms")
    return dict(zip(names, row, strict=True))
