"""A fleet of turbofan engines that run to failure: generated, or read from a file in the format of C-MAPSS.

Owns: the regimes' levels, noise and wear, and the file format. Never: touches a database.

The levels are those of NASA's C-MAPSS data sets FD001 (one operating regime) and FD002 (six): Saxena, Goebel, Simon, Eklund,
"Damage Propagation Modeling for Aircraft Engine Run-to-Failure Simulation", PHM 2008. Noise, differences between engines and
the drift until failure were measured on FD001; in the other regimes they grow with the level of the sensor.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import TailraceError

MEASUREMENTS = tuple([f"setting_{n}" for n in range(1, 4)] + [f"sensor_{n}" for n in range(1, 22)])

# setting_1 (altitude, 1000 ft), setting_2 (Mach number), setting_3 (throttle resolver angle), then the 21 sensors' levels.
_REGIMES = np.array(
    [
        [0, 0.00, 100, 518.67, 642.38, 1586.90, 1402.83, 14.62, 21.61, 553.95, 2388.06, 9056.06, 1.30, 47.36, 521.90, 2388.06,
         8137.38, 8.418, 0.03, 392.3, 2388, 100.00, 38.93, 23.36],
        [10, 0.25, 100, 489.05, 604.50, 1499.50, 1310.00, 10.52, 15.49, 394.30, 2318.90, 8778.00, 1.26, 45.40, 371.60, 2388.10,
         8130.00, 8.660, 0.03, 369.0, 2319, 100.00, 28.50, 17.10],
        [20, 0.70, 100, 491.19, 607.60, 1481.00, 1249.00, 9.35, 13.66, 334.50, 2323.90, 8730.00, 1.08, 44.30, 314.90, 2388.05,
         8066.00, 9.230, 0.02, 365.0, 2324, 100.00, 24.50, 14.70],
        [25, 0.62, 60, 462.54, 536.80, 1262.50, 1050.00, 7.05, 9.03, 175.40, 1915.30, 8015.00, 0.94, 36.60, 164.90, 2028.30,
         7878.00, 10.900, 0.02, 307.0, 1915, 84.93, 14.30, 8.60],
        [35, 0.84, 100, 449.44, 555.80, 1366.00, 1132.00, 5.48, 8.00, 194.50, 2223.00, 8346.00, 1.02, 41.90, 183.20, 2387.95,
         8067.00, 9.330, 0.02, 334.0, 2223, 100.00, 14.85, 8.90],
        [42, 0.84, 100, 445.00, 549.70, 1354.00, 1126.00, 3.91, 5.71, 138.70, 2211.90, 8323.00, 1.02, 42.20, 130.60, 2388.00,
         8081.00, 9.380, 0.02, 331.0, 2212, 100.00, 10.60, 6.40],
    ]
)  # fmt: skip
# In the first regime: standard deviation from cycle to cycle, and from engine to engine; drift from new to failure.
_NOISE = np.array([0.0021, 0.0003, 0, 0, 0.297, 3.96, 3.90, 0, 0.002, 0.40, 0.031, 4.16, 0, 0.100, 0.299, 0.030, 3.06, 0.0197,
                   0, 0.91, 0, 0, 0.098, 0.060])  # fmt: skip
_BETWEEN = np.array([0, 0, 0, 0, 0.236, 2.44, 4.47, 0, 0.0007, 0.479, 0.046, 7.30, 0, 0.146, 0.410, 0.047, 7.34, 0.0176,
                     0, 0.68, 0, 0, 0.085, 0.051])  # fmt: skip
_DRIFT = np.array([0, 0, 0, 0, 1.32, 15.4, 26.5, 0, 0.0004, -2.52, 0.18, 55.0, 0, 0.81, -2.16, 0.184, 45.0, 0.105,
                   0, 4.07, 0, 0, -0.498, -0.295])  # fmt: skip
# Core speeds rise in some engines and fall in others, by the kind of fault.
_SIGNED_BY_FAULT = [MEASUREMENTS.index("sensor_9"), MEASUREMENTS.index("sensor_14")]
_DECIMALS = np.array([4, 4, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4, 2, 0, 0, 2, 2, 4])

_COLUMNS = 2 + len(MEASUREMENTS)


class DataFileRefused(TailraceError):
    """A file of readings is not in the format of C-MAPSS; nothing of it was loaded."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Engine:
    """One engine from its first cycle to its last.

    values: shape (cycles, 24), dtype float64, columns as in MEASUREMENTS; row i is cycle i + 1.
    """

    unit: int
    values: NDArray[np.float64]

    @property
    def cycles(self) -> int:
        """How many cycles the engine ran."""
        return len(self.values)


