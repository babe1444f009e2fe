"""The demo's parts that need no server: the fleet's pace, the histogram, latencies, the command line."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from demo.__main__ import parse_arguments
from demo.fleet import DataFileRefused
from demo.freshness import measure_ms
from demo.plant import HISTORY_CYCLES, make_fleet
from demo.show import describe_latency, draw_histogram


def test_each_engine_flies_in_turn_and_failed_ones_are_replaced() -> None:
    """Cycles of an engine follow each other, a failed engine never flies again, and the fleet keeps its size."""
    fleet = make_fleet(None, engines=3, regimes=1, seed=1)
    fleet.flown = fleet.choose_start()
    first = dict(fleet.flown)
    flown = [(unit, cycle) for unit, cycle, _ in itertools.islice(fleet.fly(), 3 * 400)]
    for unit in {unit for unit, _ in flown}:
        cycles = [cycle for other, cycle in flown if other == unit]
        start = first.get(unit, 0)
        assert cycles == list(range(start + 1, start + 1 + len(cycles)))
        assert cycles[-1] <= fleet.engines[unit].cycles
    assert len({unit for unit, _ in flown}) > 3
    assert sorted(unit for unit, _ in flown[-3:]) == sorted({unit for unit, _ in flown[-3:]})


def test_fleet_of_a_file_ends_with_its_last_cycle(tmp_path: Path) -> None:
    """Real engines are not replaced: once every line was flown, nothing more comes."""
    lines = [f"{unit} {cycle} " + "1.0 " * 24 for unit in (1, 2) for cycle in range(1, 61)]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    fleet = make_fleet(tmp_path / "data.txt", engines=100, regimes=6, seed=0)
    fleet.flown = fleet.choose_start()
    assert all(cycle >= HISTORY_CYCLES for cycle in fleet.flown.values())
    left = 120 - sum(fleet.flown.values())
    assert len(list(fleet.fly())) == left


def test_missing_data_file_is_refused(tmp_path: Path) -> None:
    """A wrong path is said to be one before any server starts."""
    with pytest.raises(DataFileRefused, match="cannot be read"):
        make_fleet(tmp_path / "none.txt", engines=1, regimes=1, seed=0)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([0.5, 0.7, 0.9, 1.5], 1.0),
        ([0.5, 0.6], 1.0),
        ([2.0, 3.0], 1.0),
        ([1.0], 1.0),
        ([0.7] * 50, 0.7),
        ([0.1, 0.9999, 1.0], 1.0),
    ],
)
def test_histogram_counts_every_score_once_and_splits_at_the_threshold(scores: list[float], threshold: float) -> None:
    """The counts add up, and what is marked anomalous is exactly what lies above the threshold."""
    lines = draw_histogram(np.array(scores), threshold)
    counts = [(int(line.split()[3].replace(",", "")), line.endswith("anomalous")) for line in lines]
    assert sum(count for count, _ in counts) == len(scores)
    assert sum(count for count, marked in counts if marked) == sum(score > threshold for score in scores)


def test_latencies_are_those_of_rows_seen_and_committed() -> None:
    """Rows that were not inserted by this run do not count; the rest are in ms."""
    measured = measure_ms({(1, 1): 10.0, (1, 2): 11.0, (1, 3): 12.0}, {(1, 1): 10.5, (1, 2): 11.02, (9, 9): 12.0})
    np.testing.assert_allclose(measured, [20, 500])
    assert describe_latency(measured) == "median 260 ms, 99 % within 495 ms, over 2 rows"
    assert describe_latency(np.array([])) == "nothing was measured"


@pytest.mark.parametrize("arguments", [["--engines", "0"], ["--rate", "0"], ["--regimes", "7"], ["--seconds", "-1"], ["dance"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command line refuses what makes no sense."""
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
