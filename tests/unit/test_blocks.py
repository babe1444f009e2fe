"""Blocks of copied rows, cut where the stream leaves no time for all of one."""

import numpy as np
import pytest

from replicator.key_range import Block


def make_block() -> Block:
    """Five rows with tuples and keys of different lengths; _seq is at the third byte of each tuple."""
    starts, key_starts = np.array([0, 10, 22, 32, 47, 60]), np.array([0, 2, 3, 7, 8, 12])
    return Block(
        np.arange(60, dtype=np.uint8), starts, starts[:-1] + 2, np.arange(12, dtype=np.uint8), key_starts,
        np.array([5, 4, 3, 2, 1]), 3, (b"last",),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_both_parts_hold_the_rows_of_the_whole(rows: int) -> None:
    """Every row's tuple, key, hash and place of _seq are the same in the part that has it."""
    block = make_block()
    parts = block.cut(rows)
    assert [part.rows for part in parts] == [rows, 5 - rows]
    found = [row for part in parts for row in list_rows(part)]
    assert found == list_rows(block)


def test_only_the_rest_says_where_reading_goes_on() -> None:
    """The first part has no last key, so a crash behind it reads the block's rows again; raw rows are counted once."""
    head, tail = make_block().cut(2)
    assert (head.last, tail.last) == ((), (b"last",))
    assert head.raw_rows + tail.raw_rows == 3


def test_a_part_can_be_numbered_by_itself() -> None:
    """The parts share memory with the block, and writing into one leaves the other as it is."""
    head, tail = make_block().cut(3)
    before = tail.tuples.copy()
    head.tuples[:] = 0
    assert np.array_equal(tail.tuples, before)


def list_rows(block: Block) -> list[tuple[bytes, bytes, int, int]]:
    """Each row's tuple, key, hash, and the place of _seq in its tuple."""
    return [
        (
            block.tuples[block.starts[i] : block.starts[i + 1]].tobytes(),
            block.keys[block.key_starts[i] : block.key_starts[i + 1]].tobytes(),
            int(block.hashes[i]),
            int(block.seq_at[i] - block.starts[i]),
        )
        for i in range(block.rows)
    ]
