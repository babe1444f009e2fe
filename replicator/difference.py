"""What is different between a mirror and a table map: in words, and in kind. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.mirror import MirrorTable
from replicator.typemap import Column


def describe_difference(table: MirrorTable, columns: Sequence[Column]) -> str:
    """What is different, in words."""
    had = {column["name"]: column["mirror_type"] for column in table.columns}
    has = {column.name: str(column.mirror_type) for column in columns}
    parts = [f"column {name} is new" for name in has if name not in had]
    parts += [f"column {name} is gone" for name in had if name not in has]
    parts += [f"column {name} is now {has[name]}, was {had[name]}" for name in has if name in had and has[name] != had[name]]
    return "the source's columns changed: " + ("; ".join(parts) or "their order")
