"""Which of a source's servers is read: the first one whose history has all that the mirror has, and what is missing here.

A server whose history is another one, or which no longer has what is missing, is never followed: rows would be lost, or
applied over newer ones, without a sign. Owns the order in which servers are tried; lineage.py reads what is compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from replicator.errors import PositionLost, SourceUnavailable
from replicator.lineage import find_strays, is_same_head, read_head
from replicator.position import GtidSet, MariaDbGtids, Position, file_number
from replicator.source import LOST_HINT, Source, wrap_errors
from warehouse.errors import OperatorNeeded, TailraceError

log = structlog.get_logger()

_LONGEST_LIST = 200


@dataclass
class Checkpoint:
    """Where the mirror stands.

    Attributes:
        position, seq: up to where the source is applied, and the last _seq given out.
        identity: of the server that was read.
        head: of the binlog file of the position, as lineage.read_head says it; None where it was never read.
    """

    position: Position
    seq: int
    identity: str
    head: str | None = None


def choose_server(source: Source, checkpoint: Checkpoint | None, preferred: str | None) -> None:
    """Let the source use the first server that can be read and, where there is a checkpoint, has its lineage.

    Args:
        preferred: the name of the server that was read last, which is tried first.

    Raises:
        SourceUnavailable: no server will do now, but one that is away might.
        PositionLost, SourceRefused: none will do, and waiting does not help.
    """
    servers = source.settings.servers
    names = {f"{host}:{port}": (host, port) for host, port in servers}
    order = sorted(servers, key=lambda server: server != names.get(preferred or ""))
    failures: list[tuple[str, TailraceError]] = []
    for server in order:
        source.use(server)
        try:
            _check(source, checkpoint)
            return
        except (SourceUnavailable, OperatorNeeded) as error:
            source.close()
            failures.append((source.server_name, error))
            if len(order) > 1:
                log.warning("server passed over", server=source.server_name, kind=type(error).__name__, reason=error.message)
    if len(failures) == 1:
        raise failures[0][1]
    listing = "; ".join(f"{name}: {error.message}" for name, error in failures)
    kinds = {type(error) for _, error in failures}
    for kind in (SourceUnavailable, PositionLost):
        if any(issubclass(each, kind) for each in kinds):
            raise kind(f"no server of the source can be followed: {listing}", hint=LOST_HINT)
    raise failures[0][1]


def _check(source: Source, checkpoint: Checkpoint | None) -> None:
    identity = source.identity()
    if checkpoint is None:
        return
    check_lineage(source, checkpoint)
    if identity != checkpoint.identity:
        log.warning("server changed", server=source.server_name, identity=identity, before=checkpoint.identity)


def check_lineage(source: Source, checkpoint: Checkpoint) -> None:
    """See whether the stream can go on from a checkpoint on this server.

    Raises:
        PositionLost: the server's history is another one, or it no longer has what is missing here.
    """
    position, identity = checkpoint.position, source.identity()
    is_same = identity == checkpoint.identity
    if isinstance(position.gtids, GtidSet):
        _check_gtids(source, position, position.gtids, is_same=is_same)
    elif isinstance(position.gtids, MariaDbGtids):
        if not is_same:
            _check_mariadb_state(source, position.gtids)
    elif not is_same:
        raise PositionLost(
            f"the source is another server than before: {identity}, not {checkpoint.identity}; without GTIDs its positions"
            " mean nothing here",
            hint=LOST_HINT,
        )
    if is_same:
        _check_file(source, position, checkpoint.head)


def _check_gtids(source: Source, position: Position, gtids: GtidSet, *, is_same: bool) -> None:
    executed, purged = (
        GtidSet.parse(str(text)) for text in source.query("SELECT @@global.gtid_executed, @@global.gtid_purged")[0]
    )
    missing = gtids.minus(executed)
    if missing.ranges:
        raise PositionLost(
            f"the source lacks transactions that the mirror has: {_shorten(str(missing))}. It was reset, restored or replaced",
            hint=LOST_HINT,
        )
    gone = purged.minus(gtids)
    if gone.ranges:
        raise PositionLost(
            f"the source has purged transactions that the mirror still needs: {_shorten(str(gone))}", hint=LOST_HINT
        )
    if is_same or position.last is None:
        return
    origin, _, number = position.last.rpartition(":")
    if purged.covers(GtidSet().add([(origin, int(number), int(number))])):
        # What the server still has was logged behind it.
        return
    with wrap_errors("cannot compare the binlog with what was read"):
        connection = source.open()
        try:
            strays = find_strays(connection, gtids, position.last)
        finally:
            connection._force_close()
    if strays:
        raise PositionLost(
            "the server logged transactions of its own before ones that the mirror has, so that they would be applied in the"
            f" wrong order: {_shorten(', '.join(strays))}",
            hint=LOST_HINT,
        )


def _check_mariadb_state(source: Source, gtids: MariaDbGtids) -> None:
    """Another server must have logged the last transaction of every domain, and not only one with a higher number."""
    text = str(source.query("SELECT @@global.gtid_binlog_state")[0][0] or "")
    logged = {tuple(int(number) for number in part.split("-")[:2]): int(part.split("-")[2]) for part in text.split(",") if part}
    missing = [
        f"{domain}-{server}-{number}" for domain, server, number in gtids.last if logged.get((domain, server), 0) < number
    ]
    if missing:
        raise PositionLost(
            f"the source lacks transactions that the mirror has: {_shorten(', '.join(missing))}. It was reset, restored or"
            " replaced",
            hint=LOST_HINT,
        )


def _check_file(source: Source, position: Position, head: str | None) -> None:
    """On the same server the binlog file must be the one that was read: after a reset names and numbers begin again."""
    sizes = source.binlog_sizes()
    size = sizes.get(position.file)
    reset = PositionLost("the source's binlog was reset: the same numbers mean other transactions now", hint=LOST_HINT)
    if size is None:
        if position.gtids is None:
            raise PositionLost(f"the source has no {position.file} any more", hint=LOST_HINT)
        base = position.file.rpartition(".")[0]
        numbers = [file_number(file) for file in sizes if file.rpartition(".")[0] == base]
        # Files are deleted from the oldest on.
        if numbers and min(numbers) < file_number(position.file):
            raise reset
        return
    if position.pos > size:
        raise reset
    if isinstance(position.gtids, MariaDbGtids):
        text = source.query("SELECT BINLOG_GTID_POS(%s, %s)", (position.file, position.pos))[0][0]
        found = {domain: rest for domain, *rest in MariaDbGtids.parse(str(text or "")).last}
        # NULL: no transaction ends at this offset.
        if text is None or any(found.get(domain, rest) != rest for domain, *rest in position.gtids.last):
            raise reset
    if head and not is_same_head(head, fetch_head(source, position.file)):
        raise reset


def fetch_head(source: Source, file: str) -> str:
    """The head of a binlog file of the server; see lineage.read_head."""
    with wrap_errors(f"cannot read {file}"):
        connection = source.open()
        try:
            return read_head(connection, file)
        finally:
            connection._force_close()


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_LIST else text[:_LONGEST_LIST] + " ..."
