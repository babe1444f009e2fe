"""Checkpoints: what comes back, what is refused."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest

from scorer import RandomCutForest, state
from scorer.errors import CheckpointRefused


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A checkpoint of a small forest."""
    rows = np.random.default_rng(0).normal(size=(300, 5))
    return RandomCutForest(trees=3, samples=32, time_decay=100, seed=7).fit(rows).partial_fit(rows).to_bytes()


def sealed(data: bytes) -> bytes:
    """The same bytes with a checksum that matches them."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def with_header(data: bytes, change) -> bytes:
    """A checkpoint whose JSON header went through `change`, with lengths and checksum put right."""
    magic, version, length = struct.unpack_from("<8sII", data)
    header = json.loads(data[16 : 16 + length])
    change(header)
    text = json.dumps(header).encode()
    return sealed(struct.pack("<8sII", magic, version, len(text)) + text + data[16 + length :])


def test_parameters_and_progress_come_back(checkpoint):
    """All that decides the future is restored; the number of threads is the caller's choice."""
    forest = RandomCutForest.from_bytes(checkpoint, threads=2)
    assert (forest.trees, forest.samples, forest.time_decay, forest.seed) == (3, 32, 100, 7)
    assert (forest.columns, forest.rows_seen, forest.threads) == (5, 600, 2)
    assert forest.age == pytest.approx(3.0)
    assert forest.to_bytes() == checkpoint


def test_size_is_no_more_than_the_state():
    """Boxes follow from the points and are left out: 24 columns take less than half of what they take in memory."""
    forest = RandomCutForest().fit(np.random.default_rng(0).normal(size=(1000, 24)))
    assert len(forest.to_bytes()) < 0.5 * forest.state_bytes


@pytest.mark.parametrize("at", [0, 9, 14, 40, 2000, -33, -1])
def test_one_changed_byte_is_refused(checkpoint, at):
    """Wherever a byte is changed."""
    damaged = bytearray(checkpoint)
    damaged[at] ^= 0x10
    with pytest.raises(CheckpointRefused):
        RandomCutForest.from_bytes(bytes(damaged))


@pytest.mark.parametrize("length", [0, 8, 47, 48, 1000, -1])
def test_cut_short_or_too_long_is_refused(checkpoint, length):
    """No part of a checkpoint is taken for one, nor one with bytes after it."""
    with pytest.raises(CheckpointRefused):
        RandomCutForest.from_bytes(checkpoint[:length])
    with pytest.raises(CheckpointRefused, match="checksum"):
        RandomCutForest.from_bytes(checkpoint + b"\0" * 40)
    with pytest.raises(CheckpointRefused, match="more than"):
        RandomCutForest.from_bytes(sealed(checkpoint + b"\0" * 40))


def test_other_versions_are_refused_by_number(checkpoint):
    """The message says which version it is, which is known, and what to do."""
    later = sealed(checkpoint[:8] + struct.pack("<I", state.VERSION + 1) + checkpoint[12:])
    with pytest.raises(CheckpointRefused, match=r"(?s)version 3.*version 2.*train the model again"):
        RandomCutForest.from_bytes(later)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["values"].update(trees=4),
        lambda header: header["values"].update(samples=5),
        lambda header: header["values"].update(columns=6),
        lambda header: header["values"].update(columns=0),
        lambda header: header["values"].update(seed="7"),
        lambda header: header["values"].update(surprise=1),
        lambda header: header["values"].pop("rows_seen"),
        lambda header: header.update(surprise=1),
        lambda header: header.pop("arrays"),
        lambda header: header["arrays"].pop(),
        lambda header: header["arrays"][0].update(surprise=1),
        lambda header: header["arrays"][0].update(dtype="<f9"),
        lambda header: header["arrays"][0].update(shape=[-1]),
        lambda header: header["arrays"][0].update(shape=[2**40]),
        lambda header: header["arrays"][0].update(name="stems"),
    ],
)
def test_headers_that_say_something_else_are_refused(checkpoint, change):
    """A header with a right checksum but other fields, names, types or shapes."""
    with pytest.raises(CheckpointRefused):
        RandomCutForest.from_bytes(with_header(checkpoint, change))


@pytest.mark.parametrize("field", ["left", "parent", "cut_dim"])
def test_links_outside_the_arrays_are_refused(checkpoint, field):
    """Compiled code checks no bounds, so a restored forest is checked once."""
    forest = RandomCutForest.from_bytes(checkpoint)
    forest._nodes[1, 3][field] = 1000
    with pytest.raises(CheckpointRefused, match="outside"):
        RandomCutForest.from_bytes(forest.to_bytes())
