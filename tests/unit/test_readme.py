"""The programs that the README shows run as they stand."""

from __future__ import annotations

import gzip
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parents[2] / "README.md"


def read_programs() -> list[str]:
    """The README's Python."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_taxi_example_finds_the_odd_day(tmp_path, monkeypatch, capsys):
    """On a made series with one day far too busy: all that is printed is of it, and is high."""
    start = datetime(2014, 7, 1)
    hours = np.arange(48 * 60) / 2.0
    rides = 15_000 - 9_000 * np.cos(hours * 2 * np.pi / 24) + np.random.default_rng(0).normal(0, 300, hours.size)
    rides[48 * 50 : 48 * 51] = 40_000
    with gzip.open(tmp_path / "nyc_taxi.csv.gz", "wt") as text:
        text.write("timestamp,value\n")
        text.writelines(f"{start + timedelta(hours=h)},{value:.0f}\n" for h, value in zip(hours, rides, strict=True))
    monkeypatch.chdir(tmp_path)
    exec(compile(read_programs()[0], "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(("2014-08-20", "2014-08-21")) for line in lines)
    assert "'HIGH'" in lines[-1]


def test_the_kinesis_example_finds_the_spike(capsys):
    """Two columns, one spike in the second: one line says so."""
    rows = np.random.default_rng(0).normal(size=(600, 2))
    rows[500, 1] = 40.0
    exec(compile(read_programs()[1], "README.md", "exec"), {"np": np, "stream": np.split(rows, 12)})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if float(line.split()[0]) > 4.0]
    assert line.split()[1] == "1.0"
    high, low = (np.fromstring(part, sep=" ") for part in re.findall(r"\[(.*?)\]", line))
    assert high[1] > 5 * (high[0] + low.sum())
