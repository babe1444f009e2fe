"""Forests per entity: who judges which row, and that cuts, restarts and the bound on memory leave no trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from scorer.detector import Detector
from scorer.entities import EntityJudge
from scorer.errors import CheckpointRefused
from scorer.fit import fit_entities
from scorer.judge import REASONS, Rows, Verdicts, make_detector
from tests.unit.test_detector import make_fleet

COMMON = {"trees": 12, "samples": 32, "time_decay": 50, "forest_per": "entity", "entity_rows": 70, "threshold": "sigma"}
KINDS: list[dict[str, Any]] = [
    {"policy": "frozen"},
    {"policy": "frozen", "threshold": "quantile", "threshold_value": 0.95, "shingle": 2},
    {"policy": "streaming", "threshold": "adaptive", "baseline_rows": 6},
    {"policy": "gated", "shingle": 2, "gate_sigma": 1.5, "entity_rows": 40},
]
FIELDS = ("scores", "reasons", "thresholds", "grades", "abnormal", "high", "low", "expected")


@dataclass
class Shelf:
    """A store in memory; a copy is what a transaction that was rolled back leaves."""

    forests: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    loads: int = 0

    def load(self, entity: str) -> tuple[bytes, int]:
        """The bytes that were kept."""
        self.loads += 1
        return self.forests[entity]

    def keep(self, entity: str, detector: Detector, batch: int) -> None:
        """Keep bytes."""
        self.forests[entity] = detector.to_bytes(), batch


def make_rows(rows: int, seed: int) -> Rows:
    """Five engines and, from the middle on, a sixth; some rows late."""
    values, names, order = make_fleet(rows, seed)
    for i in range(rows // 3, rows, 3):
        names[i] = "new engine"
    return Rows(values, names, order, np.zeros(rows, np.bool_))


def start(kind: dict[str, Any], shelf: Shelf, in_memory: int) -> EntityJudge:
    """Trained on engines of which one has too few rows."""
    history = make_rows(900, 0)
    history = history.take(np.flatnonzero([name not in ("new engine", "engine 4") for name in history.entities or ()]))
    few = make_rows(900, 0)
    few = few.take(np.flatnonzero([name == "engine 4" for name in few.entities or ()])[:20])
    assert history.order is not None and few.order is not None and history.entities and few.entities
    rows = Rows(
        np.vstack([history.features, few.features]),
        [*history.entities, *few.entities],
        np.concatenate([history.order, few.order]),
    )
    trained = fit_entities(rows, COMMON | kind, 1, shelf, lambda *_: None)
    return EntityJudge.from_bytes(trained.state, shelf, in_memory=in_memory)


def judge(fleet: EntityJudge, rows: Rows) -> Verdicts:
    """One batch, as a transaction that commits."""
    taken = fleet.taken(rows)
    found = fleet.judge(rows, lambda _: Rows(np.empty((0, 3))))
    fleet.batch += bool(taken.any())
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_do_not_depend_on_cuts_restarts_or_memory(kind, seed):
    """All forests in memory and one call; or one to six in memory, small calls, and between them kills, checkpoints and calls
    that are rolled back with the forests that they parked: the same bits.
    """
    rows, dice = make_rows(500, 1), np.random.default_rng(seed)
    whole = judge(start(kind, Shelf(), 1000), rows)
    shelf = Shelf()
    fleet = start(kind, shelf, 1)
    saved: tuple[bytes, int] = fleet.to_bytes(), 0
    log: list[tuple[int, Rows]] = []
    parts, a = [], 0
    while a < 500:
        piece = rows.take(np.arange(a, min(500, a + int(dice.integers(1, 8)))))
        happens = dice.random(3) < (0.1, 0.3, 0.2)
        if happens[0]:  # a batch that is rolled back
            before = dict(shelf.forests)
            fleet.judge(piece, lambda _: Rows(np.empty((0, 3))))
            shelf.forests = before
        if happens[0] or happens[1]:  # a new process
            fleet = EntityJudge.from_bytes(saved[0], shelf, in_memory=int(dice.integers(1, 7)), batch=saved[1])
            for number, kept in log:
                fleet.replay(number, kept)
        taken = fleet.taken(piece)
        parts.append((a, judge(fleet, piece)))
        assert fleet.residents <= fleet.in_memory
        if taken.any():
            log.append((fleet.batch, piece.take(np.flatnonzero(taken))))
            if happens[2]:
                saved, log = (fleet.checkpoint(), fleet.batch), []
        a += len(piece.features)
    for name in FIELDS:
        found = np.concatenate([getattr(part, name) + (a if name == "abnormal" else 0) for a, part in parts])
        assert found.tobytes() == getattr(whole, name).tobytes(), name
    assert len(whole.abnormal)


def test_a_forest_that_is_parked_before_its_rows_of_the_batch_knows_that():
    """A new forest takes the place of one whose rows come later in the same batch: what is parked says what it lacks."""
    shelf = Shelf()
    fleet = start({"policy": "streaming"}, shelf, 2)
    saved, log = fleet.to_bytes(), []
    rows = make_rows(500, 1)
    numbers = {name: np.flatnonzero([other == name for other in rows.entities or ()]) for name in set(rows.entities or ())}
    batches = [
        np.array([numbers["engine 0"][0], numbers["engine 1"][0]]),
        np.concatenate([numbers["engine 4"][:50], numbers["engine 0"][1:3]]),
    ]
    for batch in batches:
        judge(fleet, rows.take(batch))
        log.append((fleet.batch, rows.take(batch)))
    assert "engine 4" in fleet.own
    wanted = fleet.detector_of("engine 0").to_bytes()
    again = EntityJudge.from_bytes(saved, Shelf(dict(shelf.forests)), in_memory=2)
    for number, kept in log:
        again.replay(number, kept)
    assert again.detector_of("engine 0").to_bytes() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_an_entity_s_forest_is_a_detector_of_its_own_rows(kind):
    """A known engine is judged by a detector fitted on its history; a new one by the pooled forest, then by its own."""
    shelf = Shelf()
    fleet = start(kind, shelf, 2)
    assert fleet.own == {f"engine {i}" for i in range(4)} and set(fleet.waiting) == {"engine 4"}
    parameters = COMMON | kind
    history, rows = make_rows(900, 0), make_rows(500, 1)
    assert history.entities and rows.entities and history.order is not None and rows.order is not None
    found = judge(fleet, rows)

    own = history.take(np.flatnonzero([name == "engine 2" for name in history.entities]))
    twin = make_detector(parameters, 3, 1)
    twin.fit(own.features, own.entities, own.order)
    numbers = np.flatnonzero([name == "engine 2" for name in rows.entities])
    seen = rows.take(numbers)
    wanted = twin.process(seen.features, seen.entities, seen.order if "shingle" in kind else None)
    assert found.scores[numbers].tobytes() == wanted.scores.tobytes()

    numbers = np.flatnonzero([name == "new engine" for name in rows.entities])
    assert {"new engine"} <= fleet.own
    seen = rows.take(numbers)
    late = np.array([REASONS[reason] == "late" for reason in found.reasons[numbers]])
    good = ~late if kind["policy"] == "streaming" else ~late & (found.grades[numbers] == 0.0)
    last = int(np.flatnonzero(good)[parameters["entity_rows"] - 1])
    first = seen.take(np.flatnonzero(good[: last + 1]))
    twin = make_detector(parameters, 3, 1)
    twin.fit(first.features, first.entities, first.order)
    rest = seen.take(np.arange(last + 1, len(numbers)))
    wanted = twin.process(rest.features, rest.entities, rest.order if "shingle" in kind else None)
    assert found.scores[numbers[last + 1 :]].tobytes() == wanted.scores.tobytes() and len(rest.features)
    assert not np.isnan(found.scores[numbers[: last + 1]]).all()


def test_frozen_forests_are_asked_and_never_written_again():
    """Rows of known engines leave nothing behind, so that a batch of theirs keeps no rows and parks no forest."""
    shelf = Shelf()
    fleet = start({"policy": "frozen"}, shelf, 1)
    kept = dict(shelf.forests)
    rows = make_rows(300, 1)
    rows = rows.take(np.flatnonzero([name in fleet.own for name in rows.entities or ()]))
    assert not fleet.taken(rows).any()
    judge(fleet, rows)
    assert shelf.forests == kept and shelf.loads == 4


def test_rows_that_come_again_are_judged_and_not_collected():
    """An updated row of an engine that waits, or that has a forest: scored by what is known now, which stays as it is."""
    fleet = start({"policy": "streaming", "threshold": "adaptive"}, Shelf(), 2)
    rows = make_rows(40, 1)
    judge(fleet, rows)
    before, waiting = fleet.checkpoint(), {name: len(w.rows) for name, w in fleet.waiting.items()}
    assert waiting["new engine"]
    rows.again = np.ones(40, np.bool_)
    found = judge(fleet, rows)
    assert not np.isnan(found.scores).any()
    assert fleet.checkpoint() == before


def test_bytes_of_something_else_are_refused():
    """A detector is not that."""
    detector = Detector({"scale": "none", "threshold": "adaptive", "policy": "streaming"}, 1)
    detector.process([[1.0]])
    with pytest.raises(CheckpointRefused, match="forests per entity"):
        EntityJudge.from_bytes(detector.to_bytes(), Shelf(), in_memory=1)
