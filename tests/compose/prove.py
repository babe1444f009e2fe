"""Sends a fleet's rows through the container stack of a clean clone and checks what comes out.

Owns the steps and what each must show. Run by tests/compose/run.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from demo.fleet import MEASUREMENTS, generate_fleet, parse_cmapss
from tests.compose.stack import SERVICES, CommandFailed, Stack, find_compose, run

PREFIX = "asset_readings_"
TABLES = ("historical", "standard", "incremental")
SCORED = ("standard", "incremental")
COLUMNS = ["unit", "cycle", "read_at", *MEASUREMENTS]
PATIENCE_S = 300
Row = tuple[Any, ...]


class ProofFailed(Exception):
    """The stack does not do what it promises; the message says which promise."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def require(condition: bool, text: str) -> None:
    """Go on only where the condition holds.

    Raises:
        ProofFailed: it does not.
    """
    if not condition:
        raise ProofFailed(text)


def wait_for(what: str, reached: Callable[[], bool]) -> None:
    """Ask again and again until the answer is yes.

    Raises:
        ProofFailed: it still is no after PATIENCE_S seconds.
    """
    end = time.monotonic() + PATIENCE_S
    while not reached():
        require(time.monotonic() < end, f"waited {PATIENCE_S} s in vain for: {what}")
        time.sleep(0.5)
    say(what)


def read_fleet(path: Path | None) -> list[Row]:
    """A C-MAPSS file's rows, or those of a generated fleet; a cycle an hour, with milliseconds of its own."""
    start = datetime(2024, 3, 31)
    rows: list[Row] = []
    for engine in generate_fleet(40) if path is None else parse_cmapss(path):
        for cycle, values in enumerate(engine.values.tolist(), start=1):
            read_at = start + timedelta(hours=cycle, milliseconds=engine.unit)
            rows.append((engine.unit, cycle, read_at, *values))
    return rows


