"""A forest for each entity, and a pooled one for those that have too few rows; so many are in memory, the others are parked.

Owns which forest judges a row, when an entity gets one of its own, and which forests are in memory. Never reads or writes the
database: the `Store` does, inside the transaction of the batch.

The rules. An entity with `entity_rows` training rows has a forest of its own from the start, fitted on them. Rows of any other
entity are judged by the pooled forest, which was fitted on all training rows and learns nothing more. They are collected with
the entity's training rows, but for late ones and, unless the policy is streaming, those that the pooled forest calls anomalies.
Once there are `entity_rows` of them, its own forest is fitted on them and judges from the next row on. What is found depends on
the rows and their order only: not on how they are cut into calls, nor on how many forests are in memory.

How a restart finds everything again. A forest in the store names the last batch that is in it. Rows that leave a trace are kept
by batch until the next checkpoint, which writes every forest that changed. A forest that is read again takes in those of its
rows that came after its own last batch. One that has just been fitted is written in the same batch.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from scorer import state
from scorer.detector import Detector
from scorer.errors import CheckpointRefused
from scorer.follow import Follower, Neighbours, judge_in_order, merge_verdicts, take_in, warm_up
from scorer.judge import LATE, Rows, Verdicts, fit_detector, is_plain

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Part = tuple[Ints, Verdicts]


class Store(Protocol):
    """Where forests are parked."""

    def load(self, entity: str) -> tuple[bytes, int]:
        """The checkpoint of an entity's detector and the last batch that is in it."""

    def keep(self, entity: str, detector: Detector, batch: int) -> None:
        """Write the checkpoint of an entity's detector, which knows the rows up to this batch."""


@dataclass
class Resident:
    """A forest in memory: its detector, the last batch that it took rows of, whether the store has it as it is."""

    detector: Detector
    batch: int
    changed: bool = False


