"""Reads a stream in a thread of its own, so that reading and decoding overlap with writing.

Owns the thread and the hand-over. One item is decoded ahead; while the warehouse is slow the thread waits, and the source's
binlog is what keeps the rest.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.items import Idle, Item, Statement
from replicator.stream import Stream

_AHEAD = 1


class Prefetch:
    """The items of a stream, decoded ahead.

    Args:
        stream: read by this object's thread only, from now on.
        wake: set whenever there is an item; others may set it too.
    """

    def __init__(self, stream: Stream, wake: threading.Event) -> None:
        self._stream, self._wake = stream, wake
        self._is_awaited = False
        self._items: queue.Queue[Item | BaseException] = queue.Queue(maxsize=_AHEAD)
        self._turn = threading.Lock()
        self._resume = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="tailrace stream", daemon=True)
        self._thread.start()

    def poll(self, timeout_s: float) -> Item | None:
        """The stream's next item; None where none came in time, or something else woke the caller.

        Whoever asks again is done with the item before. Raises what reading the stream raised.
        """
        if self._is_awaited:
            self._is_awaited = False
            self._resume.set()
        if timeout_s and self._items.empty():
            self._wake.wait(timeout_s)
        self._wake.clear()
        try:
            item = self._items.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        self._is_awaited = isinstance(item, Statement)
        return item

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nothing is read or decoded inside; what is decoded already was committed at the source before."""
        with self._turn:
            yield

    def close(self) -> None:
        """Close the stream and end the thread."""
        self._closing = True
        self._resume.set()
        self._stream.close()
        while self._thread.is_alive():
            # the thread may be waiting for room
            self._take_one()
            self._thread.join(0.01)

    def _take_one(self) -> None:
        try:
            self._items.get_nowait()
        except queue.Empty:
            return

    def _read(self) -> None:
        items = self._stream.items()
        try:
            while not self._closing:
                with self._turn:
                    item = next(items)
                if isinstance(item, Idle) and not self._items.empty():
                    continue
                self._items.put(item)
                self._wake.set()
                if isinstance(item, Statement):
                    # What follows must be decoded with the tables as the statement leaves them.
                    self._resume.wait()
                    self._resume.clear()
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are taken
            if not self._closing:
                self._items.put(error)
                self._wake.set()
