"""The oracle: what the server prints of a row is what the mirror prints, by whichever way the row came."""

import datetime
import decimal
import ipaddress
import itertools
import json
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from tests.column_types import KEYS, Table
from tests.fixtures.pipeline import Pipeline

NUMBERS = itertools.count(1)
# Nothing is shrunk: every example asks real servers, and a failing one is printed whole anyway.
EXAMPLES = settings(
    max_examples=int(os.environ.get("TAILRACE_EXPLORE", "5")), deadline=None, print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck),
)  # fmt: skip
# What the source prints, and what the mirror prints; `{}` is the column. Both then go through NORMAL.
PRINT = {
    "number": ("CAST({} AS CHAR)", "{}::text"),
    "year": ("CAST({} + 0 AS CHAR)", "{}::text"),
    "float": ("{} * 1e0", "{}::float8"),
    "date": ("CAST({} AS CHAR)", "to_char({}, 'YYYY-MM-DD')"),
    "instant": ("CAST({} AS CHAR)", "to_char({}, 'YYYY-MM-DD HH24:MI:SS.US')"),
    "span": ("CAST({} AS CHAR)", "(extract(epoch FROM {}) * 1000000)::bigint::text"),
    "text": ("HEX(CONVERT({} USING utf8mb4))", "upper(encode(convert_to({}, 'UTF8'), 'hex'))"),
    "bytes": ("HEX({})", "upper(encode({}, 'hex'))"),
    "bit": ("CAST({} + 0 AS CHAR)", "{}::text"),
    "json": ("CAST({} AS CHAR)", "{}::text"),
    "geometry": ("HEX({})", "upper(encode({}, 'hex'))"),
    "vector": ("HEX({})", "{}::float8[]"),
    "uuid": ("CAST({} AS CHAR)", "{}::text"),
    "inet": ("CAST({} AS CHAR)", "host({})"),
}
_SPAN = re.compile(r"(-?)(\d+):(\d\d):(\d\d)(?:\.(\d+))?")


def normal_source(kind: str, printed: Any, width: int) -> Any:
    """What the source printed, in the form that the mirror prints."""
    if printed is None:
        return None
    if kind == "float":
        return struct.pack("!d", printed)
    if kind == "instant":
        seconds, _, fraction = printed.partition(".")
        return f"{seconds}.{fraction:0<6}"
    if kind == "span":
        match = _SPAN.fullmatch(printed)
        assert match, printed
        sign, hours, minutes, seconds, fraction = match.groups()
        us = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000 + int((fraction or "").ljust(6, "0"))
        return str(-us if sign else us)
    if kind == "bit":
        return f"{int(printed):0{width}b}"
    if kind == "text":
        return bytes.fromhex(printed).replace(b"\0", "␀".encode()).hex().upper()
    if kind == "json":
        return read_json(printed, nul="␀")
    if kind == "geometry":
        srid, wkb = bytes.fromhex(printed[:8]), bytes.fromhex(printed[8:])
        return (wkb if srid == bytes(4) else wkb[:4] + bytes([wkb[4] | 0x20]) + srid + wkb[5:]).hex().upper()
    if kind == "vector":
        return struct.unpack(f"<{len(printed) // 8}f", bytes.fromhex(printed))
    if kind == "inet":
        return ipaddress.ip_address(printed)
    return printed


def normal_mirror(kind: str, value: Any) -> Any:
    """What the mirror printed, in a form that can be compared."""
    if value is None:
        return None
    if kind == "float":
        return struct.pack("!d", value)
    if kind == "json":
        return read_json(value)
    if kind == "vector":
        return tuple(value)
    return ipaddress.ip_address(value) if kind == "inet" else value


def read_json(text: str, nul: str = "\0") -> Any:
    """A JSON text with exact numbers; NUL in its texts and names replaced by `nul`."""

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("\0", nul)
        if isinstance(value, list):
            return [replace(item) for item in value]
        return {replace(key): replace(item) for key, item in value.items()} if isinstance(value, dict) else value

    return replace(json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal))


def expected_raw(kind: str, printed: Any, raw_hex: str | None) -> str | None:
    """What must stand in _raw for a value, None where Postgres holds it as it is."""
    if printed is None:
        return None
    if kind in ("date", "instant"):
        text = printed[:10]
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            return str(printed)
    if kind == "text" and b"\0" in bytes.fromhex(printed):
        assert raw_hex is not None
        return "\\x" + raw_hex.lower()
    if kind == "json" and read_json(printed) != read_json(printed, nul="␀"):
        return str(printed)
    return None


