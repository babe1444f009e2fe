"""A forest as bytes and back: which arrays and numbers make it up, and whether they can be right.

Owns what is saved. The layout of the bytes is `scorer.state`'s. Never touches a file except on `save` and `load`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scorer import kernels, state
from scorer.errors import BadParameter, BadRows, CheckpointRefused, ForestNotFitted
from scorer.gate import Gate

_PARAMETERS = {
    "trees": int,
    "samples": int,
    "time_decay": int,
    "seed": int,
    "shingle": int,
    "output_after": int,
    "initial_accept_fraction": float,
    "with_directionality": bool,
    "policy": str,
}
_HEADER = _PARAMETERS | {"columns": int, "rows_seen": int, "age": float, "entities": list, "gate": dict}


class Checkpoint:
    """The part of the forest that saves and restores."""

    columns: int
    samples: int
    rows_seen: int
    age: float
    gate: Gate
    _entities: dict[str, None]
    _waiting: list[tuple[NDArray[np.float32], int, float]]
    _tree_records: NDArray[Any]
    _nodes: NDArray[Any]
    _corners: NDArray[np.float32]
    _slots: NDArray[Any]

    def to_bytes(self) -> bytes:
        """The forest as a checkpoint: whatever it does next, the restored one does the same, bit for bit.

        Boxes are left out, because they follow from the points. `threads` is no part of it.

        Raises:
            ForestNotFitted: the forest has seen no row.
        """
        if not self.columns:
            raise ForestNotFitted("An empty forest has no state to save.", hint="Call fit or update first.")
        header = {name: getattr(self, name) for name in _PARAMETERS | {"columns": int, "rows_seen": int, "age": float}}
        header |= {"entities": list(self._entities), "gate": self.gate.to_dict()}
        first_point = 2 * self.samples - 2
        arrays = {
            "trees": self._tree_records,
            "nodes": self._nodes,
            "slots": self._slots,
            "points": self._corners[:, first_point:, : self.columns],
            "waiting": np.array([row[0][: self.columns] for row in self._waiting], np.float32).reshape(-1, self.columns),
            "numbers": np.array([row[1] for row in self._waiting], "<i8"),
            "ages": np.array([row[2] for row in self._waiting], "<f8"),
        }
        return state.pack(header, arrays)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int = 1) -> Self:
        """The forest that `to_bytes` saved.

        Raises:
            CheckpointRefused: no checkpoint, a damaged one, one of another version, or one that does not hold a forest.
        """
        header, arrays = state.unpack(data)
        if header.keys() != _HEADER.keys() or any(type(header[name]) is not kind for name, kind in _HEADER.items()):
            raise CheckpointRefused("The header of the checkpoint is not that of a forest.", fields=sorted(header))
        gate = header["gate"]
        if gate.keys() != {field.name for field in fields(Gate)} or not all(
            isinstance(name, str) for name in header["entities"]
        ):
            raise CheckpointRefused("The header of the checkpoint is not that of a forest.", fields=sorted(gate))
        try:
            forest = cls(**{name: header[name] for name in _PARAMETERS}, threads=threads)  # type: ignore[call-arg]
            forest._allocate(header["columns"])  # type: ignore[attr-defined]
        except (BadParameter, BadRows) as error:
            raise CheckpointRefused(f"The checkpoint holds an impossible parameter: {error.message}") from error
        forest.rows_seen, forest.age, forest.gate = header["rows_seen"], header["age"], Gate(**gate)
        forest._entities = dict.fromkeys(header["entities"])
        names = ("waiting", "numbers", "ages")
        if not arrays.keys() >= set(names):
            raise CheckpointRefused("Arrays of the checkpoint are missing.", found=sorted(arrays))
        waiting = [arrays.pop(name) for name in names]
        points = forest._corners[:, 2 * forest.samples - 2 :, : forest.columns]
        targets = {"trees": forest._tree_records, "nodes": forest._nodes, "slots": forest._slots, "points": points}
        found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        wanted = {name: (array.dtype, array.shape) for name, array in targets.items()}
        if found != wanted or [len(array) for array in waiting] != [len(waiting[0])] * 3:
            raise CheckpointRefused("The arrays of the checkpoint do not fit its header.", found=found, wanted=wanted)
        for name, target in targets.items():
            target[...] = arrays[name]
        forest._check_links()
        kernels.rebuild_trees(forest._tree_records, forest._nodes, forest._corners)
        for point, number, age in zip(*waiting, strict=True):
            packed = np.zeros(forest._corners.shape[2], np.float32)
            packed[: forest.columns] = point
            forest._waiting.append((packed, int(number), float(age)))
        return forest

    def save(self, path: str | Path) -> None:
        """Write the checkpoint to a file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 1) -> Self:
        """Read the checkpoint from a file; raises as `from_bytes`."""
        return cls.from_bytes(Path(path).read_bytes(), threads=threads)

    def _check_links(self) -> None:
        """Refuse numbers that would lead compiled code outside its arrays."""
        nodes, slots, trees, leaves = self._nodes, self._slots, self._tree_records, 2 * self.samples - 1
        links = [nodes[name] for name in ("left", "right", "parent")] + [trees["root"], trees["free_node"], trees["free_leaf"]]
        inside = all(((link >= kernels.NONE) & (link < leaves)).all() for link in [*links, slots["leaf"]])
        sizes = ((trees["size"] >= 0) & (trees["size"] <= self.samples)).all()
        if not (inside and sizes and (nodes["cut_dim"] < self.columns).all()):
            raise CheckpointRefused("The checkpoint holds links that lead outside the forest.")