def split_fleet(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The first 50 cycles of each engine are history; of the rest, the first half is standard, the second incremental."""
    last: dict[int, int] = {}
    for row in rows:
        last[row[0]] = max(last.get(row[0], 0), row[1])
    parts: dict[str, list[Row]] = {table: [] for table in TABLES}
    for row in sorted(rows, key=lambda row: (row[1], row[0])):
        unit, cycle = row[0], row[1]
        half = 50 + (last[unit] - 50) // 2
        parts["historical" if cycle <= 50 else "standard" if cycle <= half else "incremental"].append(row)
    return parts


class Proof:
    """The stack with a writer on one side and a reader on the other."""

    def __init__(self, stack: Stack, passwords: dict[str, str]) -> None:
        self.stack = stack
        self.mysql = stack.open_mysql(passwords["MYSQL_ROOT_PASSWORD"])
        self.password = passwords["TAILRACE__WAREHOUSE__PASSWORD"]
        self.random = random.Random(1)

    def insert(self, table: str, rows: Sequence[Row], *, at_once: bool = False) -> Iterator[int]:
        """Insert rows in transactions of 1 to 500 rows, or all in one; yields after each how many are in."""
        marks = ", ".join(["%s"] * len(COLUMNS))
        statement = f"INSERT INTO {PREFIX}{table} ({', '.join(COLUMNS)}) VALUES ({marks})"
        done = 0
        while done < len(rows):
            chunk = rows[done : done + (len(rows) if at_once else self.random.randint(1, 500))]
            with self.mysql.cursor() as cursor:
                cursor.executemany(statement, chunk)
            self.mysql.commit()
            done += len(chunk)
            yield done

    def change(self, table: str) -> None:
        """Update some rows and delete others, in one transaction."""
        with self.mysql.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {PREFIX}{table}")
            ids = [row[0] for row in cursor.fetchall()]
            chosen = self.random.sample(ids, min(len(ids), 40))
            for number in chosen[:30]:
                cursor.execute(f"UPDATE {PREFIX}{table} SET sensor_2 = sensor_2 + 0.25 WHERE id = %s", (number,))
            for number in chosen[30:]:
                cursor.execute(f"DELETE FROM {PREFIX}{table} WHERE id = %s", (number,))
        self.mysql.commit()

    def read_source(self, table: str) -> list[Row]:
        """All rows of a source table, by key."""
        with self.mysql.cursor() as cursor:
            cursor.execute(f"SELECT id, {', '.join(COLUMNS)} FROM {PREFIX}{table} ORDER BY id")
            rows = cursor.fetchall()
        self.mysql.commit()
        return [tuple(row) for row in rows]

    def read_mirror(self, table: str) -> list[Row]:
        """All rows of a mirror table, by key, instants without their zone (UTC) as the source gives them."""
        rows = self.query(f"SELECT id, {', '.join(COLUMNS)} FROM plant.{PREFIX}{table} ORDER BY id")
        return [(*row[:3], row[3].replace(tzinfo=None), *row[4:]) for row in rows]

    def query(self, statement: str) -> list[Row]:
        """Rows of a query in the warehouse."""
        with self.stack.open_postgres(self.password) as connection:
            return connection.execute(statement).fetchall()

    def is_mirrored(self) -> bool:
        """Both sides have the same rows in every table."""
        found = self.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'plant'")[0][0]
        return bool(found == len(TABLES)) and all(self.read_source(table) == self.read_mirror(table) for table in TABLES)

    def is_scored(self) -> bool:
        """Every mirror row of the scored tables has a score of just its version, and no other row has one."""
        mirrors = " UNION ALL ".join(
            f"SELECT 'plant.{PREFIX}{table}' AS source_table, jsonb_build_object('id', id) AS row_key, _seq"
            f" FROM plant.{PREFIX}{table}"
            for table in SCORED
        )
        wrong, right = self.query(
            f"""SELECT count(*) FILTER (WHERE s.seq IS DISTINCT FROM m._seq), count(*) FILTER (WHERE s.seq = m._seq)
                FROM ({mirrors}) m FULL JOIN scorer.scores s USING (source_table, row_key)"""
        )[0]
        return bool(wrong == 0 and right > 0)


def prove_refusal(stack: Stack) -> None:
    """Without passwords nothing starts, and the message says what to do."""
    try:
        stack.call("config")
    except CommandFailed as error:
        require("tools/make-secrets" in str(error), f"the message for a missing password is no help:\n{error}")
    else:
        raise ProofFailed("the stack has default passwords")
    say("without passwords compose refuses and names tools/make-secrets")


def prove_start(stack: Stack) -> None:
    """All services become healthy and run as ordinary users, the migrations are applied, nothing listens to the world."""
    say("building the image and starting the stack")
    stack.call("up", "-d", "--build")
    wait_for("all services are healthy", lambda: all(is_healthy(stack, service) for service in SERVICES))
    for service in SERVICES:
        require(stack.read_user(service) != 0, f"{service} runs as root")
        published = [
            entry["HostIp"]
            for entries in (stack.inspect(service)["NetworkSettings"]["Ports"] or {}).values()
            for entry in entries or []
        ]
        require(set(published) <= {"127.0.0.1"}, f"{service} is published on {published}")
    say("no service runs as root, and ports are published on 127.0.0.1 only")


def is_healthy(stack: Stack, service: str) -> bool:
    """Docker's own opinion of a service."""
    return bool(stack.inspect(service)["State"].get("Health", {}).get("Status") == "healthy")


def prove_flow(proof: Proof, rows: Sequence[Row]) -> None:
    """Rows that are inserted, updated and deleted while services restart are mirrored and scored, each once."""
    parts = split_fleet(rows)
    for table in ("historical", "standard"):
        # The history in one transaction: the model is trained as soon as there is enough of it.
        for _ in proof.insert(table, parts[table], at_once=table == "historical"):
            pass
        say(f"inserted {len(parts[table])} rows into {PREFIX}{table}")
    wait_for("the mirror is equal, row by row", proof.is_mirrored)
    wait_for("every row is scored", proof.is_scored)
    total = len(parts["incremental"])
    faults: list[tuple[float, str, Callable[[], object]]] = [
        (0.3, "restarting the replicator", lambda: proof.stack.call("restart", "replicator")),
        (0.5, "killing the scorer", lambda: (proof.stack.call("kill", "scorer"), proof.stack.call("start", "scorer"))),
        (
            0.7,
            "killing the replicator",
            lambda: (proof.stack.call("kill", "replicator"), proof.stack.call("start", "replicator")),
        ),
    ]
    for done in proof.insert("incremental", parts["incremental"]):
        proof.change(proof.random.choice(SCORED))
        if faults and done >= faults[0][0] * total:
            _, text, act = faults.pop(0)
            say(f"{text} after {done} of {total} rows")
            act()
    say(f"inserted {total} rows into {PREFIX}incremental, with updates and deletes among them")
    wait_for("the mirror is equal, row by row", proof.is_mirrored)
    wait_for("every row is scored in its last version, and none twice", proof.is_scored)
    counts = proof.query("SELECT count(*), count(DISTINCT entity) FROM anomalies WHERE status = 'open'")[0]
    require(counts[0] > 0, "a fleet that runs to failure has no anomalies")
    scored = proof.query("SELECT count(*) FROM scores")[0][0]
    say(f"{scored} rows scored; {counts[0]} anomalies of {counts[1]} engines")


def prove_restart(proof: Proof, rows: Sequence[Row]) -> None:
    """The volumes keep everything: after down and up the stack goes on where it was."""
    before = proof.query("SELECT count(*) FROM scores")[0][0]
    proof.mysql.close()
    proof.stack.call("down")
    proof.stack.call("up", "-d")
    passwords = proof.stack.read_secrets()
    proof.mysql = proof.stack.open_mysql(passwords["MYSQL_ROOT_PASSWORD"])
    unit = max(row[0] for row in rows) + 1
    for _ in proof.insert("incremental", [(unit, *row[1:]) for row in rows if row[0] == rows[0][0]]):
        pass
    wait_for("after down and up the mirror is equal again", proof.is_mirrored)
    wait_for("and every row is scored", proof.is_scored)
    require(proof.query("SELECT count(*) FROM scores")[0][0] > before, "the new rows have no scores")
    wait_for("all services are healthy", lambda: all(is_healthy(proof.stack, service) for service in SERVICES))


def tell_compiled(stack: Stack) -> None:
    """Say whether the image's numba cache sufficed: what is new in it was compiled by a running service."""
    for service in ("replicator", "scorer"):
        new = stack.call("exec", "-T", service, "sh", "-c", "find $NUMBA_CACHE_DIR -name '*.nbc' -newer /etc/hostname")
        say(f"{service} compiled {len(new.split())} kernels that were not in the image")


def prove_silence(stack: Stack, passwords: dict[str, str]) -> None:
    """No password is in the image, and none is in the logs."""
    history = run(["docker", "history", "--no-trunc", "tailrace:proof"], cwd=stack.folder)
    logs = stack.call("logs", "--no-color")
    for name, password in passwords.items():
        require(password not in history, f"{name} is in the image's history")
        require(password not in logs, f"{name} is in the logs")
    say("no password in the image's history or in the logs")


def main() -> int:
    """Run every step; 0 where all held."""
    parser = argparse.ArgumentParser(prog="tests/compose/run", description=__doc__)
    parser.add_argument("--data", type=Path, help="a C-MAPSS file; default: a generated fleet")
    parser.add_argument("--compose", help="the compose command, where it is not to be found out")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options = parser.parse_args()
    rows = read_fleet(options.data)
    with contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="tailrace-compose-"))
        stack = Stack(folder, options.compose.split() if options.compose else find_compose())
        say(f"compose is {' '.join(stack.compose)}, project {stack.project}, clone {stack.folder}")
        try:
            prove_refusal(stack)
            stack.make_secrets()
            passwords = stack.read_secrets()
            if not options.keep:
                cleanup.callback(stack.remove)
            prove_start(stack)
            proof = Proof(stack, passwords)
            prove_flow(proof, rows)
            tell_compiled(stack)
            prove_restart(proof, rows)
            prove_silence(stack, passwords)
        except (ProofFailed, CommandFailed) as error:
            say(f"FAILED: {error}")
            with contextlib.suppress(CommandFailed):
                print(stack.call("ps"), stack.call("logs", "--no-color", "--tail", "60"), sep="\n")
            return 1
    if options.keep:
        say(f"left running: {stack.folder}, COMPOSE_PROJECT_NAME={stack.project}")
    elif left := stack.leftovers():
        say(f"FAILED: left behind: {left}")
        return 1
    say("the stack holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
