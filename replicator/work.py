"""A batch on its way into the mirror: which table each change belongs to, what the kernels left of it, what cannot be applied.

Owns these notes. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from replicator.changes import Batch
from replicator.errors import RowProblem, TableProblem
from replicator.mirror import MirrorTable
from replicator.quarantine import Poison, take_image, take_tuple
from replicator.schema import Registry
from replicator.values import finish_rows

Rows = NDArray[np.int64]


@dataclass
class Work:
    """A batch on its way: its changes with the hard rows filled in, which table each belongs to, which have a _raw.

    triggers: (t,) indexes of the changes that cascade without a trace in the binlog. derived: how many changes these made.
    span: the changes that are written just now.
    poison: what cannot be applied, by its index; aside: which of it is in the quarantine already. refused: the tuples that
        Postgres refuses, where these are built anew each time.
    """

    batch: Batch
    changes: NDArray[np.void]
    out: NDArray[np.uint8]
    raw: NDArray[np.bool_]
    tables: NDArray[np.int64]
    triggers: Rows
    current: MirrorTable | None = None
    derived: int = 0
    poison: dict[int, Poison] = field(default_factory=dict)
    aside: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    span: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, batch: Batch, tables: Rows, triggers: Rows) -> Work:
        """A batch as the kernels left it."""
        return cls(batch, batch.changes, batch.out, np.zeros(len(tables), np.bool_), tables, triggers)

    def finish_hard_rows(self, registry: Registry) -> None:
        """Build the tuples that the kernel left, and note those that cannot be built."""
        if self.changes["hard_bytes"].any():
            # the kernel's own arrays stay as they are
            self.changes = self.changes.copy()
            self.out, self.raw = self.finish_span(registry, self.changes, self.out, 0)

    def finish_span(
        self, registry: Registry, changes: NDArray[np.void], out: NDArray[np.uint8], start: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """As finish_hard_rows for a piece of a batch, its changes modified in place; they are those from `start` on."""
        for i in [i for i in self.poison if start <= i < start + len(changes)]:
            del self.poison[i]

        def reject(i: int, problem: TableProblem) -> None:
            table = registry.by_number[int(self.tables[start + i])]
            if isinstance(problem, RowProblem):
                self.poison[start + i] = take_image(changes, out, self.batch.keys, i, str(problem), self.batch.plans)
            else:
                registry.reject(table.number, problem)

        finished = finish_rows(self.batch.plans, changes, out, is_result=False, reject=reject)
        for i in [i for i in self.refused if start <= i < start + len(changes)]:
            table = registry.by_number[int(self.tables[i])]
            self.poison[i] = take_tuple(changes, finished[0], i - start, self.refused[i], table)
        return finished
