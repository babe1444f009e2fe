"""The arrays that the decoder fills: changes, their bytes, and the transactions they belong to.

Owns growing them, handing out whole transactions and keeping what follows these. Pure.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.plan import Plans
from replicator.position import Position

_FIRST_BYTES = 1 << 20
_FIRST_CHANGES = 4096
_TRANSACTIONS = 4096
_LARGEST_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Batch:
    """Whole transactions, decoded. The arrays are valid until the stream is asked for the next item.

    Attributes:
        changes: (n,) decode.CHANGE. transactions: (t,) decode.TRANSACTION.
        out, keys: uint8, what the changes' offsets point into.
        plans: what the changes' plan numbers mean.
        position: the end of the last transaction. seq: the last _seq given out.
    """

    changes: NDArray[np.void]
    transactions: NDArray[np.void]
    out: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    plans: Plans
    position: Position
    seq: int

    @property
    def commit_us(self) -> int:
        """Commit time at the source of the last transaction, microseconds since 1970."""
        return int(self.transactions[-1]["commit_us"])


class ChangeBuffer:
    """The decoder's output and its state vector.

    Attributes:
        state: (decode.STATE_CELLS,) int64. out, keys: uint8. changes: decode.CHANGE. transactions: decode.TRANSACTION,
            whose entry behind the whole ones is the transaction at hand. digits: uint8, scratch.
    """

    def __init__(self, seq: int) -> None:
        self.state = np.zeros(decode.STATE_CELLS, np.int64)
        self.state[decode.SEQ] = seq
        self.digits = np.zeros(128, np.uint8)
        self.transactions: NDArray[np.void] = np.zeros(_TRANSACTIONS, decode.TRANSACTION)
        self._allocate()

    def _allocate(self) -> None:
        self.out: NDArray[np.uint8] = np.empty(_FIRST_BYTES, np.uint8)
        self.keys: NDArray[np.uint8] = np.empty(_FIRST_BYTES, np.uint8)
        self.changes: NDArray[np.void] = np.zeros(_FIRST_CHANGES, decode.CHANGE)

    @property
    def whole(self) -> int:
        """How many whole transactions wait."""
        return int(self.state[decode.TRANSACTIONS])

    @property
    def rows(self) -> int:
        """How many changes there are, those of the unfinished transaction included."""
        return int(self.state[decode.CHANGES])

    def is_empty_transaction(self) -> bool:
        """True where the transaction at hand has no changes yet."""
        return self.rows == (int(self.transactions[self.whole - 1]["changes_end"]) if self.whole else 0)

    def batch(self, plans: Plans, position: Position) -> Batch:
        """All whole transactions; position is the end of the last of them."""
        transactions = self.transactions[: self.whole]
        taken = int(transactions[-1]["changes_end"])
        seq = int(self.state[decode.SEQ]) - (self.rows - taken)
        return Batch(self.changes[:taken], transactions, self.out, self.keys, plans, position, seq)

    def free(self) -> None:
        """Forget the whole transactions; the changes of the unfinished one move to the front of every array."""
        state, whole = self.state, self.whole
        last = self.transactions[whole - 1].copy()
        taken, out_at, keys_at = int(last["changes_end"]), int(last["out_end"]), int(last["keys_end"])
        left = self.rows - taken
        out_left, keys_left = int(state[decode.OUT]) - out_at, int(state[decode.KEYS]) - keys_at
        self.transactions[0] = self.transactions[whole]
        rest = self.changes[taken : taken + left]
        for field, shift in (("image", out_at), ("hard_at", out_at), ("key", keys_at), ("old_key", keys_at)):
            rest[field] -= shift
        self.changes[:left] = rest
        self.out[:out_left] = self.out[out_at : out_at + out_left]
        self.keys[:keys_left] = self.keys[keys_at : keys_at + keys_left]
        state[decode.CHANGES], state[decode.TRANSACTIONS] = left, 0
        state[decode.OUT], state[decode.KEYS] = out_left, keys_left
        if left == 0 and len(self.out) > _LARGEST_KEPT_BYTES:
            self._allocate()

    def renumber(self, seq: int) -> None:
        """Go on after seq; the changes of the unfinished transaction get new numbers."""
        assert not self.whole
        shift = seq - (int(self.state[decode.SEQ]) - self.rows)
        if shift:
            decode.renumber(self.changes[: self.rows], self.out, shift)
            self.state[decode.SEQ] += shift

    def grow(self) -> None:
        """Double the arrays, for a transaction that does not fit."""
        event_bytes = int(self.state[decode.EVENT_BYTES])
        self.out = _grown(self.out, 6 * event_bytes)
        self.keys = _grown(self.keys, 12 * event_bytes)
        self.changes = np.concatenate((self.changes, np.zeros(len(self.changes), decode.CHANGE)))


def gtid_runs(transactions: NDArray[np.void], *, mariadb: bool) -> list[tuple[str, int, int]]:
    """The GTIDs of transactions as runs of (origin, first, last), as positions take them.

    Args:
        transactions: (t,) decode.TRANSACTION.
        mariadb: origins are domain and server; only the last number of a run counts there.
    """
    numbered = transactions[transactions["number"] > 0]
    if not len(numbered):
        return []
    numbers = numbered["number"]
    if mariadb:
        jumps = (numbered["domain"][1:] != numbered["domain"][:-1]) | (numbered["server"][1:] != numbered["server"][:-1])
    else:
        jumps = np.any(numbered["origin"][1:] != numbered["origin"][:-1], axis=1) | (numbers[1:] != numbers[:-1] + 1)
    firsts = np.concatenate(([0], np.nonzero(jumps)[0] + 1))
    lasts = np.concatenate((firsts[1:] - 1, [len(numbered) - 1]))
    return [
        (_origin(numbered[first], mariadb), int(numbers[first]), int(numbers[last]))
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _origin(transaction: np.void, mariadb: bool) -> str:
    if mariadb:
        return f"{transaction['domain']}-{transaction['server']}"
    return str(uuid.UUID(bytes=transaction["origin"].tobytes()))


def _grown(array: NDArray[np.uint8], more: int) -> NDArray[np.uint8]:
    grown = np.empty(2 * len(array) + more, np.uint8)
    grown[: len(array)] = array
    return grown
