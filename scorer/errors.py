"""Errors that the scorer raises on purpose.

Owns the classes of the forest, its state and its features; the root and the exit codes are in `warehouse.errors`.
"""

from __future__ import annotations

from warehouse.errors import TailraceError, WarehouseBusy


class BadParameter(TailraceError):
    """A parameter of a forest, a scaler or a threshold is of the wrong type or outside its range."""

    exit_code = 2


class BadRows(TailraceError, ValueError):
    """Rows that no forest can be asked about: wrong shape, wrong type, an infinity."""

    exit_code = 2


class ForestNotFitted(TailraceError):
    """A forest was asked for a score before it saw a row."""


class CheckpointRefused(TailraceError):
    """Bytes that are no checkpoint of a forest, or one that is damaged or of an unknown version."""

    exit_code = 3


class ModelUnknown(TailraceError):
    """A model or version that is not there, or not in the state that is asked for."""

    exit_code = 3


class StateBehind(WarehouseBusy):
    """Another scorer has committed rows that the forest in memory has not seen; it has to be read again."""


class TrainingFailed(TailraceError):
    """A model could not be trained; its state is FAILED and says why."""

    exit_code = 3


class TrainingWaits(TailraceError):
    """What a model learns from is not there yet; its state is PENDING and says what it waits for."""

    exit_code = 75


class BadImport(TailraceError, ValueError):
    """A model file that is none, or that holds something that is not covered."""

    exit_code = 2