def generate_fleet(engines: int = 100, *, regimes: int = 6, seed: int = 0) -> Iterator[Engine]:
    """Generate engines that run to failure, units numbered from 1.

    Raises:
        ValueError: no engine is asked for, or not 1 to 6 regimes.
    """
    if engines < 1:
        raise ValueError(f"a fleet has 1 or more engines, not {engines}")
    for unit in range(1, engines + 1):
        yield generate_engine(unit, regimes=regimes, seed=seed)


def generate_engine(unit: int, *, regimes: int = 6, seed: int = 0) -> Engine:
    """Generate one engine's life, which depends on the seed and its own number alone.

    Args:
        unit: its number, 1 or more.
        regimes: 1, sea level only, to 6; each cycle is flown in one of them, chosen at random.
        seed: the same seed gives the same engine.

    Raises:
        ValueError: not 1 to 6 regimes.
    """
    if not 1 <= regimes <= len(_REGIMES):
        raise ValueError(f"there are 1 to {len(_REGIMES)} regimes, not {regimes}")
    rng = np.random.default_rng([seed, unit])
    life = int(np.clip(rng.gamma(9.0, 13.0) + 90, 128, 362))
    # Wear sets in late in some lives and early in others, then grows exponentially until the engine fails at 1.
    onset = rng.uniform(0.15, 0.55) * life
    growth = rng.uniform(2.5, 5.0)
    since_onset = np.clip((np.arange(1, life + 1) - onset) / (life - onset), 0, 1)
    wear = np.expm1(growth * since_onset) / np.expm1(growth)

    drift = _DRIFT * rng.normal(1.0, 0.08, len(_DRIFT))
    drift[_SIGNED_BY_FAULT] *= 1 if rng.random() < 0.7 else -1
    levels = _REGIMES[rng.integers(regimes, size=life)]
    # Sensors that fall with altitude move less there; the settings themselves jitter alike in every regime.
    relative = levels / _REGIMES[0].clip(1e-9)
    relative[:, :3] = 1
    moved = rng.normal(0, _BETWEEN) + wear[:, None] * drift + rng.normal(0, _NOISE, (life, len(_NOISE)))
    values: NDArray[np.float64] = levels + relative * moved
    for column, decimals in enumerate(_DECIMALS):
        values[:, column] = np.round(values[:, column], decimals)
    return Engine(unit, values)


def parse_cmapss(path: Path) -> list[Engine]:
    """Read a C-MAPSS file, plain or gzipped: unit, cycle, 3 settings and 21 sensors a line, split by blanks.

    The whole file is checked before anything is returned.

    Raises:
        DataFileRefused: the file cannot be read, or a line has not 26 numbers, repeats or skips a cycle, or goes back to an
            earlier unit; names the line.
    """
    engines: list[Engine] = []
    rows: list[list[float]] = []
    unit = 0
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        new_unit, cycle, values = _parse_line(line, path, number)
        if rows and new_unit != unit:
            engines.append(Engine(unit, np.array(rows)))
            rows = []
        if not rows and new_unit <= unit:
            raise _refuse(
                path, number, f"unit {new_unit} after unit {unit}", "Each engine's lines stand together, units ascending."
            )
        if cycle != len(rows) + 1:
            raise _refuse(path, number, f"cycle {cycle}, expected {len(rows) + 1}", "Cycles count from 1 without gaps.")
        unit = new_unit
        rows.append(values)
    if not rows:
        raise _refuse(path, 1, "the file is empty", "Give a file such as train_FD001.txt.")
    engines.append(Engine(unit, np.array(rows)))
    return engines


def _read_text(path: Path) -> str:
    try:
        body = path.read_bytes()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        return body.decode("ascii")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataFileRefused(f"the data file cannot be read: {reason}", hint="Is the path right?", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataFileRefused("the data file is not plain text", hint="Unpack it first.", path=str(path)) from error


def _parse_line(line: str, path: Path, number: int) -> tuple[int, int, list[float]]:
    fields = line.split()
    if len(fields) != _COLUMNS:
        raise _refuse(path, number, f"{len(fields)} columns, expected {_COLUMNS}", "Unit, cycle, 3 settings and 21 sensors.")
    values: list[float] = []
    for column, text in enumerate(fields, start=1):
        try:
            # float() takes 1_000 too, which no instrument writes.
            value = float(text) if "_" not in text else np.nan
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise _refuse(path, number, f"column {column} is {text!r}, not a number", "Mend or take out the line.")
        values.append(value)
    if not (values[0].is_integer() and values[1].is_integer() and 1 <= values[0] < 2**31):
        raise _refuse(path, number, f"unit {fields[0]}, cycle {fields[1]}", "Units and cycles are whole numbers from 1.")
    return int(values[0]), int(values[1]), values[2:]


def _refuse(path: Path, number: int, what: str, hint: str) -> DataFileRefused:
    return DataFileRefused(f"line {number}: {what}", hint=f"{hint} Nothing was loaded.", path=str(path))
