"""When an incident opens, goes on and closes, and that batches do not matter."""

import itertools

import numpy as np
import pytest

from scorer.incidents import Incident, Row, follow_rows


def make_row(entity: str, seq: int, score: float) -> Row:
    """A row judged by a threshold of 1 and a closing level of 0.5."""
    return Row(entity, seq, float(seq), score, score > 1.0, score <= 0.5)


def follow(scores: list[float], close_after: int = 3, cuts: tuple[int, ...] = ()) -> list[tuple[int, int, int, int, bool]]:
    """Incidents of one entity as (first seq, last seq, anomalies, ordinary rows, closed), rows cut into batches."""
    rows = [make_row("a", seq, score) for seq, score in enumerate(scores, start=1)]
    known: dict[int, Incident] = {}
    bounds = [0, *cuts, len(rows)]
    for first, last in itertools.pairwise(bounds):
        still_open = {i.entity: i for i in known.values() if not i.closed}
        changed, _ = follow_rows(still_open, rows[first:last], close_after)
        for incident in changed:
            incident.id = incident.id or incident.first_seq
            known[incident.first_seq] = incident
    return [(i.first_seq, i.last_seq, i.anomalies, i.ordinary_rows, i.closed) for i in known.values()]


def test_first_anomaly_opens_and_a_run_of_ordinary_rows_closes() -> None:
    """The run must be long enough, and an anomaly within it starts the count afresh."""
    assert follow([0, 2, 0, 0, 2, 0, 0, 0, 0]) == [(2, 5, 2, 3, True)]


def test_next_anomaly_after_a_closed_incident_opens_another() -> None:
    """Two episodes are two incidents, also within one batch."""
    assert follow([2, 0, 0, 0, 2, 0]) == [(1, 1, 1, 3, True), (5, 5, 1, 1, False)]


def test_a_score_at_the_threshold_is_ordinary() -> None:
    """Only a score above the threshold is an anomaly."""
    assert follow([1.0, 1.0]) == []


@pytest.mark.parametrize("seed", range(20))
def test_cuts_into_batches_do_not_matter(seed: int) -> None:
    """Any cut of the rows gives the incidents of one batch."""
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.0, 2.0], size=60, p=[0.8, 0.2]).tolist()
    cuts = tuple(sorted(int(cut) for cut in rng.integers(0, 60, 8)))
    assert follow(scores, 4, cuts) == follow(scores, 4)


def test_a_score_between_the_levels_keeps_an_incident_open() -> None:
    """It is no anomaly, and the run of ordinary rows begins anew after it."""
    assert follow([2, 0, 0, 0.8, 0, 0, 0.8]) == [(1, 1, 1, 0, False)]
    assert follow([2, 0.8, 0, 0, 0]) == [(1, 1, 1, 3, True)]
    assert follow([0.8, 0.8]) == []


def test_the_peak_is_the_row_with_the_highest_score() -> None:
    """Also over batches; of equal ones the first."""
    first, _ = follow_rows({}, [make_row("a", 1, 2.0), make_row("a", 2, 3.0)], 3)
    changed, _ = follow_rows({"a": first[0]}, [make_row("a", 3, 3.0), make_row("a", 4, 2.5)], 3)
    assert [(i.peak_score, i.peak_seq, i.peak_order_value, i.last_seq) for i in changed] == [(3.0, 2, 2.0, 4)]


def test_entities_do_not_mix() -> None:
    """Ordinary rows of one entity do not close another's incident, and peaks are each one's own."""
    rows = [
        make_row("a", 1, 2.0),
        make_row("b", 2, 0.0),
        make_row("b", 3, 5.0),
        make_row("b", 4, 0.0),
        make_row("a", 5, 3.0),
    ]
    changed, of_anomalies = follow_rows({}, rows, 1)
    assert {i.entity: (i.peak_score, i.closed) for i in changed} == {"a": (3.0, False), "b": (5.0, True)}
    assert [i.entity for i in of_anomalies] == ["a", "b", "a"]
