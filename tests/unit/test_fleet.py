"""The generated fleet and the file format of C-MAPSS."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from demo.fleet import MEASUREMENTS, DataFileRefused, generate_fleet, parse_cmapss

DATA = Path(__file__).parent.parent.parent.parent / "shared/data/train_FD001.txt.gz"


def column(name: str) -> int:
    """The index of a measurement."""
    return MEASUREMENTS.index(name)


def line(unit: int, cycle: int, value: object = 1.5, columns: int = 26) -> str:
    """One line of a data file."""
    return " ".join([str(unit), str(cycle), *[str(value)] * (columns - 2)])


def test_fleet_depends_on_the_seed_alone() -> None:
    """The same seed gives the same engines, whatever the size of the fleet; another seed gives others."""
    small, large, other = (list(generate_fleet(n, seed=seed)) for n, seed in ((3, 5), (6, 5), (3, 6)))
    for left, right in zip(small, large, strict=False):
        np.testing.assert_array_equal(left.values, right.values)
    assert not all(np.array_equal(left.values, right.values) for left, right in zip(small, other, strict=True))


def test_engines_run_for_realistic_lives() -> None:
    """Lives lie within those of FD001, differ, and units count from 1."""
    fleet = list(generate_fleet(60, regimes=1))
    lives = np.array([engine.cycles for engine in fleet])
    assert [engine.unit for engine in fleet] == list(range(1, 61))
    assert lives.min() >= 128
    assert lives.max() <= 362
    assert 180 < lives.mean() < 235
    assert all(engine.values.shape == (engine.cycles, 24) and np.isfinite(engine.values).all() for engine in fleet)


@pytest.mark.parametrize("regimes", [1, 6])
def test_regimes_are_flown_and_told_apart_by_the_settings(regimes: int) -> None:
    """As many clusters of altitude as regimes are asked for."""
    values = np.concatenate([engine.values for engine in generate_fleet(10, regimes=regimes)])
    altitudes = np.unique(np.round(values[:, column("setting_1")]))
    assert len(altitudes) == regimes


@pytest.mark.parametrize("regimes", [1, 6])
def test_engines_degrade_in_every_regime(regimes: int) -> None:
    """In the last cycles sensor 4 lies above, and sensor 7 below, what the same regime shows in the first ones."""
    fleet = list(generate_fleet(30, regimes=regimes))
    first = np.concatenate([engine.values[:30] for engine in fleet])
    last = np.concatenate([engine.values[-10:] for engine in fleet])
    for altitude in np.unique(np.round(first[:, 0])):
        new, old = (part[np.round(part[:, 0]) == altitude] for part in (first, last))
        for name, sign in (("sensor_4", 1), ("sensor_7", -1)):
            shift = sign * (old[:, column(name)].mean() - new[:, column(name)].mean())
            assert shift > 2 * new[:, column(name)].std(), (altitude, name)


def test_impossible_fleets_are_refused() -> None:
    """No engines, no regimes and more regimes than there are are errors, not empty fleets."""
    for engines, regimes in ((0, 6), (5, 0), (5, 7)):
        with pytest.raises(ValueError, match=r"1 or more engines|regimes"):
            next(generate_fleet(engines, regimes=regimes))


@pytest.mark.parametrize("pack", [lambda body: body, gzip.compress])
def test_reads_plain_and_gzipped_files(tmp_path: Path, pack: object) -> None:
    """Both forms give the same engines, trailing blanks included."""
    assert callable(pack)
    text = "".join(line(unit, cycle, unit + cycle / 10) + "  \n" for unit in (1, 3) for cycle in (1, 2, 3))
    (tmp_path / "data").write_bytes(pack(text.encode()))
    engines = parse_cmapss(tmp_path / "data")
    assert [(engine.unit, engine.cycles) for engine in engines] == [(1, 3), (3, 3)]
    np.testing.assert_array_equal(engines[1].values[2], np.full(24, 3.3))


def test_reads_the_real_file() -> None:
    """FD001 has 100 engines and 20,631 rows; every number comes through."""
    if not DATA.exists():
        pytest.skip("../shared/data has no train_FD001.txt.gz (NASA's, gzipped)")
    engines = parse_cmapss(DATA)
    assert len(engines) == 100
    assert sum(engine.cycles for engine in engines) == 20_631
    assert engines[0].values[0].tolist()[:5] == [-0.0007, -0.0004, 100.0, 518.67, 641.82]


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (line(1, 3, columns=25), "line 3: 25 columns, expected 26"),
        (line(1, 3, columns=27), "line 3: 27 columns"),
        ("", "line 3: 0 columns"),
        (line(1, 3, "abc"), "line 3: column 3 is 'abc', not a number"),
        (line(1, 3, "nan"), "line 3: column 3 is 'nan'"),
        (line(1, 3, "1_0"), "line 3: column 3 is '1_0'"),
        (line(1, 2), "line 3: cycle 2, expected 3"),
        (line(1, 5), "line 3: cycle 5, expected 3"),
        (line(2, 2), "line 3: cycle 2, expected 1"),
        (line(0, 1), "line 3: unit 0"),
        (line(1, 3).replace("1 3", "1.5 3", 1), r"line 3: unit 1.5"),
    ],
)
def test_wrong_line_is_named_and_nothing_is_loaded(tmp_path: Path, third: str, message: str) -> None:
    """Any line that is not as it should be refuses the whole file, with its number and what is wrong."""
    (tmp_path / "data.txt").write_text("\n".join([line(1, 1), line(1, 2), third, line(2, 1)]) + "\n")
    with pytest.raises(DataFileRefused) as caught:
        parse_cmapss(tmp_path / "data.txt")
    assert caught.value.message.startswith(message)
    assert "Nothing was loaded" in caught.value.hint
    assert caught.value.exit_code == 2


def test_unit_that_comes_back_is_refused(tmp_path: Path) -> None:
    """Lines of one engine in two places would be two lives under one number."""
    (tmp_path / "data.txt").write_text("\n".join([line(1, 1), line(2, 1), line(1, 1)]))
    with pytest.raises(DataFileRefused, match="line 3: unit 1 after unit 2"):
        parse_cmapss(tmp_path / "data.txt")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00", "not plain text"),
        (gzip.compress(b"1 1", mtime=0)[:-6], "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_file_that_is_no_data_is_refused(tmp_path: Path, body: bytes | None, message: str) -> None:
    """An empty, binary, cut short or missing file is a clear error."""
    if body is not None:
        (tmp_path / "data").write_bytes(body)
    with pytest.raises(DataFileRefused, match=message):
        parse_cmapss(tmp_path / "data")
