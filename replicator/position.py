"""Positions in a source: file and offset, MySQL GTID sets, MariaDB GTID states, as text and back.

Pure: no database, no logging. A GTID set here is immutable.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

Flavor = Literal["mysql", "mariadb"]
Range = tuple[int, int]

_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class GtidSet:
    """A set of MySQL transactions: for every origin (a server's uuid, or uuid:tag) its number ranges.

    Source: MySQL manual, "GTID Format and Storage". Ranges are closed, ascending and do not touch.
    """

    ranges: tuple[tuple[str, tuple[Range, ...]], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `uuid[:tag]:first[-last]...,...`; white space is ignored.

        Raises:
            ValueError: the text is not a GTID set.
        """
        found: dict[str, list[Range]] = {}
        for part in "".join(text.split()).lower().split(","):
            if not part:
                continue
            head, *pieces = part.split(":")
            origin = server = str(uuid.UUID(head))
            if not pieces:
                raise ValueError(f"no transaction numbers in {part!r}")
            for piece in pieces:
                if _TAG.fullmatch(piece):
                    origin = f"{server}:{piece}"
                    continue
                first, dash, last = piece.partition("-")
                numbers = (int(first), int(last if dash else first))
                if not 1 <= numbers[0] <= numbers[1]:
                    raise ValueError(f"not a range of transaction numbers: {piece!r}")
                found.setdefault(origin, []).append(numbers)
        return cls._of(found)

    @classmethod
    def _of(cls, found: Mapping[str, Iterable[Range]]) -> Self:
        return cls(tuple((origin, _merge(found[origin])) for origin in sorted(found)))

    def add(self, runs: Iterable[tuple[str, int, int]]) -> Self:
        """Return this set with runs of (origin, first, last) added."""
        found = {origin: list(ranges) for origin, ranges in self.ranges}
        for origin, first, last in runs:
            found.setdefault(origin, []).append((first, last))
        return type(self)._of(found)

    def minus(self, other: GtidSet) -> Self:
        """Return the transactions of this set that are not in other."""
        found: dict[str, list[Range]] = {}
        taken = dict(other.ranges)
        for origin, ranges in self.ranges:
            left = list(ranges)
            for low, high in taken.get(origin, ()):
                pieces = [((first, min(last, low - 1)), (max(first, high + 1), last)) for first, last in left]
                left = [piece for pair in pieces for piece in pair if piece[0] <= piece[1]]
            found[origin] = left
        return type(self)._of({origin: ranges for origin, ranges in found.items() if ranges})

    def covers(self, other: GtidSet) -> bool:
        """True where every transaction of other is in this set."""
        mine = dict(self.ranges)
        return all(
            any(low <= first and last <= high for low, high in mine.get(origin, ()))
            for origin, ranges in other.ranges
            for first, last in ranges
        )

    def __str__(self) -> str:
        parts = []
        for origin, ranges in self.ranges:
            numbers = ":".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
            parts.append(f"{origin}:{numbers}")
        return ",".join(parts)


@dataclass(frozen=True)
class MariaDbGtids:
    """The last transaction of every replication domain: domain -> (server id, sequence number).

    Source: MariaDB knowledge base, "Global Transaction ID".
    """

    last: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `domain-server-sequence,...`.

        Raises:
            ValueError: the text is not a list of MariaDB GTIDs.
        """
        found: list[tuple[str, int, int]] = []
        for part in "".join(text.split()).split(","):
            if part:
                domain, server, sequence = (int(number) for number in part.split("-"))
                found.append((str(domain), server, sequence))
        return cls().add((f"{domain}-{server}", sequence, sequence) for domain, server, sequence in found)

    def add(self, runs: Iterable[tuple[str, int, int]]) -> Self:
        """Return this state after runs of ("domain-server", first, last)."""
        found = {domain: (server, sequence) for domain, server, sequence in self.last}
        for origin, _, last in runs:
            domain, server = (int(number) for number in origin.split("-"))
            found[domain] = (server, last)
        return type(self)(tuple((domain, *found[domain]) for domain in sorted(found)))

    def covers(self, other: MariaDbGtids) -> bool:
        """True where every domain of other stands at or before this state."""
        mine = {domain: sequence for domain, _, sequence in self.last}
        return all(mine.get(domain, 0) >= sequence for domain, _, sequence in other.last)

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{sequence}" for domain, server, sequence in self.last)


@dataclass(frozen=True)
class Position:
    """A place in a source's stream, always at the end of a transaction.

    Attributes:
        file, pos: the binlog file and the offset in it, bytes.
        gtids: all transactions up to here; None where the source runs without GTIDs.
        last: the GTID of the last of them, where it is known.
    """

    file: str
    pos: int
    gtids: GtidSet | MariaDbGtids | None = None
    last: str | None = field(default=None, compare=False)

    def covers(self, other: Position) -> bool:
        """True where nothing before other is missing here. Files are compared by their number."""
        if isinstance(self.gtids, GtidSet) and isinstance(other.gtids, GtidSet):
            return self.gtids.covers(other.gtids)
        if isinstance(self.gtids, MariaDbGtids) and isinstance(other.gtids, MariaDbGtids):
            return self.gtids.covers(other.gtids)
        return (file_number(self.file), self.pos) >= (file_number(other.file), other.pos)

    def moved(self, file: str, pos: int, runs: Iterable[tuple[str, int, int]] = ()) -> Position:
        """The position after some more transactions."""
        if self.gtids is None:
            return replace(self, file=file, pos=pos)
        runs = list(runs)
        last = self.last
        if runs:
            joint = ":" if isinstance(self.gtids, GtidSet) else "-"
            last = f"{runs[-1][0]}{joint}{runs[-1][2]}"
        return replace(self, file=file, pos=pos, gtids=self.gtids.add(runs), last=last)

    @property
    def place(self) -> tuple[int, int]:
        """File and offset, for comparing places on one server."""
        return file_number(self.file), self.pos

    def __str__(self) -> str:
        place = f"{self.file}:{self.pos}"
        return place if self.gtids is None else f"{place} {self.gtids}".rstrip()


def parse_position(text: str, flavor: Flavor) -> Position:
    """Read what str(Position) wrote.

    Raises:
        ValueError: the text is not a position.
    """
    place, _, gtids = text.partition(" ")
    file, _, pos = place.rpartition(":")
    # Without GTIDs there is no blank; a source whose GTID set is still empty never gets here with one either.
    return Position(file, int(pos), parse_gtids(gtids, flavor) if gtids else None)


def parse_gtids(text: str, flavor: Flavor) -> GtidSet | MariaDbGtids:
    """Read a GTID set of either kind."""
    return GtidSet.parse(text) if flavor == "mysql" else MariaDbGtids.parse(text)


def file_number(file: str) -> int:
    """The number at the end of a binlog file's name."""
    return int(file.rpartition(".")[2])


def _merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
