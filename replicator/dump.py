"""Opens a binlog dump: the transport library logs in, registers and sends the command; from then on only its socket is used.

Owns what the source is told when the dump begins.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pymysqlreplication import BinLogStreamReader

from replicator.gtids import GtidDumpConnection, dump_command
from replicator.position import GtidSet, Position
from replicator.source import Source, wrap_errors


def open_dump(source: Source, position: Position, silence_s: float) -> BinLogStreamReader:
    """A dump from a position on.

    Args:
        silence_s: how long the library may wait for an answer, seconds.

    Raises:
        SourceUnavailable, PositionLost: the source cannot be reached, or has not the position.
    """
    arguments = source.connection_arguments()
    arguments["read_timeout"] = silence_s
    # While the warehouse is slow the socket is not read, and the source must not give up on it: its binlog is the
    # spool. The longest that the server allows.
    arguments["init_command"] = (
        "SET SESSION net_write_timeout = 31536000,"
        # Says that this replica knows checksums, under the variable's old and new name. The library only says so where
        # they are on now, and the server then refuses files from a time when they were.
        " @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'"
    )
    start: dict[str, Any] = {"log_file": position.file, "log_pos": position.pos, "resume_stream": True}
    if isinstance(position.gtids, GtidSet) and position.gtids.ranges:
        command = dump_command(source.settings.server_id, position.gtids)
        start["pymysql_wrapper"] = partial(GtidDumpConnection, dump=command)
    elif position.gtids is not None and str(position.gtids):
        start = {"auto_position": str(position.gtids), "is_mariadb": True}
    reader = BinLogStreamReader(
        connection_settings=arguments,
        server_id=source.settings.server_id,
        blocking=True,
        slave_heartbeat=source.settings.heartbeat_s,
        filter_non_implemented_events=False,
        report_slave=source.replica_name,
        slave_uuid=source.replica_uuid,
        enable_logging=False,
        **start,
    )
    with wrap_errors("cannot start the binlog dump"):
        reader._BinLogStreamReader__connect_to_stream()
    return reader
