"""The plant: the source tables, the fleet's history in them, and the cycles that are flown while the services run.

Owns: the schema at the source, which engine is at which cycle, the pace of inserts. Never: touches the warehouse.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pymysql
from numpy.typing import NDArray

from demo.fleet import MEASUREMENTS, Engine, generate_engine, generate_fleet, parse_cmapss
from demo.servers import Server
from warehouse.errors import TailraceError

DATABASE = "plant"
TABLES = ("asset_readings_historical", "asset_readings_standard", "asset_readings_incremental")
HISTORY_CYCLES = 50
LOAD_ROWS = 1000
CYCLE = timedelta(hours=1)

Row = tuple[Any, ...]


class OtherFleet(TailraceError):
    """The folder holds the data of another fleet than the one asked for."""

    exit_code = 2


@dataclass
class Fleet:
    """Engines by unit, and how to commission another one when one has failed.

    description: what tells this fleet from another, as JSON values.
    """

    engines: dict[int, Engine]
    description: dict[str, Any]
    commission: Callable[[int], Engine] | None = None
    flown: dict[int, int] = field(default_factory=dict)

    def choose_start(self) -> dict[int, int]:
        """The cycle that each engine is at when the services start: anywhere after its history, by the seed."""
        rng = np.random.default_rng(self.description.get("seed", 0))
        return {
            unit: int(rng.integers(min(HISTORY_CYCLES, engine.cycles), engine.cycles)) for unit, engine in self.engines.items()
        }

    def fly(self) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Yield unit, cycle and measurements, one cycle of each engine in turn; failed engines are replaced if possible."""
        while True:
            running = [unit for unit, engine in self.engines.items() if self.flown.get(unit, 0) < engine.cycles]
            missing = self.description.get("engines", 0) - len(running)
            for _ in range(missing if self.commission is not None else 0):
                engine = self.commission(max(self.engines) + 1)  # type: ignore[misc]
                self.engines[engine.unit] = engine
                running.append(engine.unit)
            if not running:
                return
            for unit in running:
                cycle = self.flown.get(unit, 0) + 1
                self.flown[unit] = cycle
                yield unit, cycle, self.engines[unit].values[cycle - 1]


def make_fleet(data: Path | None, *, engines: int, regimes: int, seed: int) -> Fleet:
    """The real engines of a C-MAPSS file, or a generated fleet.

    Raises:
        DataFileRefused: the file is not in the format.
    """
    if data is not None:
        digest = hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else ""
        return Fleet({engine.unit: engine for engine in parse_cmapss(data)}, {"data": data.name, "sha256": digest})
    made = {engine.unit: engine for engine in generate_fleet(engines, regimes=regimes, seed=seed)}
    description = {"engines": engines, "regimes": regimes, "seed": seed}
    return Fleet(made, description, lambda unit: generate_engine(unit, regimes=regimes, seed=seed))