def fill(pipeline: Pipeline, name: str, table: Table) -> None:
    """Make a table and insert its rows, impossible dates and values that do not fit too."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        cursor.execute(table.create(name))
        for n, row in enumerate(table.rows):
            cursor.execute(f"INSERT INTO {name} VALUES ({', '.join(['%s'] * (len(row) + 1))})", [KEYS[table.key][1](n), *row])
        connection.commit()


def stream_rows(pipeline: Pipeline, origin: str, name: str, table: Table) -> None:
    """Bring the same rows into another table by way of the binlog: inserted elsewhere, moved, and some deleted on the way."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        cursor.execute(f"INSERT INTO {name} SELECT * FROM {origin}")
        first = KEYS[table.key][1](0)
        spare = KEYS[table.key][1](20)
        # every value passes through an image before and one after, too
        cursor.execute(f"UPDATE {name} SET k = %s WHERE k = %s", (spare, first))
        cursor.execute(f"UPDATE {name} SET k = %s WHERE k = %s", (first, spare))
        cursor.execute(f"DELETE FROM {name} WHERE k = %s", (KEYS[table.key][1](len(table.rows) - 1),))
        cursor.execute(f"INSERT INTO {name} SELECT * FROM {origin} WHERE k = %s", (KEYS[table.key][1](len(table.rows) - 1),))


def read_source(pipeline: Pipeline, name: str, table: Table) -> list[tuple[list[Any], dict[str, str] | None]]:
    """Rows as the source prints them, in the mirror's form, and what must be in _raw."""
    parts = []
    for n, type_ in enumerate(table.types):
        parts += [PRINT[type_.kind][0].format(f"c{n}"), f"HEX(c{n})"]
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00', sql_mode = ''")
        cursor.execute(f"SELECT {', '.join(parts)} FROM {name} ORDER BY k")
        found = []
        for row in cursor.fetchall():
            values, raw = [], {}
            for n, type_ in enumerate(table.types):
                printed, raw_hex = row[2 * n], row[2 * n + 1]
                kept = expected_raw(type_.kind, printed, raw_hex)
                if kept is not None:
                    raw[f"c{n}"] = kept
                width = int(type_.sql[4:-1]) if type_.kind == "bit" else 0
                is_gone = kept is not None and type_.kind not in ("text", "json")
                values.append(None if is_gone else normal_source(type_.kind, printed, width))
            found.append((values, raw or None))
    return found


def read_mirror(pipeline: Pipeline, name: str, table: Table, order: str) -> list[tuple[list[Any], dict[str, str] | None]]:
    """Rows as the mirror prints them."""
    parts = [PRINT[type_.kind][1].format(f"c{n}") for n, type_ in enumerate(table.types)]
    rows = pipeline.fetch(f'SELECT {", ".join(parts)}, _raw FROM "{pipeline.source.name}".{name} ORDER BY {order}')
    found = []
    for row in rows:
        values = [normal_mirror(type_.kind, value) for type_, value in zip(table.types, row, strict=False)]
        found.append((values, row[-1]))
    return found


def check(pipeline: Pipeline, made: Sequence[Table]) -> None:
    """Each table twice: filled before the first copy, and by the stream."""
    pairs = [(f"s{n}", f"t{n}", table) for table in made for n in [next(NUMBERS)]]
    for copied, streamed, table in pairs:
        fill(pipeline, copied, table)
        pipeline.source.execute(f"CREATE TABLE {streamed} LIKE {copied}")
    pipeline.catch_up()
    for copied, streamed, table in pairs:
        stream_rows(pipeline, copied, streamed, table)
    pipeline.catch_up()
    for copied, streamed, table in pairs:
        expected = read_source(pipeline, copied, table)
        assert read_source(pipeline, streamed, table) == expected
        order = 'k COLLATE "C"' if "CHAR" in KEYS[table.key][0] else "k"
        assert len(expected) == len(table.rows)
        for name in (copied, streamed):
            assert pipeline.state(name) == ("Synced", None), (name, table.create(name))
            found = read_mirror(pipeline, name, table, order)
            for n, type_ in enumerate(table.types):
                assert [row[0][n] for row in found] == [row[0][n] for row in expected], (name, type_.sql)
            assert [row[1] for row in found] == [row[1] for row in expected], (name, table.create(name))
        same = pipeline.fetch(f'SELECT k::text FROM "{pipeline.source.name}".{copied} ORDER BY {order}')
        assert same == pipeline.fetch(f'SELECT k::text FROM "{pipeline.source.name}".{streamed} ORDER BY {order}')
