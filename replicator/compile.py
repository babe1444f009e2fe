"""Compiles the kernels of the stream into numba's cache: `python -m replicator.compile`.

The first call of a kernel compiles it, which takes some seconds and a hundred megabytes. Done beforehand, in a process that
ends, neither falls upon the process that replicates. Nothing is read or written but the cache.
"""

from __future__ import annotations

import numpy as np

from replicator import compare, decode
from replicator.changes import ChangeBuffer
from replicator.charsets import Charsets
from replicator.packets import PacketBuffer
from replicator.plan import Plans
from replicator.rows import Rows, match_rows


def compile_kernels() -> None:
    """Call every kernel with arrays of the types that it is used with, and nothing in them."""
    plans, buffer, data = Plans(Charsets({}, {})), ChangeBuffer(0), PacketBuffer(None, 1.0).data
    state, out, keys, changes, digits = buffer.state, buffer.out, buffer.keys, buffer.changes, buffer.digits
    decode.consume(
        data, 0, state, plans.slots, plans.plans, plans.columns, plans.blob, plans.labels, out, keys, changes,
        buffer.transactions, digits,
    )  # fmt: skip
    decode.consume_result(
        data, 0, state, 0, plans.plans[0], plans.columns, plans.blob, plans.labels, out, changes, digits
    )  # fmt: skip
    decode.commit(state, buffer.transactions)
    rows = np.empty(0, np.int64)
    entries = np.zeros(2, decode.ENTRY)
    decode.find_left(rows, changes, out, plans.plans, plans.columns, False, np.zeros(1, decode.LEFT))
    decode.fold(rows, changes, keys, entries, np.full(4, -1, np.int64))
    decode.gather(rows, changes, out, out)
    decode.renumber(changes[:0], out, 0)
    decode.stage_keys(rows, entries, keys, 1, out)
    compare.hash_changes(changes, rows, keys, np.empty(0, np.uint64))
    for none in (b"", bytearray()):
        nothing = Rows.parse(none, np.ones(1, np.uint8))
        match_rows(nothing, nothing)
        nothing.keys(rows, rows)


if __name__ == "__main__":
    compile_kernels()
