"""Every type, from bytes of real servers to COPY fields, against what the servers printed."""

import datetime
import decimal
import ipaddress
import json
import re
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest

from replicator.charsets import Charsets
from replicator.items import Choice
from replicator.plan import Plans
from replicator.position import Position
from replicator.tablemap import TableMap
from replicator.typemap import Column, recognize
from tests.binlog_writer import write_packets
from tests.decoding import COLLATIONS, LATIN1, Change, Tables, load, make_stream, read_own, walk

FOLDER = Path(__file__).parent.parent / "data"
CHARSETS = Charsets(COLLATIONS | {46: "utf8mb4"}, {"latin1": ["\0", *LATIN1[1:]]})
KNOWN = {"uuid": "uuid", "four": "inet", "six": "inet"}
_SPAN = re.compile(r"(-?)(\d+):(\d\d):(\d\d)\.(\d+)")


class AllColumns(Tables):
    """Takes the table, and knows which of its columns information_schema calls UUID, INET4 and INET6."""

    columns: tuple[Column, ...] = ()

    def choose(self, table_map: TableMap, at: Position) -> Choice | None:
        """As the registry does it."""
        chosen = super().choose(table_map, at)
        assert chosen is not None
        assert table_map.columns is not None
        self.columns = recognize(table_map.columns, KNOWN)
        return Choice(chosen.table, chosen.key, self.columns)


def read_captured(server: str) -> tuple[tuple[Column, ...], list[Change], dict[str, Any]]:
    """The columns, the changes, and the facts beside the bytes."""
    data = (FOLDER / f"types_{server}.bin").read_bytes()
    packets, at = [], 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 9)[0]
        packets.append(write_packets(b"\0" + data[at : at + size]))
        at += size
    tables = AllColumns({"types": (0,)})
    stream = make_stream(packets, tables, mariadb=server == "mariadb")
    stream.charsets, stream.plans = CHARSETS, Plans(CHARSETS)
    changes = walk(stream).changes
    assert not tables.rejected
    return tables.columns, changes, json.loads((FOLDER / f"types_{server}.json").read_text())


def read_date(text: str) -> Any:
    """A date, or None where there is no such day."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def read_instant(text: str) -> Any:
    """A timestamp without a zone, or None where there is none."""
    return None if read_date(text[:10]) is None else datetime.datetime.fromisoformat(text.ljust(26, "0"))


def read_span(text: str) -> datetime.timedelta:
    """A TIME."""
    match = _SPAN.fullmatch(text)
    assert match
    sign, hours, minutes, seconds, fraction = match.groups()
    span = datetime.timedelta(
        hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=int(fraction.ljust(6, "0"))
    )
    return -span if sign else span


def read_geometry(text: str) -> bytes:
    """EWKB of the server's own form."""
    raw = bytes.fromhex(text)
    return raw[4:] if raw[:4] == bytes(4) else raw[4:8] + bytes([raw[8] | 0x20]) + raw[:4] + raw[9:]


def expect(column: Column, printed: str | None) -> Any:
    """What the mirror must hold for what the server printed."""
    if printed is None:
        return None
    if column.name == "shape":
        return read_geometry(printed)
    readers: dict[str, Any] = {
        "smallint": int, "integer": int, "bigint": int, "numeric": decimal.Decimal, "date": read_date,
        "timestamp": read_instant, "interval": read_span, "bytea": bytes.fromhex, "uuid": uuid.UUID,
        "inet": ipaddress.ip_address, "jsonb": lambda text: json.loads(text.replace("a\\u0000", "a␀")),
        "text": lambda text: bytes.fromhex(text).decode().replace("\0", "␀"),
        "bit": lambda text: f"{int(text):0{column.width}b}",
        "real[]": lambda text: list(struct.unpack(f"<{len(text) // 8}f", bytes.fromhex(text))),
        "timestamptz": lambda text: None if read_instant(text) is None else read_instant(text).replace(tzinfo=datetime.UTC),
    }  # fmt: skip
    return readers[str(column.mirror_type).partition("(")[0]](printed)


def read_field(field: bytes | None, column: Column) -> Any:
    """The COPY field as psycopg reads it; real[] by hand."""
    if field is None or column.mirror_type != "real[]":
        return load(field, column)
    dimensions, has_null, element, size, bound = struct.unpack_from("!iiiii", field)
    assert (dimensions, has_null, element, bound) == (1, 0, 700, 1)
    assert len(field) == 20 + 8 * size
    return [value for n, value in struct.iter_unpack("!if", field[20:]) if n == 4]


@pytest.mark.parametrize("server", ["mysql", "mariadb"])
def test_every_value_is_what_the_server_printed(server: str) -> None:
    """Three rows of all types: edges, others, NULLs."""
    columns, changes, facts = read_captured(server)
    assert {column.name for column in columns} == {name for name, _ in facts["columns"]}
    places = {name: n for n, (name, _) in enumerate(facts["columns"])}
    assert len(changes) == len(facts["rows"]) == 3
    for change, printed in zip(changes, facts["rows"], strict=True):
        for n, column in enumerate(columns):
            found = read_field(change.fields[n], column)
            assert found == expect(column, printed[places[column.name]]), (column, printed[places[column.name]])


@pytest.mark.parametrize("server", ["mysql", "mariadb"])
def test_what_postgres_lacks_is_in_raw(server: str) -> None:
    """The first row has a day, two instants and a text that Postgres does not have, and on MySQL a document."""
    _, changes, facts = read_captured(server)
    raw = {
        "day": "2024-02-31",
        "instant": "0000-00-00 00:00:00.000000",
        "stamp": "0000-00-00 00:00:00.00",
        "nul": "\\x610062",
    }
    if server == "mysql":
        place = [name for name, _ in facts["columns"]].index("zero")
        raw["zero"] = facts["rows"][0][place]
    found = [read_own(change)[2] for change in changes]
    assert found[1:] == [None, None]
    assert json.loads(str(found[0])) == raw
