"""Shingles: rolling, by entity, late rows refused or put in place."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scorer.errors import BadParameter, BadRows
from scorer.shingle import Shingler, fold, rebuild


def test_shingles_roll_within_an_entity_only():
    """Two engines that take turns: each shingle holds rows of one of them, oldest first."""
    rows = np.array([[1.0], [10.0], [2.0], [20.0], [3.0], [30.0], [4.0]])
    shingles, at = Shingler(3).push(rows, list("abababa"))
    assert at.tolist() == [4, 5, 6]
    assert shingles.tolist() == [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [2.0, 3.0, 4.0]]


def test_calls_and_restores_leave_no_trace():
    """The same rows one by one, with a round trip through JSON after each, missing values included."""
    rows = np.random.default_rng(0).normal(size=(60, 2))
    rows[7, 1] = np.nan
    names = [i % 4 for i in range(60)]
    expected, at = Shingler(5).push(rows, names)
    shingler, found = Shingler(5), []
    for row, name in zip(rows, names, strict=True):
        found.append(shingler.push(row[np.newaxis], [name])[0])
        shingler = Shingler.from_dict(json.loads(json.dumps(shingler.to_dict())))
    assert np.concatenate(found).tobytes() == expected.tobytes()
    assert len(at) == 60 - 4 * 4


def test_late_rows_are_refused_and_counted():
    """A row that is not after its entity's newest leaves the window alone; other entities do not matter."""
    shingler = Shingler(2)
    shingles, at = shingler.push([[1.0], [3.0], [2.0], [3.5], [4.0]], list("aaaba"), [1, 3, 2, 1, 4])
    assert shingles.tolist() == [[1.0, 3.0], [3.0, 4.0]]
    assert at.tolist() == [1, 4]
    assert shingler.late == 1
    assert shingler.newest("a").tolist() == [3.0, 4.0]
    assert shingler.newest("b") is None


def test_rebuild_puts_late_rows_in_their_place():
    """The history in any order gives the shingles of the right order, told by the numbers of the rows given."""
    shingles, at = rebuild([[1.0], [3.0], [2.0], [9.0]], 2, list("aaab"), [1, 3, 2, 1])
    assert at.tolist() == [1, 2]
    assert shingles.tolist() == [[2.0, 3.0], [1.0, 2.0]]


def test_parts_fold_to_base_columns():
    """Attributions of a shingle of two blocks add up by column."""
    assert fold([[1.0, 2.0, 10.0, 20.0]], 2).tolist() == [[11.0, 22.0]]


def test_bad_input_is_refused():
    """Sizes, lengths, order values that are no numbers."""
    with pytest.raises(BadParameter):
        Shingler(129)
    shingler = Shingler(2)
    with pytest.raises(BadRows, match="1 entities for 2 rows"):
        shingler.push([[1.0], [2.0]], ["a"])
    with pytest.raises(BadRows, match="Order"):
        shingler.push([[1.0]], None, [np.nan])
    shingler.push([[1.0]])
    with pytest.raises(BadRows, match="2 columns where 1"):
        shingler.push([[1.0, 2.0]])
