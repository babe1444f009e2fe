"""Random cut forest scores of warehouse rows.

Owns the public names of the package. Imports nothing by itself: numba takes a second to load, and `scorer --help`
should not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.forest import RandomCutForest

__all__ = ["RandomCutForest"]


def __getattr__(name: str) -> object:
    if name == "RandomCutForest":
        from scorer.forest import RandomCutForest

        return RandomCutForest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
