"""How a benchmark says what it found.

Owns the form of a figure: a line for people on standard error while the run goes on, and one JSON object per figure on
standard output at its end. Never measures anything.
"""

from __future__ import annotations

import json
import sys
from typing import TextIO


class Report:
    """Collects the figures of one benchmark.

    Args:
        title: what is measured, a few words; printed above the table.
    """

    def __init__(self, title: str, *, table: TextIO | None = None, output: TextIO | None = None) -> None:
        self._table = table or sys.stderr
        self._output = output or sys.stdout
        self._figures: list[dict[str, object]] = []
        self.note(f"\n{title}\n{'figure':44}{'value':>14} {'unit':10}{'ratio':>8}{'aim':>8}  against")

    def note(self, text: str) -> None:
        """A remark for people: what is done next, what is missing."""
        print(text, file=self._table, flush=True)

    def add(
        self,
        figure: str,
        value: float,
        unit: str,
        *,
        against: str | None = None,
        ratio: float | None = None,
        aim: float | None = None,
    ) -> None:
        """Add a figure.

        Args:
            figure: its name, lower case with underscores; stays the same from version to version.
            value: what was measured, in `unit`.
            against: the peer or limit, with its own value where that helps.
            ratio: how much better than the peer or limit, so that more is better.
            aim: the least that is aimed at: of the ratio, if there is one, else of the value.
        """
        rounded = {"value": _round(value), "ratio": _round(ratio), "aim": aim}
        self._figures.append(
            {
                "figure": figure,
                "value": rounded["value"],
                "unit": unit,
                "against": against,
                "ratio": rounded["ratio"],
                "aim": aim,
            }
        )
        cells = ["" if cell is None else f"{cell:,g}" for cell in (rounded["ratio"], aim)]
        self.note(f"{figure:44}{rounded['value']:>14,} {unit:10}{cells[0]:>8}{cells[1]:>8}  {against or ''}")

    def finish(self) -> None:
        """Print the figures as JSON, one object per line."""
        for figure in self._figures:
            print(json.dumps(figure, allow_nan=False), file=self._output, flush=True)


def _round(value: float | None) -> float | int | None:
    """Four significant digits, whole numbers from 1,000 on: more would be noise."""
    if value is None:
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if abs(rounded) >= 1000 or rounded == int(rounded) else rounded
