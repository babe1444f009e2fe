"""Make types_mysql.*, types_mariadb.* and documents.json anew: bytes of real servers' binlogs, and what the servers print.

Usage: .venv/bin/python -m tests.data.capture_types      starts private servers, takes half a minute
The .bin files are the events as they lie in the binlog file; the .json files are the rows as the server prints them.
"""

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

from demo.servers import MariaDBServer, MySQLServer, cache_folder, provide
from replicator.events import Event
from tests.fixtures.servers import SourceDatabase, SourceServer, make_source_database

FOLDER = Path(__file__).parent
LATIN, GBK, UTF16 = "CHARACTER SET latin1", "CHARACTER SET gbk", "CHARACTER SET utf16"
# name, type, how the server prints it, and a value for each row; a value is SQL. NULL stands in the last row of every column.
COMMON = [
    ("id", "INT PRIMARY KEY", "CAST({} AS CHAR)", "1", "2", "3"),
    ("tiny", "TINYINT", "CAST({} AS CHAR)", "-128", "127", "NULL"),
    ("utiny", "TINYINT UNSIGNED", "CAST({} AS CHAR)", "255", "0", "NULL"),
    ("medium", "MEDIUMINT", "CAST({} AS CHAR)", "-8388608", "8388607", "NULL"),
    ("ulong", "INT UNSIGNED", "CAST({} AS CHAR)", "4294967295", "1", "NULL"),
    ("ubig", "BIGINT UNSIGNED", "CAST({} AS CHAR)", "18446744073709551615", "10000", "NULL"),
    ("dec", "DECIMAL(65,30)", "CAST({} AS CHAR)", "-12345678901234567890123456789012345.1", "0.1e-29", "NULL"),
    ("year", "YEAR", "CAST({} + 0 AS CHAR)", "0", "2155", "NULL"),
    ("day", "DATE", "CAST({} AS CHAR)", "'2024-02-31'", "'9999-12-31'", "NULL"),
    ("span", "TIME(3)", "CAST({} AS CHAR)", "'-00:00:00.1'", "'838:59:58.999'", "NULL"),
    ("instant", "DATETIME(6)", "CAST({} AS CHAR)", "'0000-00-00'", "'2024-02-29 23:59:59.999999'", "NULL"),
    ("stamp", "TIMESTAMP(2) NULL", "CAST({} AS CHAR)", "0", "'2038-01-19 03:14:07.99'", "NULL"),
    ("bits", "BIT(11)", "CAST({} + 0 AS CHAR)", "b'10000000001'", "0", "NULL"),
    ("shape", "GEOMETRY", "HEX({})", "ST_GeomFromText('POINT(1 2)')", "ST_GeomFromText('LINESTRING(3 4,5 6)', 4326)", "NULL"),
    ("fixed", "BINARY(6)", "HEX({})", "x'6100'", "''", "NULL"),
    ("chinese", f"VARCHAR(20) {GBK}", "HEX(CONVERT({} USING utf8mb4))", "'你好'", "''", "NULL"),
    ("wide", f"CHAR(5) {UTF16}", "HEX(CONVERT({} USING utf8mb4))", "'é😀'", "'x'", "NULL"),
    ("nul", f"TEXT {LATIN}", "HEX(CONVERT({} USING utf8mb4))", "'a\\0b'", "'é'", "NULL"),
    ("choice", f"ENUM('x','你') {GBK}", "HEX(CONVERT({} USING utf8mb4))", "2", "0", "NULL"),
    ("several", f"SET('a','é','b') {LATIN}", "HEX(CONVERT({} USING utf8mb4))", "5", "0", "NULL"),
    ("labels", "ENUM('a',x'ff') CHARACTER SET binary", "HEX({})", "2", "1", "NULL"),
]  # fmt: skip
OWN = {
    "mysql": [
        ("document", "JSON", "CAST({} AS CHAR)",
         "JSON_OBJECT('t', CAST('-30:00:00.5' AS TIME(1)), 'd', 1.50, 'n', CAST('null' AS JSON), 'b', x'00ff', 'u', ~0)",
         "'null'", "NULL"),
        ("zero", "JSON", "CAST({} AS CHAR)", "JSON_ARRAY('a\\0', '\\\\u0000', 1e20, CURRENT_DATE = 0)", "'{}'", "NULL"),
        ("vector", "VECTOR(4)", "HEX({})", "STRING_TO_VECTOR('[1.5,-2,0]')", "STRING_TO_VECTOR('[3]')", "NULL"),
        ("hidden", "INT INVISIBLE", "CAST({} AS CHAR)", "1", "2", "NULL"),
        ("made", "INT AS (id + 1) STORED", "CAST({} AS CHAR)", "DEFAULT", "DEFAULT", "DEFAULT"),
    ],
    "mariadb": [
        ("uuid", "UUID", "CAST({} AS CHAR)", "'01234567-89ab-1def-8123-456789ab0000'", "UUID()", "NULL"),
        ("four", "INET4", "CAST({} AS CHAR)", "'10.0.0.0'", "'255.255.255.255'", "NULL"),
        ("six", "INET6", "CAST({} AS CHAR)", "'::'", "'2001:db8::ff00:42:8329'", "NULL"),
        ("document", "JSON", "HEX(CONVERT({} USING utf8mb4))", "'{\"a\": 1}'", "'null'", "NULL"),
        ("packed", f"TEXT COMPRESSED {LATIN}", "HEX(CONVERT({} USING utf8mb4))", "REPEAT('é', 300)", "'short'", "NULL"),
        ("blob", "LONGBLOB COMPRESSED", "HEX({})", "REPEAT(x'0001', 200)", "''", "NULL"),
        ("short", f"VARCHAR(60) COMPRESSED {GBK}", "HEX(CONVERT({} USING utf8mb4))", "REPEAT('你', 55)", "''", "NULL"),
        ("long", "VARBINARY(999) COMPRESSED", "HEX({})", "REPEAT('x', 999)", "x'00'", "NULL"),
        ("hidden", "INT INVISIBLE", "CAST({} AS CHAR)", "1", "2", "NULL"),
        ("made", "INT AS (id + 1) STORED", "CAST({} AS CHAR)", "DEFAULT", "DEFAULT", "DEFAULT"),
    ],
}  # fmt: skip
# Documents as SQL; each becomes a pair of its bytes in the binlog and its text.
DOCUMENTS = [
    "'null'", "'true'", "'[]'", "'{}'", "'\"\"'", "'[null, true, false, 1.5, -0.0]'", "CAST(CAST('' AS BINARY) AS JSON)",
    "'[0, -1, 32767, 32768, -32768, -32769, 65535, 65536, 2147483647, 2147483648, -2147483649]'",
    "'[4294967295, 4294967296, 9223372036854775807, 9223372036854775808, 18446744073709551615, 18446744073709551616]'",
    "'[1e14, 1e15, 1e20, 123456789012345.0, 4372598518494710.5, 1e-5, 1e-14, 1e-15, 1e-16, 5e-324, 1.7976931348623157e308]'",
    "JSON_ARRAY(DATE'2024-01-02', TIMESTAMP'2024-01-02 03:04:05.678', TIMESTAMP'9999-12-31 23:59:59.999999')",
    "JSON_ARRAY(TIME'-838:59:59', TIME'30:00:00.5', TIME'-00:00:00.1', CAST('0000-00-00' AS DATE))",
    "JSON_ARRAY(123.450, CAST(-0.001 AS DECIMAL(65,30)), CAST(0 AS DECIMAL(5)), -12345678901234567890.123456789, .5)",
    "JSON_ARRAY(x'00ff', b'101', CAST(2015 AS YEAR), CAST(REPEAT('x', 200) AS BINARY), CAST(REPEAT('y', 57) AS BINARY))",
    "JSON_OBJECT('é', '😀', 'q\"', 'a\\\\b\\n\\t\\r\\b/', 'ctrl', CONCAT(x'00', x'1f', x'7f', x'0c'))",
    "CAST('{\"dup\": 1, \"dup\": 2, \"bb\": 1, \"a\": {\"b\": [[]]}, \"\": 0}' AS JSON)",
    "CAST(CONCAT(REPEAT('[', 100), REPEAT(']', 100)) AS JSON)",
    "JSON_ARRAY(REPEAT('x', 127), REPEAT('y', 128))",
    "JSON_REMOVE(JSON_OBJECT('a', 'gone', 'b', 'stays'), '$.a')",
]  # fmt: skip


