"""The replicator's errors. Each class says by itself whether the same work may be tried again."""

from __future__ import annotations

from warehouse.errors import OperatorNeeded, TailraceError, TryLater


class SourceUnavailable(TryLater):
    """The MySQL server cannot be reached, or it ended the connection."""


class SourceSilent(SourceUnavailable):
    """The server sent neither an event nor a heartbeat for three heartbeats; the connection may be half open."""


class SourceRefused(OperatorNeeded):
    """The server refused a login or a statement."""


class PreflightFailed(OperatorNeeded):
    """The source or the warehouse is not set up for replication."""


class PositionLost(OperatorNeeded):
    """The position that the mirror stands at cannot be read from any server: purged, reset, or another history."""


class ServerIdTaken(OperatorNeeded):
    """Another replica of the server has the same id, and the server ended the connection in its favour."""


class StreamBroken(OperatorNeeded):
    """The stream itself is in doubt: a checksum is wrong or an event is not as its format says."""


class UnsupportedEvent(OperatorNeeded):
    """The stream carries something that this version cannot represent; going on would lose it.

    Attributes:
        raw: the event, where there is one.
    """

    raw: bytes | None = None


class MalformedTableMap(StreamBroken):
    """A TABLE_MAP event is not as its format says."""


class TableProblem(TailraceError):
    """One table cannot be replicated; the others go on. The message is the reason that the table's state shows."""

    exit_code = 3


class UnsupportedColumn(TableProblem):
    """A column's type is not covered."""


class SchemaChanged(TableProblem):
    """The source's columns are no longer those of the mirror; the table must be copied afresh."""


class RowProblem(TableProblem):
    """One row cannot be written, by its own fault; it is set aside and the table goes on."""


class UnrepresentableKey(RowProblem):
    """A key holds a value that Postgres cannot hold, so that its row could not be found again."""


class PartialImage(TableProblem):
    """A row was logged without all of its columns, or with parts of their values."""


class EventSkipped(TableProblem):
    """An event that may have changed any row was passed over, because somebody asked for it."""


class TransactionUnknown(TableProblem):
    """The source committed an XA transaction whose rows were logged before the mirror began."""


class MissingMetadata(TableProblem):
    """A TABLE_MAP event without the full metadata, or a row image without all columns."""


class MalformedValue(RowProblem):
    """A value in a row image is not as its type's format says."""


class LockRefused(TableProblem):
    """A table whose copy must be read at one position cannot be locked for a moment."""


class FilterUnmet(TableProblem):
    """A column that is to be left out cannot be: it is not there, or rows are found by it."""


class MirrorTaken(TableProblem):
    """Another source writes to the mirror that the table would have."""


class LostParent(TableProblem):
    """A table that foreign-key cascades change, and where they come from is not replicated."""


class DriftFound(OperatorNeeded):
    """Verification found rows that differ between the source and the mirror, and did not repair them."""


class NotVerified(TryLater):
    """A table could not be compared, or rows of it changed during every look."""
