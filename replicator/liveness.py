"""Whether the source still shows signs of life on the stream's connection, for whoever waits for an answer on another one.

A connection that is half open answers nothing and ends nothing. The stream notices after three heartbeats, but who waits for
an answer does not hear of that. So meanwhile what comes on the stream's connection is looked at: bytes that were read, or that
wait to be. Where nothing comes for three heartbeats, the wait ends as the stream would. Without a stream only the question's
own time limit counts. Owns no connection but the class of those that ask.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, Protocol

import pymysql.connections

from replicator.errors import SourceSilent

# So many bytes that nobody reads may fill the socket's buffer, so that no more come however alive the source is.
_FULL_BYTES = 64 << 10
_TICK_S = 0.1


class Stream(Protocol):
    """What is known of a stream's connection."""

    @property
    def silence_s(self) -> float:
        """How long nothing may come."""

    def look(self) -> tuple[float, int] | None:
        """When bytes were read last, and how many wait to be; None where the connection is closed."""


class Liveness:
    """Shared by all who ask one source.

    Attributes:
        stream: whose connection is looked at; None where there is none.
    """

    def __init__(self) -> None:
        self.stream: Stream | None = None

    def watch(self) -> Callable[[], None]:
        """A function for a wait that begins now, to be called every now and then while it lasts.

        It raises SourceSilent where the source shows no sign of life.
        """
        return _Wait(self).check


class _Wait:
    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._since = time.monotonic()
        self._last: tuple[float, int] | None = None

    def check(self) -> None:
        """See Liveness.watch."""
        stream, now = self._liveness.stream, time.monotonic()
        seen = None if stream is None else stream.look()
        if stream is None or seen is None or seen != self._last or seen[1] >= _FULL_BYTES:
            self._since, self._last = now, seen
        elif now - self._since > stream.silence_s:
            what = f"the source has been silent for {now - self._since:.0f} s while an answer was waited for"
            raise SourceSilent(what, hint="The connection may be half open.")


class Connection(pymysql.connections.Connection):  # type: ignore[misc]
    """A connection whose questions are waited for only as long as the source shows signs of life.

    Attributes:
        liveness: of its source.
    """

    liveness: Liveness | None = None

    def wait_for_answer(self) -> None:
        """Return once an answer begins to come, or after the connection's own time limit, which the read then notices.

        Raises:
            SourceSilent: see Liveness.
        """
        check = self.watch()
        end = time.monotonic() + (self._read_timeout or 0)
        while time.monotonic() < end and not select.select([self._sock], [], [], _TICK_S)[0]:
            check()

    def watch(self) -> Callable[[], None]:
        """See Liveness."""
        return _nothing if self.liveness is None else self.liveness.watch()

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        self.wait_for_answer()
        return super()._read_query_result(unbuffered)


def _nothing() -> None:
    pass