@dataclass
class Waiting:
    """Rows of an entity that has no forest of its own yet: values, each of shape (columns,), and order values."""

    rows: list[Floats] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class EntityJudge(Follower):
    """The pooled detector, the detectors of entities, and the rows of those that wait for one.

    Args:
        parameters: the model's.
        pool: fitted on all training rows, with the policy frozen.
        store: where forests are parked.
        in_memory: forests of entities in memory at most, >= 1.
        ordered: whether rows have order values.

    Attributes:
        own: entities that have a forest of their own.
        waiting: rows collected for those that have none.
        pending: by entity, rows that a restart has yet to give to its forest, with their batch.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        pool: Detector,
        store: Store,
        *,
        in_memory: int,
        ordered: bool,
        threads: int = 1,
        batch: int = 0,
    ) -> None:
        self.parameters, self.pool, self.store = dict(parameters), pool, store
        self.in_memory, self.ordered, self.threads = in_memory, ordered, threads
        self.batch, self.rows_since = batch, 0
        self.shingle = 1 if pool.shingler is None else pool.shingler.size
        self.entity_rows = int(parameters["entity_rows"])
        # Where rows leave no trace in an entity's forest, it is only ever asked.
        self.learns = not is_plain({**parameters, "forest_per": "model"})
        self.own: set[str] = set()
        self.waiting: defaultdict[str, Waiting] = defaultdict(Waiting)
        self.pending: defaultdict[str, list[tuple[int, Rows]]] = defaultdict(list)
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._number = batch

    @property
    def residents(self) -> int:
        """Forests of entities in memory."""
        return len(self._resident)

    def warm_up(self) -> None:
        """Load, or make, compiled code."""
        warm_up(self.pool)

    def taken(self, rows: Rows) -> NDArray[np.bool_]:
        """New rows, where forests learn; else those of entities that wait for one."""
        new = ~rows.came_before
        return new if self.learns else new & np.array([name not in self.own for name in _names(rows)], np.bool_)

    def judge(self, rows: Rows, neighbours: Neighbours) -> Verdicts:
        """Judge rows, taking in those that are new."""
        taken = self.taken(rows)
        self.rows_since += int(taken.sum())
        self._number = self.batch + bool(taken.any())
        parts, groups, grown = self._pass_pool(rows, neighbours)
        for name, collected in grown.items():
            detector, _ = fit_detector(self.parameters, self._as_rows(name, collected), self.threads)
            self._admit(name, Resident(detector, self._number, changed=True))
        # Forests in memory first, so that none of them is parked and fetched again.
        for name in sorted(groups, key=lambda name: name not in self._resident):
            parts.append(self._judge_own(name, np.array(groups[name]), rows, neighbours))
        for name in grown:
            self._keep(name, self._fetch(name))
        return merge_verdicts(parts, len(rows.features), rows.features.shape[1])

    def replay(self, batch: int, rows: Rows) -> None:
        """Take in the rows of a batch that came after the checkpoint; a forest takes its own once it is asked for."""
        _, groups, _ = self._pass_pool(rows, lambda _: rows)
        if self.learns:
            for name, numbers in groups.items():
                self.pending[name].append((batch, rows.take(np.array(numbers))))
        self.batch = batch
        self.rows_since += len(rows.features)

    def _pass_pool(self, rows: Rows, neighbours: Neighbours) -> tuple[list[Part], dict[str, list[int]], dict[str, Waiting]]:
        """Judge the rows of entities without a forest, and collect them.

        Returns:
            (parts, groups, grown): the verdicts; the numbers of the rows that are for an entity's own forest, by entity; the
            collected rows of entities that have enough now.
        """
        again = rows.came_before
        parts: list[Part] = []
        groups: defaultdict[str, list[int]] = defaultdict(list)
        grown: dict[str, Waiting] = {}
        piece: list[int] = []
        # Rows that an entity may have in this piece before it could have a forest.
        room: dict[str, int] = {}
        for number, name in enumerate(_names(rows)):
            if name not in self.own and self._room(name, room) == 0:
                grown |= self._judge_piece(piece, rows, neighbours, parts)
                piece, room = [], {}
            if name in self.own:
                groups[name].append(number)
            else:
                piece.append(number)
                room[name] = self._room(name, room) - (not again[number])
        grown |= self._judge_piece(piece, rows, neighbours, parts)
        return parts, groups, grown

    def _room(self, name: str, room: Mapping[str, int]) -> int:
        if name in room:
            return room[name]
        return self.entity_rows - (len(self.waiting[name].rows) if name in self.waiting else 0)

    def _judge_piece(self, piece: list[int], rows: Rows, neighbours: Neighbours, parts: list[Part]) -> dict[str, Waiting]:
        """Judge rows by the pooled forest and collect them; returns the entities that have enough now."""
        if not piece:
            return {}
        numbers = np.array(piece)
        part = rows.take(numbers)
        found = judge_in_order(self.pool, part, lambda i: neighbours(int(numbers[i])))
        parts.append((numbers, found))
        wanted = ~part.came_before & (found.reasons != LATE)
        if self.parameters["policy"] != "streaming":
            wanted[found.abnormal] = False
        names, grown = _names(part), {}
        for i in np.flatnonzero(wanted).tolist():
            waiting = self.waiting[names[i]]
            waiting.rows.append(part.features[i].copy())
            waiting.times.append(0.0 if part.order is None else float(part.order[i]))
            if len(waiting.rows) == self.entity_rows:
                self.own.add(names[i])
                grown[names[i]] = self.waiting.pop(names[i])
        return grown

    def _as_rows(self, name: str, collected: Waiting) -> Rows:
        order = np.array(collected.times) if self.ordered else None
        return Rows(np.array(collected.rows), [name] * len(collected.rows), order)

    # --- forests of entities -----------------------------------------------------------------------

    def _judge_own(self, name: str, numbers: Ints, rows: Rows, neighbours: Neighbours) -> Part:
        resident = self._fetch(name)
        part = rows.take(numbers)
        found = judge_in_order(resident.detector, part, lambda i: neighbours(int(numbers[i])), learn=self.learns)
        if self.learns and not part.came_before.all():
            resident.batch, resident.changed = self._number, True
        return numbers, found

    def _fetch(self, name: str) -> Resident:
        """The entity's forest, from memory, or from the store with the rows that came after it was written."""
        if name in self._resident:
            self._resident.move_to_end(name)
            return self._resident[name]
        data, batch = self.store.load(name)
        resident = Resident(Detector.from_bytes(data, threads=self.threads), batch)
        for number, rows in self.pending.pop(name, ()):
            if number > batch:
                take_in(resident.detector, rows)
                resident.batch, resident.changed = number, True
        self._admit(name, resident)
        return resident

    def _admit(self, name: str, resident: Resident) -> None:
        while len(self._resident) >= self.in_memory:
            self._keep(*self._resident.popitem(last=False))
        self._resident[name] = resident

    def _keep(self, name: str, resident: Resident) -> None:
        if resident.changed:
            self.store.keep(name, resident.detector, resident.batch)
            resident.changed = False

    def detector_of(self, entity: str) -> Detector:
        """The entity's own detector, or the pooled one."""
        return self._fetch(entity).detector if entity in self.own else self.pool

    # --- checkpoint --------------------------------------------------------------------------------

    def checkpoint(self) -> bytes:
        """Write the forests that changed to the store; the pooled forest, the collected rows and the names as bytes."""
        for name in list(self.pending):
            self._fetch(name)
        for name, resident in self._resident.items():
            self._keep(name, resident)
        return self.to_bytes()

    def to_bytes(self) -> bytes:
        """What is not in the store."""
        values = {
            "entities": 1,
            "parameters": self.parameters,
            "ordered": self.ordered,
            "own": sorted(self.own),
            "waiting": [[name, len(waiting.rows)] for name, waiting in self.waiting.items()],
        }
        rows = [row for waiting in self.waiting.values() for row in waiting.rows]
        times = [time for waiting in self.waiting.values() for time in waiting.times]
        arrays = {
            "pool": np.frombuffer(self.pool.to_bytes(), np.uint8),
            "rows": np.array(rows, "<f8").reshape(len(rows), self.pool.columns),
            "times": np.array(times, "<f8"),
        }
        return state.pack(values, arrays)

    @classmethod
    def from_bytes(cls, data: bytes, store: Store, *, in_memory: int, threads: int = 1, batch: int = 0) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            CheckpointRefused: no such checkpoint, or a damaged one, or one of another version.
        """
        values, arrays = state.unpack(data)
        if values.get("entities") != 1 or arrays.keys() != {"pool", "rows", "times"}:
            raise CheckpointRefused(
                "These bytes are not a checkpoint of forests per entity.", hint="Use an earlier one, or train the model again."
            )
        pool = Detector.from_bytes(arrays["pool"].tobytes(), threads=threads)
        given = {"in_memory": in_memory, "ordered": values["ordered"], "threads": threads, "batch": batch}
        made = cls(values["parameters"], pool, store, **given)
        made.own = set(values["own"])
        first = 0
        for name, count in values["waiting"]:
            part = slice(first, first + count)
            made.waiting[name] = Waiting([row.copy() for row in arrays["rows"][part]], arrays["times"][part].tolist())
            first += count
        return made


def _names(rows: Rows) -> list[str]:
    assert rows.entities is not None, "a model with forests per entity has an entity column"
    return list(rows.entities)
