"""The form in which benchmarks report."""

from __future__ import annotations

import io
import json

from bench.report import Report


def test_figures_are_json_at_the_end_and_a_table_on_the_way():
    """One object per figure with all six fields, printed by `finish` only; people see each line at once."""
    table, output = io.StringIO(), io.StringIO()
    report = Report("Speed", table=table, output=output)
    report.add("rows_read", 1_234_567.8, "rows/s", against="limit: 2,000,000 rows/s", ratio=0.61728, aim=0.5)
    report.add("size", 0.0123449, "MiB")
    assert output.getvalue() == ""
    assert "rows_read" in table.getvalue()
    report.finish()
    assert [json.loads(line) for line in output.getvalue().splitlines()] == [
        {
            "figure": "rows_read",
            "value": 1_235_000,
            "unit": "rows/s",
            "against": "limit: 2,000,000 rows/s",
            "ratio": 0.6173,
            "aim": 0.5,
        },
        {"figure": "size", "value": 0.01234, "unit": "MiB", "against": None, "ratio": None, "aim": None},
    ]