class Plant:
    """The source database of the demo."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self._note = folder / "fleet.json"

    def connect(self, database: str | None = DATABASE) -> Any:
        """A PyMySQL connection as the server's own user; times are UTC."""
        server = self.server
        return pymysql.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password,
            database=database,
            charset="utf8mb4",
            init_command="SET time_zone = '+00:00'",
        )

    def grant(self, user: str, password: str) -> None:
        """Make the replicator's user, with the rights that it needs and no others."""
        with closing(self.connect(None)) as conn, conn.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE} CHARACTER SET utf8mb4")
            cursor.execute("CREATE USER IF NOT EXISTS %s@'%%' IDENTIFIED BY %s", (user, password))
            cursor.execute("ALTER USER %s@'%%' IDENTIFIED BY %s", (user, password))
            cursor.execute("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO %s@'%%'", (user,))
            cursor.execute(f"GRANT SELECT ON {DATABASE}.* TO %s@'%%'", (user,))

    def load(self, fleet: Fleet, progress: Callable[[int, int], None]) -> bool:
        """Create the tables and load every engine's past, once; later runs go on from what is there.

        Args:
            fleet: its `flown` is set to where each engine is.
            progress: gets the rows loaded so far and all rows.

        Returns:
            Whether anything was loaded.

        Raises:
            OtherFleet: another fleet was loaded before.
        """
        loaded = json.loads(self._note.read_text()) if self._note.exists() else None
        if loaded is not None and loaded != fleet.description:
            raise OtherFleet(
                "the demo's folder holds another fleet",
                hint="Run: make clean, which removes it.",
                holds=loaded,
                wanted=fleet.description,
            )
        if loaded is None:
            self._load_past(fleet, progress)
            self._note.write_text(json.dumps(fleet.description))
        fleet.flown = self.read_flown()
        for unit in range(max(fleet.engines) + 1, max(fleet.flown, default=0) + 1):
            if fleet.commission is not None:
                fleet.engines[unit] = fleet.commission(unit)
        return loaded is None

    def _load_past(self, fleet: Fleet, progress: Callable[[int, int], None]) -> None:
        start = fleet.choose_start()
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        rows: dict[str, list[Row]] = {TABLES[0]: [], TABLES[1]: []}
        for unit, engine in fleet.engines.items():
            for cycle in range(1, start[unit] + 1):
                table = TABLES[0] if cycle <= HISTORY_CYCLES else TABLES[1]
                rows[table].append((unit, cycle, now - CYCLE * (start[unit] - cycle), *engine.values[cycle - 1].tolist()))
        total = sum(map(len, rows.values()))
        done = 0
        with closing(self.connect()) as conn, conn.cursor() as cursor:
            for table in TABLES:
                # Whatever a run that was interrupted left behind.
                cursor.execute(f"DROP TABLE IF EXISTS {table}")
                cursor.execute(_write_ddl(table))
            for table, body in rows.items():
                # In the order of time, as they came to be.
                body.sort(key=lambda row: row[2])
                for first in range(0, len(body), LOAD_ROWS):
                    cursor.executemany(_write_insert(table), body[first : first + LOAD_ROWS])
                    conn.commit()
                    done += len(body[first : first + LOAD_ROWS])
                    progress(done, total)

    def read_flown(self) -> dict[int, int]:
        """The last cycle of each engine in the source."""
        union = " UNION ALL ".join(f"SELECT unit, cycle FROM {table}" for table in TABLES)
        with closing(self.connect()) as conn, conn.cursor() as cursor:
            cursor.execute(f"SELECT unit, MAX(cycle) FROM ({union}) AS readings GROUP BY unit")
            return {int(unit): int(cycle) for unit, cycle in cursor.fetchall()}

    def fly_one(self, fleet: Fleet) -> int:
        """Insert the next cycle of one engine; returns how many rows that were, 0 where no engine runs."""
        flown = list(itertools.islice(fleet.fly(), 1))
        if flown:
            with closing(self.connect()) as conn, conn.cursor() as cursor:
                cursor.executemany(_write_insert(TABLES[2]), _stamp(flown))
                conn.commit()
        return len(flown)

    def count_rows(self) -> dict[str, int]:
        """Rows of each table at the source."""
        with closing(self.connect()) as conn, conn.cursor() as cursor:
            counts = {}
            for table in TABLES:
                cursor.execute(f"SELECT COUNT(*) FROM {table}")
                counts[table] = int(cursor.fetchone()[0])
            return counts


class Writer(threading.Thread):
    """Inserts new cycles at a steady pace, in transactions of 1 to 10 rows, until told to stop or no engine runs.

    committed: (unit, cycle) to the time.time() just before COMMIT was sent.
    """

    def __init__(self, plant: Plant, fleet: Fleet, rows_per_s: float, seed: int) -> None:
        super().__init__(name="writer", daemon=True)
        self.plant, self.fleet, self.rows_per_s = plant, fleet, rows_per_s
        self.committed: dict[tuple[int, int], float] = {}
        self.error: Exception | None = None
        self.ended = False
        self._rng = np.random.default_rng(seed)
        self._asked_to_stop = threading.Event()

    def stop(self) -> None:
        """Finish the transaction at hand and end."""
        self._asked_to_stop.set()
        self.join()

    def run(self) -> None:
        """Insert until stopped; an error is kept for the main thread."""
        try:
            self._insert()
        except (pymysql.err.Error, OSError) as error:
            self.error = error

    def _insert(self) -> None:
        flights = self.fleet.fly()
        statement = _write_insert(TABLES[2])
        due = time.monotonic()
        with closing(self.plant.connect()) as conn, conn.cursor() as cursor:
            while not self._asked_to_stop.wait(max(0.0, due - time.monotonic())):
                size = int(self._rng.integers(1, 11))
                flown = list(itertools.islice(flights, size))
                if not flown:
                    self.ended = True
                    return
                cursor.executemany(statement, _stamp(flown))
                at = time.time()
                conn.commit()
                self.committed.update({(unit, cycle): at for unit, cycle, _ in flown})
                # A source that was slow for a moment is not flooded afterwards.
                due = max(due + size / self.rows_per_s, time.monotonic() - 1)


def _stamp(flown: list[tuple[int, int, NDArray[np.float64]]]) -> list[Row]:
    """Rows as they are inserted, read now."""
    now = datetime.now(UTC).replace(tzinfo=None)
    return [(unit, cycle, now, *values.tolist()) for unit, cycle, values in flown]


def _write_ddl(table: str) -> str:
    measurements = ", ".join(f"{name} DOUBLE" for name in MEASUREMENTS)
    return (
        f"CREATE TABLE {table} (id BIGINT AUTO_INCREMENT PRIMARY KEY, unit INT NOT NULL, cycle INT NOT NULL, "
        f"read_at TIMESTAMP(3) NOT NULL, {measurements}, UNIQUE KEY unit_cycle (unit, cycle))"
    )


def _write_insert(table: str) -> str:
    columns = ["unit", "cycle", "read_at", *MEASUREMENTS]
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
