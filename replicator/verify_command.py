"""The command `replicator verify`: asks for comparisons, and stands in for the replicator where none runs.

Owns asking, waiting and the report. Whoever holds the source's lock compares.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from replicator.errors import DriftFound, NotVerified
from replicator.mirror_side import QUERIES
from replicator.run import Replication
from warehouse.db import Connection, connect, wrap_errors
from warehouse.errors import SettingsError
from warehouse.service import Stop, keep_trying, print_json
from warehouse.settings import Settings
from warehouse.verbs import call_verb

_POLL_S = 0.2
_NAMES = (
    "verification", "table", "state", "reason", "rows", "missing", "extra", "different", "repaired", "unsettled",
    "equal_as_of", "position", "duration_s", "quarantined",
)  # fmt: skip


def verify_tables(
    settings: Settings, tables: Sequence[str], *, repair: bool, rows_per_s: float | None, as_json: bool
) -> None:  # fmt: skip
    """Compare tables, print one line for each, and return where all are equal.

    Raises:
        DriftFound: rows differ, and were not repaired.
        NotVerified: a table could not be compared, or not settled.
        SettingsError: there is no such table.
    """
    if rows_per_s is not None and rows_per_s <= 0:
        raise SettingsError("--rows-per-s must be above 0")
    with connect(settings.warehouse, "verify") as conn:
        stop, errors = Stop(), []
        stop.catch_signals()

        def stand_in() -> None:
            # As a hot standby it waits for the lock, which it never gets while another replicator runs.
            try:
                keep_trying(Replication(settings, stop).run, settings.retry, stop)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                errors.append(error)

        numbers = _ask(conn, settings, tables, repair, rows_per_s)
        thread = threading.Thread(target=stand_in, name="replicator")
        thread.start()
        try:
            found = _wait(conn, numbers, stop, errors)
        finally:
            stop.request()
            thread.join()
        if errors:
            raise errors[0]
    for outcome in found:
        _print(outcome, as_json=as_json)
    _judge(found)


def _ask(
    conn: Connection, settings: Settings, tables: Sequence[str], repair: bool, rows_per_s: float | None
) -> list[int]:  # fmt: skip
    if not tables:
        with wrap_errors():
            rows = conn.execute(QUERIES["list_tables"], {"source": settings.source.name}).fetchall()
        tables = [str(name) for (name,) in rows]
        if not tables:
            raise SettingsError(
                f"source {settings.source.name} has no tables yet", hint="Run: replicator run --until-caught-up"
            )
    numbers = []
    for name in tables:
        number: Any = call_verb(conn, "verify", name, repair, *(() if rows_per_s is None else (rows_per_s,)))
        numbers.append(int(number))
    return numbers


def _wait(conn: Connection, numbers: list[int], stop: Stop, errors: list[BaseException]) -> list[dict[str, Any]]:
    while True:
        with wrap_errors():
            rows = conn.execute(QUERIES["read_outcomes"], {"ids": numbers}).fetchall()
        if all(row[-1] for row in rows):
            return [dict(zip(_NAMES, row, strict=False)) for row in rows]
        if stop.requested:
            raise NotVerified("stopped before the comparison was done", hint="The running replicator goes on with it.")
        if errors:
            raise errors[0]
        time.sleep(_POLL_S)


def _print(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
        return
    counted = ("missing", "extra", "different", "repaired", "unsettled", "quarantined")
    parts = [f"{outcome['table']}: {outcome['state']}", f"{outcome['rows']} rows", f"as of {outcome['equal_as_of']}"]
    parts += [f"{outcome[what]} {what}" for what in counted if outcome[what]]
    sys.stdout.write(", ".join(parts) + (f" ({outcome['reason']})" if outcome["reason"] else "") + "\n")


def _judge(found: Sequence[dict[str, Any]]) -> None:
    drifted = [outcome["table"] for outcome in found if outcome["state"] == "Drifted"]
    if drifted:
        raise DriftFound(
            f"rows differ from the source in {', '.join(drifted)}",
            hint="SELECT * FROM warehouse.drift WHERE repaired_at IS NULL; then: replicator verify --repair TABLE",
        )
    incomplete = [outcome["table"] for outcome in found if outcome["state"] == "Incomplete"]
    if incomplete:
        raise DriftFound(
            f"rows in the quarantine are missing in {', '.join(incomplete)}",
            hint="`replicator quarantine` lists them with the reasons; mend the cause, then: replicator retry ID",
        )
    doubtful = [outcome["table"] for outcome in found if outcome["state"] not in ("Equal", "Repaired")]
    if doubtful:
        raise NotVerified(f"nothing can be said about {', '.join(doubtful)}", hint="The reason stands in warehouse.verified.")
