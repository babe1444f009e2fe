"""The arrays that the decoder fills: changes, their bytes, and the transactions they belong to.

Owns growing them, handing out whole transactions and keeping what follows these. Pure.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.plan import Plans
from replicator.position import Position
from replicator.xa import XaChange

_TRANSACTIONS = 32768
_LARGEST_KEPT = 64 << 20
_SPARE = 2


@dataclass(frozen=True)
class Batch:
    """Whole transactions, decoded, or a part of one that is too large to be held.

    Attributes:
        changes: (n,) decode.CHANGE. transactions: (t,) decode.TRANSACTION, of a part the unfinished one.
        out, keys: uint8, what the changes' offsets point into.
        plans: what the changes' plan numbers mean.
        position: the end of the last whole transaction so far. seq: the last _seq given out.
        whole: False for a part: more of the same transaction follows, and nothing of it may be seen before its end.
        undone: the parts that were handed on before are of a transaction that was rolled back in the end.
        files: the binlog files that the transactions name by their index.
        tags: what MySQL's transactions name by their domain.
        xa: what was prepared or decided in these transactions, in order.
    """

    changes: NDArray[np.void]
    transactions: NDArray[np.void]
    out: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    plans: Plans
    position: Position
    seq: int
    whole: bool = True
    undone: bool = False
    files: tuple[str, ...] = ()
    tags: tuple[str, ...] = ("",)
    xa: tuple[XaChange, ...] = ()
    home: ChangeBuffer | None = field(default=None, repr=False)

    def release(self) -> None:
        """Give the arrays back for another batch; nothing may look at them any more."""
        if self.home is not None:
            self.home.take_back(self.out, self.keys, self.changes, self.transactions)

    def after(self, seq: int) -> Batch:
        """The same batch numbered on from seq, in place; the stream only guesses what was given out before."""
        shift = seq + len(self.changes) - self.seq
        if shift:
            decode.renumber(self.changes, self.out, shift)
        return replace(self, seq=self.seq + shift)

    @property
    def commit_us(self) -> int:
        """Commit time at the source of the last transaction, microseconds since 1970."""
        return int(self.transactions[-1]["commit_us"])


class ChangeBuffer:
    """The decoder's output and its state vector.

    Args:
        first_bytes, first_rows: how large the arrays are at first. Memory is taken only where they are written.

    Attributes:
        state: (decode.STATE_CELLS,) int64. out, keys: uint8. changes: decode.CHANGE. transactions: decode.TRANSACTION,
            whose entry behind the whole ones is the transaction at hand. digits: uint8, scratch.
    """

    def __init__(self, seq: int, first_bytes: int = 1 << 20, first_rows: int = 4096) -> None:
        self.state = np.zeros(decode.STATE_CELLS, np.int64)
        self.state[decode.SEQ] = seq
        self.state[decode.ENOUGH_ROWS] = self.state[decode.ENOUGH_BYTES] = np.iinfo(np.int64).max
        self._first_bytes, self._first_rows = first_bytes, first_rows
        self.digits = np.zeros(128, np.uint8)
        self.is_parted = self.is_undone = False
        self._spare: deque[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.void], NDArray[np.void]]] = deque()
        self.out: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.keys: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.changes: NDArray[np.void] = np.empty(0, decode.CHANGE)
        self.transactions: NDArray[np.void] = np.empty(0, decode.TRANSACTION)
        self._allocate()

    def _allocate(self, out_bytes: int = 0, keys_bytes: int = 0, rows: int = 0) -> None:
        """Other arrays, as large as those before: ones that came back, or new ones, which take memory where written."""
        sizes = (
            _size(self.out, out_bytes, self._first_bytes), _size(self.keys, keys_bytes, self._first_bytes),
            _size(self.changes, rows, self._first_rows),
        )  # fmt: skip
        while self._spare:
            arrays = self._spare.popleft()
            if all(size <= len(array) <= _LARGEST_KEPT for size, array in zip(sizes, arrays[:3], strict=True)):
                self.out, self.keys, self.changes, self.transactions = arrays
                break
        else:
            self.out, self.keys = np.empty(sizes[0], np.uint8), np.empty(sizes[1], np.uint8)
            self.changes = np.empty(sizes[2], decode.CHANGE)
            self.transactions = np.zeros(_TRANSACTIONS, decode.TRANSACTION)

    def take_back(
        self, out: NDArray[np.uint8], keys: NDArray[np.uint8], changes: NDArray[np.void], transactions: NDArray[np.void]
    ) -> None:
        """Use these arrays again; called from the thread that is done with them."""
        if len(self._spare) < _SPARE:
            self._spare.append((out, keys, _whole(changes), _whole(transactions)))

    @property
    def whole(self) -> int:
        """How many whole transactions wait."""
        return int(self.state[decode.TRANSACTIONS])

    @property
    def rows(self) -> int:
        """How many changes there are, those of the unfinished transaction included."""
        return int(self.state[decode.CHANGES])

    @property
    def rows_at_hand(self) -> int:
        """How many changes of the unfinished transaction there are, without those of its parts that are gone."""
        return self.rows - (int(self.transactions[self.whole - 1]["changes_end"]) if self.whole else 0)

    def batch(self, plans: Plans, position: Position) -> Batch:
        """All whole transactions, with their arrays; position is the end of the last of them."""
        transactions = self.transactions[: self.whole]
        taken = int(transactions[-1]["changes_end"])
        batch = Batch(
            self.changes[:taken], transactions, self.out, self.keys, plans, position, self._seq_before(taken),
            undone=self.is_undone, home=self,
        )  # fmt: skip
        self._part_from(taken, int(transactions[-1]["out_end"]), int(transactions[-1]["keys_end"]))
        return batch

    def part(self, plans: Plans, position: Position) -> Batch:
        """All changes of the unfinished transaction, with their arrays, where no whole one waits."""
        assert not self.whole
        transactions = self.transactions[:1]
        # as far as it has been read, so that it can be told from those that end before a position
        transactions["end_pos"], transactions["file"] = self.state[decode.LOG_POS], self.state[decode.FILE]
        transactions["changes_end"] = self.rows
        batch = Batch(
            self.changes[: self.rows],
            transactions,
            self.out,
            self.keys,
            plans,
            position,
            self._seq_before(self.rows),
            whole=False,
            home=self,
        )
        self._part_from(self.rows, int(self.state[decode.OUT]), int(self.state[decode.KEYS]))
        self.is_parted = True
        return batch

    def drop_whole(self) -> None:
        """Forget the whole transactions, which have no changes."""
        last = self.transactions[self.whole - 1]
        self._part_from(int(last["changes_end"]), int(last["out_end"]), int(last["keys_end"]))

    def _seq_before(self, taken: int) -> int:
        return int(self.state[decode.SEQ]) - (self.rows - taken)

    def _part_from(self, taken: int, out_at: int, keys_at: int) -> None:
        """Leave the arrays to the batch; the changes of the unfinished transaction begin new ones."""
        state, whole = self.state, self.whole
        left = self.rows - taken
        out_left, keys_left = int(state[decode.OUT]) - out_at, int(state[decode.KEYS]) - keys_at
        changes, out, keys, transactions = self.changes, self.out, self.keys, self.transactions
        self._allocate(2 * out_left, 2 * keys_left, 2 * left)
        self.transactions[0] = transactions[whole]
        rest = changes[taken : taken + left].copy()
        for name, shift in (("image", out_at), ("hard_at", out_at), ("key", keys_at), ("old_key", keys_at)):
            rest[name] -= shift
        self.changes[:left] = rest
        self.out[:out_left] = out[out_at : out_at + out_left]
        self.keys[:keys_left] = keys[keys_at : keys_at + keys_left]
        state[decode.CHANGES], state[decode.TRANSACTIONS] = left, 0
        state[decode.OUT], state[decode.KEYS] = out_left, keys_left
        self.is_parted = self.is_undone = False

    def grow(self) -> None:
        """Double the arrays, for a transaction that does not fit."""
        event_bytes = int(self.state[decode.EVENT_BYTES])
        self.out = _grown(self.out, 6 * event_bytes)
        self.keys = _grown(self.keys, 12 * event_bytes)
        self.changes = np.concatenate((self.changes, np.zeros(len(self.changes), decode.CHANGE)))


def gtid_runs(transactions: NDArray[np.void], *, mariadb: bool, tags: Sequence[str] = ("",)) -> list[tuple[str, int, int]]:
    """The GTIDs of transactions as runs of (origin, first, last), as positions take them.

    Args:
        transactions: (t,) decode.TRANSACTION.
        mariadb: origins are domain and server; only the last number of a run counts there.
        tags: what MySQL's transactions name by their domain.
    """
    numbered = transactions[transactions["number"] > 0]
    if not len(numbered):
        return []
    numbers = numbered["number"]
    if mariadb:
        jumps = (numbered["domain"][1:] != numbered["domain"][:-1]) | (numbered["server"][1:] != numbered["server"][:-1])
    else:
        jumps = np.any(numbered["origin"][1:] != numbered["origin"][:-1], axis=1) | (numbers[1:] != numbers[:-1] + 1)
        jumps |= numbered["domain"][1:] != numbered["domain"][:-1]
    firsts = np.concatenate(([0], np.nonzero(jumps)[0] + 1))
    lasts = np.concatenate((firsts[1:] - 1, [len(numbered) - 1]))
    return [
        (_origin(numbered[first], mariadb, tags), int(numbers[first]), int(numbers[last]))
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _origin(transaction: np.void, mariadb: bool, tags: Sequence[str]) -> str:
    if mariadb:
        return f"{transaction['domain']}-{transaction['server']}"
    tag = tags[int(transaction["domain"])]
    return str(uuid.UUID(bytes=transaction["origin"].tobytes())) + (f":{tag}" if tag else "")


def _whole(array: NDArray[np.void]) -> NDArray[np.void]:
    return array if array.base is None else array.base


def _size(array: NDArray[Any], wanted: int, least: int) -> int:
    return max(least, wanted, min(len(array), _LARGEST_KEPT))


def _grown(array: NDArray[np.uint8], more: int) -> NDArray[np.uint8]:
    grown = np.empty(2 * len(array) + more, np.uint8)
    grown[: len(array)] = array
    return grown
