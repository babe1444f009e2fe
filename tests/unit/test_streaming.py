"""The stream's own parameters: names of other systems, when a forest speaks, how it fills, how rows age."""

from __future__ import annotations

import numpy as np
import pytest

from scorer import RandomCutForest
from scorer.errors import BadParameter, BadRows


def normal_rows(n: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Rows of independent normal numbers, shape (n, 3)."""
    return np.random.default_rng(seed).normal(size=(n, 3)) + shift


def test_names_of_other_systems_mean_the_same():
    """Kinesis', SageMaker's and AWS' names give the forest that ours give."""
    ours = RandomCutForest(trees=7, samples=20, time_decay=500, shingle=4, seed=3, output_after=9, columns=3)
    kinesis = RandomCutForest(
        numberOfTrees=7,
        subSampleSize=20,
        timeDecay=500,
        shingleSize=4,
        randomSeed=3,
        outputAfter=9,
        withDirectionality=True,
        dimensions=3,
    )
    sagemaker = RandomCutForest(
        num_trees=7, num_samples_per_tree=20, time_decay=500, shingle_size=4, seed=3, output_after=9, feature_dim=3
    )
    states = {forest.partial_fit(normal_rows(100)).to_bytes() for forest in (ours, kinesis, sagemaker)}
    assert len(states) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nTrees": 5}, "Unknown parameter nTrees"),
        ({"trees": 5, "num_trees": 5}, "given twice"),
        ({"shingleSize": 129}, "1 to 128"),
        ({"subSampleSize": 9}, "10 to 2048"),
        ({"timeDecay": 0}, "1 to 2147483647"),
        ({"initial_accept_fraction": 0.0}, "above 0"),
        ({"output_after": True}, "whole number"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    """Unknown names, doubles, values out of range."""
    with pytest.raises(BadParameter, match=message):
        RandomCutForest(**parameters)


def test_columns_that_were_announced_are_held_to():
    """Rows of another width are refused, first rows included."""
    with pytest.raises(BadRows, match="announced"):
        RandomCutForest(feature_dim=4).partial_fit(normal_rows(10))


def test_output_after_is_exact():
    """The first row with a score is the one after `output_after`."""
    scores = RandomCutForest(trees=5, output_after=40).update(normal_rows(100))
    assert np.flatnonzero(scores)[0] == 40


def test_initial_accept_fraction_spreads_the_first_sample():
    """With 1 the first rows fill every tree; with less they fill a share, and later rows come in."""
    rows = normal_rows(256)
    full = RandomCutForest(trees=50, samples=64).partial_fit(rows[:64])
    slow = RandomCutForest(trees=50, samples=64, initial_accept_fraction=0.125).partial_fit(rows[:64])
    assert (full._tree_records["size"] == 64).all()
    assert slow._tree_records["size"].min() >= 8
    assert 15 < slow._tree_records["size"].mean() < 50
    slow.partial_fit(rows[64:])
    assert (slow._tree_records["size"] <= 64).all()
    assert slow._tree_records["size"].mean() > 55


def sampled_rows(forest: RandomCutForest) -> np.ndarray:
    """Numbers of the rows that the trees hold."""
    return forest._slots["row"].ravel()


def test_decay_can_be_changed_on_the_fly():
    """A shorter decay forgets faster from then on; rows before keep the ages that they had."""
    rows = normal_rows(4000)
    long = RandomCutForest(trees=40, samples=64, time_decay=10**8).partial_fit(rows)
    changed = RandomCutForest(trees=40, samples=64, time_decay=10**8).partial_fit(rows[:2000])
    changed.time_decay = 200
    changed.partial_fit(rows[2000:])
    assert (sampled_rows(long) < 2000).mean() == pytest.approx(0.5, abs=0.05)
    assert (sampled_rows(changed) < 3000).mean() < 0.05
    assert changed.age == pytest.approx(2000 / 10**8 + 2000 / 200)
    with pytest.raises(BadParameter):
        changed.time_decay = 0


def test_decay_counts_rows_of_an_entity():
    """A fleet of 20 forgets a row after 20 times as many rows as one engine; the count of engines survives a restore."""
    rows = normal_rows(6000)
    fleet = RandomCutForest(trees=40, samples=64, time_decay=100)
    fleet.partial_fit(rows[:3000], [i % 20 for i in range(3000)])
    fleet = RandomCutForest.from_bytes(fleet.to_bytes()).partial_fit(rows[3000:], [i % 20 for i in range(3000)])
    one = RandomCutForest(trees=40, samples=64, time_decay=100).partial_fit(rows)
    assert np.median(6000 - sampled_rows(one)) < 150
    assert 1000 < np.median(6000 - sampled_rows(fleet)) < 2000
    with pytest.raises(BadRows, match="2 entities for 3 rows"):
        fleet.partial_fit(rows[:3], ["a", "b"])


def test_a_long_stream_keeps_its_precision():
    """After the equivalent of 10^12 rows the reservoir still tells rows apart: keys are float64."""
    forest = RandomCutForest(trees=20, samples=64, time_decay=1000).partial_fit(normal_rows(500))
    forest.age += 1e9
    forest._slots["key"] -= 1e9
    forest.partial_fit(normal_rows(5000, 1))
    assert np.median(5500 - sampled_rows(forest)) == pytest.approx(1000 * np.log(2), rel=0.35)


def test_learn_one_is_update_of_one_row():
    """The row-by-row face of libraries for streams."""
    rows = normal_rows(200)
    one, many = RandomCutForest(trees=5, policy="streaming"), RandomCutForest(trees=5, policy="streaming")
    assert [one.learn_one(row) for row in rows] == many.update(rows).tolist()


def test_saved_file_is_the_forest(tmp_path):
    """Save and load."""
    forest = RandomCutForest(trees=3).fit(normal_rows(50))
    forest.save(tmp_path / "forest.bin")
    assert RandomCutForest.load(tmp_path / "forest.bin").to_bytes() == forest.to_bytes()
