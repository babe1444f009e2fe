"""Decoding beside the transport library's own: from the binlog socket to COPY tuples, no sink.

`python bench/decode.py [--quick]`. Reads the same events with both, in turn: events of many rows, and transactions of one
row. The library runs as its users run it (`event.rows`), on fewer rows, because it is slow. Then copies the same tuples into
Postgres, to compare the processor time of decoding a row with that of storing it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
from _plant import NAME, TABLE, Plant, insert_many, insert_singly, mirror_table, open_stream, running_plant
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent

from bench.report import Report
from replicator import decode
from replicator.changes import Batch
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_statement
from replicator.mirror_ddl import create_mirror
from replicator.position import Position
from replicator.source import Source


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, under 50 seconds")
    quick = parser.parse_args().quick
    report = Report("Decoding, rows per second, one thread")
    with running_plant(report.note) as plant:
        many, single = (100_000, 10_000) if quick else (500_000, 50_000)
        source = Source(plant.settings.source)
        start = source.position()
        insert_many(plant, many)
        between = source.position()
        insert_singly(plant, single, many + 1)
        read(plant, start, 1000)
        compare(plant, report, "decode_vs_library", start, many, 4_000 if quick else 20_000, aim=300)
        compare(plant, report, "one_row_decode_vs_library", between, single, 500 if quick else 3_000, aim=100)
        compare_socket(plant, report, start, many)
        compare_processor(plant, report, start, many)
    report.finish()


def compare(plant: Plant, report: Report, figure: str, start: Position, rows: int, few: int, *, aim: float) -> None:
    """Rates of both, three rounds in turn: by the clock, and by processor time, which other work disturbs less."""
    ours, theirs = [], []
    for _ in range(3):
        ours.append([rows / seconds for seconds in read(plant, start, rows)])
        theirs.append([few / seconds for seconds in read_with_library(plant, start, few)])
    for which, name, unit in ((0, figure, "rows/s"), (1, f"{figure}_cpu", "rows/cpu s")):
        our_rate, their_rate = (statistics.median(each[which] for each in rates) for rates in (ours, theirs))
        peer = f"event.rows of python-mysql-replication: {their_rate:,.0f}"
        report.add(name, our_rate, unit, against=peer, ratio=our_rate / their_rate, aim=aim)


def read(plant: Plant, start: Position, rows: int) -> tuple[float, float]:
    """Seconds until so many rows are COPY tuples, by the clock and of processor time; the stream is open before."""
    stream = open_stream(plant, start)
    began, worked = time.perf_counter(), time.process_time()
    seen = 0
    for item in stream.items():
        if isinstance(item, Batch):
            seen += len(item.changes)
            item.release()
        if seen >= rows:
            break
    times = time.perf_counter() - began, time.process_time() - worked
    stream.close()
    return times


def read_with_library(plant: Plant, start: Position, rows: int) -> tuple[float, float]:
    """Seconds until the library has made so many rows, likewise."""
    server = plant.mysql
    reader = BinLogStreamReader(
        connection_settings={
            "host": server.host, "port": server.port, "user": server.user, "password": server.password, "ssl_disabled": True
        },
        server_id=9002, blocking=True, only_events=[WriteRowsEvent], only_tables=[TABLE],
        log_file=start.file, log_pos=start.pos, resume_stream=True, enable_logging=False,
    )  # fmt: skip
    began, worked = time.perf_counter(), time.process_time()
    seen = 0
    for event in reader:
        seen += len(event.rows)
        if seen >= rows:
            break
    times = time.perf_counter() - began, time.process_time() - worked
    reader.close()
    return times[0] * rows / seen, times[1] * rows / seen


def compare_socket(plant: Plant, report: Report, start: Position, rows: int) -> None:
    """The rate beside that of reading the same bytes from the socket and throwing them away, which is the limit."""
    ours, limit = [], []
    for _ in range(3):
        ours.append(rows / read(plant, start, rows)[0])
        limit.append(rows / read_and_discard(plant, start, rows))
    rate, most = statistics.median(ours), statistics.median(limit)
    report.add("decode_vs_socket", rate, "rows/s", against=f"reading the socket alone: {most:,.0f}", ratio=rate / most)


def read_and_discard(plant: Plant, start: Position, rows: int) -> float:
    """Seconds until the bytes of so many rows have come."""
    stream = open_stream(plant, start)
    connection = stream._packets
    # As many bytes as the rows take in the binlog; 29 columns make 220 bytes, and each event of some 36 rows 60 more.
    left = rows * 220
    began = time.perf_counter()
    while left > 0:
        connection.at = connection.end = 0
        if connection.read(1.0, 0):
            left -= connection.end
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


def compare_processor(plant: Plant, report: Report, start: Position, rows: int) -> None:
    """Processor time a row: ours for decoding, Postgres' for COPY BINARY of the tuples into the keyed table."""
    decoding_us = statistics.median(read(plant, start, rows)[1] for _ in range(3)) / rows * 1e6
    table = mirror_table(plant)
    stream = open_stream(plant, start)
    with plant.warehouse() as conn:
        create_mirror(conn, table)
        backend = conn.info.backend_pid
        before = processor_s(backend)
        with conn.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
            copy.write(COPY_HEADER)
            seen = 0
            for item in stream.items():
                if isinstance(item, Batch):
                    target = np.empty(int(item.changes["image_bytes"].sum()), np.uint8)
                    decode.gather(np.arange(len(item.changes)), item.changes, item.out, target)
                    copy.write(target.data)
                    seen += len(item.changes)
                if seen >= rows:
                    break
            copy.write(COPY_TRAILER)
        storing_us = (processor_s(backend) - before) / seen * 1e6
        conn.execute(f"DROP TABLE {NAME}")
    stream.close()
    against = f"Postgres for the same row: {storing_us:.2f} us"
    report.add("decode_cpu_vs_postgres", decoding_us, "us/row", against=against, ratio=storing_us / decoding_us, aim=10)


def processor_s(pid: int) -> float:
    """User and system time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
