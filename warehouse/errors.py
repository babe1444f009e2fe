"""The root of every error that this project raises on purpose.

Owns the exit codes and the rule that retryability belongs to an error's class. Never inspects an error's text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TailraceError(Exception):
    """An error with what happened, where it happened, and what to do about it.

    Args:
        message: what happened, one sentence.
        hint: what the reader can do about it; empty where there is nothing to do.
        context: where it happened: table, column, key, position. Never a secret, never a row's values.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = {key: value for key, value in context.items() if value is not None}

    def __str__(self) -> str:
        where = ", ".join(f"{key} {value}" for key, value in self.context.items())
        text = f"{self.message} ({where})" if where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class SettingsError(TailraceError):
    """A setting is unknown, misspelt, missing or out of range."""

    exit_code = 2


class OperatorNeeded(TailraceError):
    """Nothing was lost, but only a person can decide how to go on."""

    exit_code = 3


class TryLater(TailraceError):
    """Something outside is down or busy; the same work may succeed later."""

    exit_code = 75
    retryable = True


class WarehouseUnavailable(TryLater):
    """Postgres cannot be reached, or it ended the connection."""


class WarehouseBusy(TryLater):
    """Postgres gave up on a transaction that may be run again: a deadlock, a serialization failure, a lock time-out."""


class WarehouseFull(TryLater):
    """Postgres has no room left (disk, memory or connections)."""


class WarehouseRefused(OperatorNeeded):
    """Postgres refused a statement: a right is missing, or an object is not as it should be."""


class MigrationRefused(OperatorNeeded):
    """The ledger of applied migrations and the files at hand do not agree."""


class SchemaOutdated(OperatorNeeded):
    """The warehouse lacks migrations that this version needs."""


class AlreadyRunning(TryLater):
    """Another process holds the lock for the same work; this one may take over when that one ends."""