def capture_documents(server: SourceServer) -> None:
    """Write documents.json: bytes in hexadecimal, text; from MySQL alone."""
    pairs = []
    with make_source_database(server) as database, database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE j (j JSON)")
        cursor.execute("SET SESSION sql_mode = ''")
        for document in DOCUMENTS:
            file, pos = read_position(database)
            cursor.execute("DELETE FROM j")
            cursor.execute(f"INSERT INTO j VALUES ({document})")
            cursor.execute("SELECT CAST(j AS CHAR) FROM j")
            ((text,),) = cursor.fetchall()
            data = (server.data / file).read_bytes()
            while data[pos + 4] != Event.WRITE_ROWS:
                pos += struct.unpack_from("<I", data, pos + 9)[0]
            # header 19, table id 6, flags 2, extra 2, columns 1, present 1, NULLs 1
            size = struct.unpack_from("<I", data, pos + 32)[0]
            pairs.append([data[pos + 36 : pos + 36 + size].hex(), text])
    (FOLDER / "documents.json").write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n")


def capture(server: SourceServer) -> None:
    """Write both files of one server."""
    columns: list[tuple[str, ...]] = [*COMMON, *OWN[server.name]]
    with make_source_database(server) as database, database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        if server.name == "mysql":
            cursor.execute("SET SESSION default_collation_for_utf8mb4 = utf8mb4_general_ci")
        cursor.execute(f"ALTER DATABASE {database.name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        cursor.execute(f"CREATE TABLE types ({', '.join(f'`{name}` {type_}' for name, type_, *_ in columns)})")
        names = ", ".join(f"`{column[0]}`" for column in columns)
        rows = ", ".join(f"({', '.join(column[3 + n] for column in columns)})" for n in range(3))
        file, pos = read_position(database)
        cursor.execute(f"INSERT INTO types ({names}) VALUES {rows}")
        end = read_position(database)[1]
        cursor.execute(f"SELECT {', '.join(column[2].format(f'`{column[0]}`') for column in columns)} FROM types ORDER BY id")
        printed = cursor.fetchall()
    data = (server.data / file).read_bytes()
    (FOLDER / f"types_{server.name}.bin").write_bytes(data[pos:end])
    facts: dict[str, Any] = {
        "version": server.version,
        "columns": [[name, type_] for name, type_, *_ in columns],
        "rows": printed,
    }
    (FOLDER / f"types_{server.name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    kinds = []
    while pos < end:
        kinds.append(data[pos + 4])
        pos += struct.unpack_from("<I", data, pos + 9)[0]
    print(server.name, server.version, "events", kinds)


def read_position(database: SourceDatabase) -> tuple[str, int]:
    """File and offset of the binlog's end."""
    statement = "SHOW BINARY LOG STATUS" if database.server.name == "mysql" else "SHOW MASTER STATUS"
    row = database.execute(statement)[0]
    return row[0], row[1]


def main() -> None:
    """Both servers, one after the other."""
    programs = provide(["mysql", "mariadb"], cache_folder(), print)
    with tempfile.TemporaryDirectory() as folder:
        for kind in (MySQLServer, MariaDBServer):
            with kind(programs, Path(folder) / kind.name) as server:
                capture(server)
                if server.name == "mysql":
                    capture_documents(server)


if __name__ == "__main__":
    main()
